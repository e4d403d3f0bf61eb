// Storage dtypes: packs of a row-major matrix as float32, rounding, transposed tiles.
#pragma once
#include "../ops.h"
#include "simd.h"

namespace thickets {
namespace THICKETS_ISA {

// Up to 16 elements from element i of the matrix' storage; lanes past n are zero.
THICKETS_INLINE F32x16 load(const Matrix& m, int64_t i, int n) {
  if (m.dtype == Dtype::float32) return load(static_cast<const float*>(m.data) + i, n);
  const U32x16 half = load_u16(static_cast<const uint16_t*>(m.data) + i, n);
  return m.dtype == Dtype::bfloat16 ? as_float(half << 16) : from_float16(half);
}

THICKETS_INLINE void store(const Matrix& m, int64_t i, F32x16 x, int n) {
  if (m.dtype == Dtype::float32) return store(static_cast<float*>(m.data) + i, x, n);
  store_u16(static_cast<uint16_t*>(m.data) + i,
            m.dtype == Dtype::bfloat16 ? bfloat16_bits(x) : float16_bits(x), n);
}

// Brings the line of element i, which may lie past the end, towards the second-level cache.
THICKETS_INLINE void prefetch(const Matrix& m, int64_t i) {
  const int64_t size = m.dtype == Dtype::float32 ? 4 : 2;
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(m.data) + i * size), 0, 2);
}

// x as it would be read back from storage.
THICKETS_INLINE F32x16 rounded(F32x16 x, Dtype dtype) {
  if (dtype == Dtype::float32) return x;
  return dtype == Dtype::bfloat16 ? as_float(bfloat16_bits(x) << 16) : from_float16(float16_bits(x));
}

THICKETS_INLINE int clamp_lanes(int64_t n) { return n < 0 ? 0 : n < LANES ? static_cast<int>(n) : LANES; }

}  // namespace THICKETS_ISA
}  // namespace thickets
