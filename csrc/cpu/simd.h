// Packs of 16 lanes, the same type on every instruction set: one zmm, two ymm, or an array that the compiler
// vectorises.
//
// Kernels are written once against these two types and compiled once per instruction set (THICKETS_ISA, set
// by setup.py), each in its own namespace. Every function is defined lane by lane, reductions included, so
// all instruction sets give the same bits.
#pragma once
#include "../noise.h"

#define THICKETS_ISA_portable 0
#define THICKETS_ISA_avx2 1
#define THICKETS_ISA_avx512 2
#define THICKETS_CONCAT_(a, b) a##b
#define THICKETS_CONCAT(a, b) THICKETS_CONCAT_(a, b)
#define THICKETS_ISA_INDEX THICKETS_CONCAT(THICKETS_ISA_, THICKETS_ISA)

namespace thickets {
namespace THICKETS_ISA {
constexpr int LANES = 16;
}
}  // namespace thickets

#if THICKETS_ISA_INDEX == 2
#include "simd_avx512.h"
#elif THICKETS_ISA_INDEX == 1
#include "simd_avx2.h"
#else
#include "simd_portable.h"
#endif

namespace thickets {
namespace THICKETS_ISA {

// Reductions in one fixed order: lane i with i + 8, then + 4, + 2, + 1.
THICKETS_INLINE float reduce_add(F32x16 x) {
  alignas(64) float v[LANES];
  store(v, x);
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) v[i] += v[i + half];
  return v[0];
}

THICKETS_INLINE U32x16 iota(uint32_t first) {
  alignas(64) static const uint32_t lanes[LANES] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return load(lanes) + U32x16(first);
}

// Rounds to bfloat16 (nearest even) and back; NaN stays NaN.
THICKETS_INLINE U32x16 bfloat16_bits(F32x16 x) {
  const U32x16 u = bits(x);
  const U32x16 rounded = u + U32x16(0x7fffu) + ((u >> 16) & U32x16(1u));
  return select_nan(x, u | U32x16(0x00400000u), rounded) >> 16;
}

}  // namespace THICKETS_ISA
}  // namespace thickets
