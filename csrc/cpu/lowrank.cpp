// y += s x eps^T for low-rank noise: eps^T = B A^T / sqrt(R), so a row costs (in + out) R multiply-adds.
#include "../ops.h"
#include "convert.h"
#include "generate.h"
#include "tasks.h"

namespace thickets {
namespace THICKETS_ISA {
namespace {

int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

// factor[k][i] = rank `rank` + k, k in 0 .. ranks, of row `first` + i, i in 0 .. count, of A or B.
void draw_factor(const Parameter& p, uint32_t stream, const LaneKey& key, int rank, int ranks, int64_t first,
                 int64_t count, float* factor) {
  for (int64_t i = 0; i < count; i += LANES)
    generate_factor(p, stream, key, iota(static_cast<uint32_t>(first + i)), rank, ranks,
                    [&](int k, F32x16 f) { store(factor + k * padded(count) + i, f); });
}

// Dot products of R rows of x with one factor, 16 partial sums each, in one fixed order.
template <int R>
void dots(const float* x, int64_t ldx, const float* factor, int64_t in, float* t) {
  F32x16 acc[R];
  for (int r = 0; r < R; ++r) acc[r] = F32x16(0.0f);
  for (int64_t k = 0; k < in; k += LANES) {
    const F32x16 f = load(factor + k);
    for (int r = 0; r < R; ++r) acc[r] = fma(load(x + r * ldx + k, clamp_lanes(in - k)), f, acc[r]);
  }
  for (int r = 0; r < R; ++r) t[r] = reduce_add(acc[r]);
}

// y += coefficient of each row and rank times A, for `height` rows and `ranks` ranks of both factors.
void add_rows(const NoiseProductArgs& a, const float* x, float* y, int height, int ranks, const float* A,
              const float* b, float scale) {
  for (int k = 0; k < ranks; ++k) {
    float t[4];
    if (height == 4)
      dots<4>(x, a.ldx, b + k * padded(a.in), a.in, t);
    else
      for (int i = 0; i < height; ++i) dots<1>(x + i * a.ldx, a.ldx, b + k * padded(a.in), a.in, t + i);
    for (int i = 0; i < height; ++i) {
      const F32x16 coefficient(t[i] * scale);
      float* row = y + i * a.ldy;
      for (int64_t o = 0; o < a.out; o += LANES) {
        const int lanes = clamp_lanes(a.out - o);
        store(row + o, fma(coefficient, load(A + k * padded(a.out) + o), load(row + o, lanes)), lanes);
      }
    }
  }
}

}  // namespace

void lowrank_product(const NoiseProductArgs& a) {
  const float inverse_root = static_cast<float>(1.0 / ::sqrt(static_cast<double>(a.noise.rank)));
  const int together = a.noise.rank < RANKS ? a.noise.rank : RANKS;
  const int64_t floats = together * (padded(a.in) + padded(a.out));
  const double work = 1.0 * (a.groups.count + a.groups.rows() / 16) * a.noise.rank * (a.in + a.out);
  for_row_tasks(a.groups, work, floats, [&](const RowTask& task, float* b) {
    float* A = b + together * padded(a.in);
    const LaneKey key = key_of(a.groups.seeds[task.member]);
    const float scale = a.groups.scales[task.member] * inverse_root;
    for (int rank = 0, ranks; rank < a.noise.rank; rank += ranks) {
      ranks = a.noise.rank - rank < together ? a.noise.rank - rank : together;
      draw_factor(a.noise, stream_lowrank_b, key, rank, ranks, a.noise.col, a.in, b);
      draw_factor(a.noise, stream_lowrank_a, key, rank, ranks, a.noise.row, a.out, A);
      for (int64_t r = task.begin; r < task.end; r += 4)
        add_rows(a, a.x + (r - task.shift) * a.ldx, a.y + r * a.ldy,
                 task.end - r < 4 ? static_cast<int>(task.end - r) : 4, ranks, A, b, scale);
    }
  });
}

}  // namespace THICKETS_ISA
}  // namespace thickets
