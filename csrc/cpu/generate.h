// Noise of 16 rows at once: lane l holds row rows[l] of seed l, columns come one pack at a time.
#pragma once
#include <type_traits>

#include "simd.h"

namespace thickets {
namespace THICKETS_ISA {

using LaneKey = Key<PhiloxLanes>;

THICKETS_INLINE LaneKey key_of(int64_t seed) {
  const uint64_t s = static_cast<uint64_t>(seed);
  return schedule(PhiloxLanes(static_cast<uint32_t>(s)), PhiloxLanes(static_cast<uint32_t>(s >> 32)));
}

// Lane l has the key of seeds[l].
THICKETS_INLINE LaneKey key_of(const int64_t* seeds, int count) {
  alignas(64) uint32_t low[LANES] = {}, high[LANES] = {};
  for (int i = 0; i < count; ++i) {
    low[i] = static_cast<uint32_t>(static_cast<uint64_t>(seeds[i]));
    high[i] = static_cast<uint32_t>(static_cast<uint64_t>(seeds[i]) >> 32);
  }
  return schedule(PhiloxLanes(load(low)), PhiloxLanes(load(high)));
}

// Entries of one Philox call, in column order: emit(e, eps) for e in 0 .. E.
template <class Emit>
THICKETS_INLINE void emit_normal(const Words<U32x16>& words, Emit&& emit) {
  F32x16 z0, z1, z2, z3;
  box_muller(words.w[0], words.w[1], z0, z1);
  box_muller(words.w[2], words.w[3], z2, z3);
  emit(0, z0);
  emit(1, z1);
  emit(2, z2);
  emit(3, z3);
}

template <class Emit>
THICKETS_INLINE void emit_normal4(const Words<U32x16>& words, const Table8& magnitudes, Emit&& emit) {
  THICKETS_UNROLL(4)
  for (int j = 0; j < 4; ++j) THICKETS_UNROLL(8)
  for (int i = 0; i < 8; ++i) emit(8 * j + i, normal4_entry<F32x16>(words.w[j], i, magnitudes));
}

template <class Emit>
THICKETS_INLINE void emit_rademacher(const Words<U32x16>& words, Emit&& emit) {
  for (int j = 0; j < 4; ++j) THICKETS_UNROLL(32)
  for (int i = 0; i < 32; ++i) emit(32 * j + i, rademacher_entry<F32x16>(words.w[j], i));
}

// The calls at blocks[i] of 16 rows, side by side.
template <int calls>
THICKETS_INLINE void words_at(const Parameter& p, uint32_t stream, const U32x16 (&blocks)[calls], U32x16 rows,
                              const LaneKey& key, Words<U32x16> (&words)[calls]) {
  Words<PhiloxLanes> counters[calls];
  for (int i = 0; i < calls; ++i)
    counters[i] = counter_at(p, stream, PhiloxLanes(blocks[i]), PhiloxLanes(rows));
  philox4x32_10(counters, key);
  for (int i = 0; i < calls; ++i)
    for (int j = 0; j < 4; ++j) words[i].w[j] = in_order(counters[i].w[j]);
}

// Walks the blocks of E columns that cover [col, col + cols), `calls` at a time: decode(words, emit) of each,
// where emit(k, eps) is called for the columns inside only. Whole blocks go without a test per entry.
template <int E, int calls, class Decode, class Emit>
THICKETS_INLINE void for_blocks(const Parameter& p, uint32_t stream, const LaneKey& key, U32x16 rows,
                                int64_t col, int cols, Decode&& decode, Emit&& emit) {
  for (int64_t b = col / E; b * E < col + cols; b += calls) {
    U32x16 blocks[calls];
    for (int i = 0; i < calls; ++i) blocks[i] = U32x16(static_cast<uint32_t>(b + i));
    Words<U32x16> words[calls];
    words_at(p, stream, blocks, rows, key, words);
    THICKETS_UNROLL(4)
    for (int i = 0; i < calls; ++i) {
      const int first = static_cast<int>((b + i) * E - col);
      if (first >= 0 && first + E <= cols)
        decode(words[i], [&](int e, F32x16 eps) THICKETS_LAMBDA { emit(first + e, eps); });
      else
        decode(words[i], [&](int e, F32x16 eps) THICKETS_LAMBDA {
          if (first + e >= 0 && first + e < cols) emit(first + e, eps);
        });
    }
  }
}

// emit(k, eps) for every column col + k, k in 0 .. cols, of a dense family.
template <Family family, class Emit>
THICKETS_INLINE void generate(const Parameter& p, const LaneKey& key, U32x16 rows, int64_t col, int cols,
                              Emit&& emit) {
  if constexpr (family == Family::normal) {
    for_blocks<4, CALLS>(
        p, stream_normal, key, rows, col, cols,
        [](const Words<U32x16>& words, auto&& out) THICKETS_LAMBDA { emit_normal(words, out); }, emit);
  } else if constexpr (family == Family::normal4) {
    static const float table[8] = THICKETS_NORMAL4_MAGNITUDES;
    const Table8 magnitudes(table);
    for_blocks<32, 1>(
        p, stream_normal4, key, rows, col, cols,
        [&](const Words<U32x16>& words, auto&& out) THICKETS_LAMBDA { emit_normal4(words, magnitudes, out); },
        emit);
  } else {
    static_assert(family == Family::rademacher, "a dense family");
    for_blocks<128, 1>(
        p, stream_rademacher, key, rows, col, cols,
        [](const Words<U32x16>& words, auto&& out) THICKETS_LAMBDA { emit_rademacher(words, out); }, emit);
  }
}

// Low-rank products go by so many ranks at a time, so that scratch memory does not grow with the rank.
constexpr int RANKS = 64;

// Low-rank factors: emit(k, factor) for ranks first + k, k in 0 .. ranks, of 16 rows of A or B.
template <class Emit>
THICKETS_INLINE void generate_factor(const Parameter& p, uint32_t stream, const LaneKey& key, U32x16 rows,
                                     int first, int ranks, Emit&& emit) {
  for_blocks<4, 1>(
      p, stream, key, rows, first, ranks,
      [](const Words<U32x16>& words, auto&& out) THICKETS_LAMBDA { emit_normal(words, out); }, emit);
}

// Calls f with the dense family as a compile-time constant.
template <class F>
THICKETS_INLINE void with_dense_family(Family family, F&& f) {
  switch (family) {
    case Family::normal:
      return f(std::integral_constant<Family, Family::normal>{});
    case Family::normal4:
      return f(std::integral_constant<Family, Family::normal4>{});
    default:
      return f(std::integral_constant<Family, Family::rademacher>{});
  }
}

}  // namespace THICKETS_ISA
}  // namespace thickets
