// Low-rank noise A B^T / sqrt(R) (docs/noise.md, section 3): its factors, made where they are used and never
// stored, and thin products with them.
//
// A thread has four neighbouring columns (outputs, in a product) and one factor's ranks there in registers;
// the other factor is read from shared memory. Ranks go four at a time, as a Philox call gives them.
#pragma once
#include <algorithm>
#include <cmath>

#include "fours.h"
#include "groups.h"

namespace thickets::cuda {

constexpr int THREADS = 128, WIDTH = 4 * THREADS;  // columns of a block
constexpr int TALL = 64;                           // the most lines of a block

// Ranks of a Philox call that are in use; many: there are more than four.
template <int n, bool more>
struct Ranks {
  static constexpr int used = n;
  static constexpr bool many = more;
  static constexpr int tall = many ? 16 : TALL;  // the most lines of a block that share a thread's factors
  static constexpr int deep = many ? 16 : 4;     // lines that a thread sums at a time
};

template <class F>
void with_ranks(int rank, F&& f) {
  if (rank == 1) return f(Ranks<1, false>{});
  if (rank == 2) return f(Ranks<2, false>{});
  rank <= 4 ? f(Ranks<4, false>{}) : f(Ranks<4, true>{});
}

inline uint32_t blocks_of(int64_t n, int64_t size) { return static_cast<uint32_t>((n + size - 1) / size); }
inline float inverse_root(int rank) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(rank))); }

// The lines of a member, or of a mean one.
inline int64_t lines_of(const Members& m) {
  return m.offsets ? m.total / std::max<int64_t>(m.count, 1) : m.rows;
}

// Lines of a block: the more of them, the more share a factor, but all of the device should have blocks.
inline int height_of(int64_t members, int64_t lines, int64_t wide, int tallest, int device) {
  int height = 8;
  while (height < tallest && height < lines &&
         lines / height / 2 * members * wide >= 4 * multiprocessors(device))
    height *= 2;
  return height;
}

THICKETS_DEVICE Key<uint32_t> key_of(const Members& m, int64_t member) {
  const uint64_t seed = static_cast<uint64_t>(m.seeds[member]);
  return schedule(static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

// Ranks 4 block .. 4 block + ranks - 1 of one line of A or B.
template <int ranks>
THICKETS_DEVICE Four factor(const Parameter& p, uint32_t stream, const Key<uint32_t>& key, int64_t line,
                            int block) {
  Words<uint32_t> call[1] = {
      counter_at(p, stream, static_cast<uint32_t>(block), static_cast<uint32_t>(line))};
  philox4x32_10(call, key);
  const uint32_t (&w)[4] = call[0].w;
  Four z = {};
  box_muller(w[0], w[1], z.v[0], z.v[1]);
  if constexpr (ranks > 2) box_muller(w[2], w[3], z.v[2], z.v[3]);
  return z;
}

// The same with zeros in place of ranks from R on: fma(0, b, d) is d, since d is never -0.
template <int ranks>
THICKETS_DEVICE Four cropped_factor(const Parameter& p, uint32_t stream, const Key<uint32_t>& key,
                                    int64_t line, int block) {
  Four z = factor<ranks>(p, stream, key, line, block);
  THICKETS_UNROLL(4)
  for (int k = 0; k < 4; ++k)
    if (4 * block + k >= p.rank) z.v[k] = 0.0f;
  return z;
}

// d[c] = fma(left[k], right[c][k], d[c]) for ascending k.
template <int ranks>
THICKETS_DEVICE void chain(const Four& left, const Four (&right)[4], float (&d)[4]) {
  THICKETS_UNROLL(4)
  for (int k = 0; k < ranks; ++k) THICKETS_UNROLL(4)
  for (int c = 0; c < 4; ++c) d[c] = fma(left.v[k], right[c].v[k], d[c]);
}

// left right^T of `lines` lines by a thread's four columns: finish(i, d) gets the sums of some lines from i
// on. Line i's left factor is left(i, block), the right one belongs to `column` and the next three.
template <class Ranks, class Left, class Finish>
THICKETS_DEVICE void thin_product(const Parameter& p, uint32_t stream, const Key<uint32_t>& key,
                                  int64_t column, int lines, Left left, Finish finish) {
  __shared__ Four shared_left[TALL];
  const int blocks = Ranks::many ? (p.rank + 3) / 4 : 1;
  Four right[4];
  THICKETS_UNROLL(1)
  for (int first = 0; first < lines; first += Ranks::deep) {
    float d[Ranks::deep][4] = {};
    THICKETS_UNROLL(1)
    for (int block = 0; block < blocks; ++block) {
      if (Ranks::many || first == 0) {
        __syncthreads();
        if (static_cast<int>(threadIdx.x) < lines) shared_left[threadIdx.x] = left(threadIdx.x, block);
        THICKETS_UNROLL(4)
        for (int c = 0; c < 4; ++c) right[c] = factor<Ranks::used>(p, stream, key, column + c, block);
        __syncthreads();
      }
      THICKETS_UNROLL(16)
      for (int r = 0; r < Ranks::deep; ++r) chain<Ranks::used>(shared_left[first + r], right, d[r]);
    }
    finish(first, d);
  }
}

}  // namespace thickets::cuda
