// Noise of 16 rows at once: lane l holds row rows[l] of seed l, columns come one pack at a time.
#pragma once
#include <type_traits>

#include "simd.h"

namespace thickets {
namespace THICKETS_ISA {

THICKETS_INLINE Key<U32x16> key_of(int64_t seed) {
  const uint64_t s = static_cast<uint64_t>(seed);
  return schedule(U32x16(static_cast<uint32_t>(s)), U32x16(static_cast<uint32_t>(s >> 32)));
}

THICKETS_INLINE Key<U32x16> key_of(const int64_t* seeds, int count) {
  alignas(64) uint32_t low[LANES] = {}, high[LANES] = {};
  for (int i = 0; i < count; ++i) {
    low[i] = static_cast<uint32_t>(static_cast<uint64_t>(seeds[i]));
    high[i] = static_cast<uint32_t>(static_cast<uint64_t>(seeds[i]) >> 32);
  }
  return schedule(load(low), load(high));
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
  for (int j = 0; j < 4; ++j)
THICKETS_UNROLL(8)
    for (int i = 0; i < 8; ++i) emit(8 * j + i, normal4_entry<F32x16>(words.w[j], i, magnitudes));
}

template <class Emit>
THICKETS_INLINE void emit_rademacher(const Words<U32x16>& words, Emit&& emit) {
  for (int j = 0; j < 4; ++j)
THICKETS_UNROLL(32)
    for (int i = 0; i < 32; ++i) emit(32 * j + i, rademacher_entry<F32x16>(words.w[j], i));
}

// Walks the blocks of E columns that cover [col, col + cols); whole blocks without a test per entry.
template <int E, class Block, class Emit>
THICKETS_INLINE void for_blocks(int64_t col, int cols, Block&& block, Emit&& emit) {
  for (int64_t b = col / E; b * E < col + cols; ++b) {
    const int first = static_cast<int>(b * E - col);
    if (first >= 0 && first + E <= cols)
      block(static_cast<uint32_t>(b), [&](int e, F32x16 eps) { emit(first + e, eps); });
    else
      block(static_cast<uint32_t>(b), [&](int e, F32x16 eps) {
        if (first + e >= 0 && first + e < cols) emit(first + e, eps);
      });
  }
}

// emit(k, eps) for every column col + k, k in 0 .. cols, of a dense family.
template <Family family, class Emit>
THICKETS_INLINE void generate(const Parameter& p, const Key<U32x16>& key, U32x16 rows, int64_t col, int cols, Emit&& emit) {
  if constexpr (family == Family::normal) {
    for_blocks<4>(col, cols,
                  [&](uint32_t b, auto&& out) { emit_normal(parameter_words(p, stream_normal, U32x16(b), rows, key), out); },
                  emit);
  } else if constexpr (family == Family::normal4) {
    static const float table[8] = THICKETS_NORMAL4_MAGNITUDES;
    const Table8 magnitudes(table);
    for_blocks<32>(
        col, cols,
        [&](uint32_t b, auto&& out) {
          emit_normal4(parameter_words(p, stream_normal4, U32x16(b), rows, key), magnitudes, out);
        },
        emit);
  } else {
    static_assert(family == Family::rademacher, "a dense family");
    for_blocks<128>(
        col, cols,
        [&](uint32_t b, auto&& out) {
          emit_rademacher(parameter_words(p, stream_rademacher, U32x16(b), rows, key), out);
        },
        emit);
  }
}

// Low-rank factors: emit(k, factor) for k in 0 .. R of 16 rows of A or B.
template <class Emit>
THICKETS_INLINE void generate_factor(const Parameter& p, uint32_t stream, const Key<U32x16>& key, U32x16 rows, Emit&& emit) {
  for_blocks<4>(
      0, p.rank,
      [&](uint32_t b, auto&& out) { emit_normal(parameter_words(p, stream, U32x16(b), rows, key), out); }, emit);
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
