// y += s x eps^T for low-rank noise: eps^T = B A^T / sqrt(R), so a row costs (in + out) R multiply-adds.
#include <cstdlib>

#include "../ops.h"
#include "convert.h"
#include "generate.h"
#include "tasks.h"

namespace thickets {
namespace THICKETS_ISA {
namespace {

int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

// factor[k][i], k in 0 .. R, of `count` rows of A or B from global row `first`.
void draw_factor(const Parameter& p, uint32_t stream, const LaneKey& key, int64_t first, int64_t count,
                 float* factor) {
  for (int64_t i = 0; i < count; i += LANES)
    generate_factor(p, stream, key, iota(static_cast<uint32_t>(first + i)),
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

}  // namespace

void lowrank_product(const NoiseProductArgs& a) {
  const int64_t rank = a.noise.rank;
  const float inverse_root = static_cast<float>(1.0 / ::sqrt(static_cast<double>(rank)));
  for_row_tasks(a.groups, static_cast<size_t>(rank * (padded(a.in) + padded(a.out))),
                [&](const RowTask& task, float* factors) {
                  float* b = factors;
                  float* A = factors + rank * padded(a.in);
                  const LaneKey key = key_of(a.groups.seeds[task.member]);
                  draw_factor(a.noise, stream_lowrank_b, key, a.noise.col, a.in, b);
                  draw_factor(a.noise, stream_lowrank_a, key, a.noise.row, a.out, A);
                  const float scale = a.groups.scales[task.member] * inverse_root;
                  for (int64_t r = task.begin; r < task.end; r += 4) {
                    const int height = task.end - r < 4 ? static_cast<int>(task.end - r) : 4;
                    const float* x = a.x + (r - task.shift) * a.ldx;
                    for (int64_t k = 0; k < rank; ++k) {
                      float t[4];
                      if (height == 4)
                        dots<4>(x, a.ldx, b + k * padded(a.in), a.in, t);
                      else
                        for (int i = 0; i < height; ++i)
                          dots<1>(x + i * a.ldx, a.ldx, b + k * padded(a.in), a.in, t + i);
                      for (int i = 0; i < height; ++i) {
                        const F32x16 coefficient(t[i] * scale);
                        float* y = a.y + (r + i) * a.ldy;
                        for (int64_t o = 0; o < a.out; o += LANES) {
                          const int lanes = clamp_lanes(a.out - o);
                          store(y + o, fma(coefficient, load(A + k * padded(a.out) + o), load(y + o, lanes)),
                                lanes);
                        }
                      }
                    }
                  }
                });
}

}  // namespace THICKETS_ISA
}  // namespace thickets
