// y += s x eps^T for hadamard noise: three transforms per input row and row block instead of rows x cols
// entries.
#include "hadamard.h"

#include "../ops.h"
#include "convert.h"
#include "tasks.h"

namespace thickets {
namespace THICKETS_ISA {
namespace {

// The diagonals of the row blocks that a slice of the parameter touches: D3, then D1 and D2 of each block.
struct Diagonals {
  int64_t n, first, blocks;
  uint32_t* signs;

  static int64_t words(int64_t n, int64_t blocks) { return (1 + 2 * blocks) * n / 32; }
  const uint32_t* d3() const { return signs; }
  uint32_t* d1(int64_t b) const { return signs + (1 + 2 * b) * n / 32; }
  uint32_t* d2(int64_t b) const { return signs + (2 + 2 * b) * n / 32; }

  void draw(const Parameter& p, int64_t seed) const {
    const LaneKey key = key_of(seed);
    diagonal(p, key, stream_hadamard_3, 0, n, signs);
    for (int64_t b = 0; b < blocks; ++b) {
      diagonal(p, key, stream_hadamard_1, first + b, n, d1(b));
      diagonal(p, key, stream_hadamard_2, first + b, n, d2(b));
    }
  }
};

// y += s eps x for one row, with `u` and `v` scratch of n floats.
void add_row(const NoiseProductArgs& a, const Diagonals& d, float s, const float* x, float* y, float* u,
             float* v) {
  memset(u, 0, static_cast<size_t>(d.n) * sizeof(float));
  memcpy(u + a.noise.col, x, static_cast<size_t>(a.in) * sizeof(float));
  hadamard_transform(u, u, d.n, d.d3());
  const F32x16 scale(s / static_cast<float>(d.n));
  for (int64_t b = 0; b < d.blocks; ++b) {
    hadamard_transform(v, u, d.n, d.d2(b));
    hadamard_transform(v, v, d.n, d.d1(b));
    // Row i of the block is output shift + i of the slice.
    const int64_t shift = (d.first + b) * d.n - a.noise.row;
    const int64_t begin = shift < 0 ? 0 : shift, end = a.out < shift + d.n ? a.out : shift + d.n;
    for (int64_t o = begin; o < end; o += LANES) {
      const int lanes = clamp_lanes(end - o);
      store(y + o, fma(scale, load(v + o - shift, lanes), load(y + o, lanes)), lanes);
    }
  }
}

}  // namespace

void hadamard_product(const NoiseProductArgs& a) {
  if (a.out == 0) return;
  const int64_t n = hadamard_length(a.noise.full_cols), first = a.noise.row / n;
  const int64_t blocks = (a.noise.row + a.out - 1) / n + 1 - first;
  const double work = 1.0 * a.groups.rows() * (1 + 2 * blocks) * n;
  for_row_tasks(a.groups, work, 2 * n + Diagonals::words(n, blocks),
                [&](const RowTask& task, float* scratch) {
                  const Diagonals diagonals{n, first, blocks, reinterpret_cast<uint32_t*>(scratch + 2 * n)};
                  diagonals.draw(a.noise, a.groups.seeds[task.member]);
                  for (int64_t r = task.begin; r < task.end; ++r)
                    add_row(a, diagonals, a.groups.scales[task.member], a.x + (r - task.shift) * a.ldx,
                            a.y + r * a.ldy, scratch, scratch + n);
                });
}

}  // namespace THICKETS_ISA
}  // namespace thickets
