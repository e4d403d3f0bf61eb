// Packs as two ymm registers (AVX2, FMA, F16C). Included by simd.h only.
#pragma once
#include <immintrin.h>

namespace thickets {
namespace THICKETS_ISA {

struct U32x16 {
  __m256i a, b;
  U32x16() = default;
  THICKETS_MEMBER U32x16(__m256i x, __m256i y) : a(x), b(y) {}
  THICKETS_MEMBER explicit U32x16(uint32_t x) : a(_mm256_set1_epi32(static_cast<int>(x))), b(a) {}
};
struct F32x16 {
  __m256 a, b;
  F32x16() = default;
  THICKETS_MEMBER F32x16(__m256 x, __m256 y) : a(x), b(y) {}
  THICKETS_MEMBER explicit F32x16(float x) : a(_mm256_set1_ps(x)), b(a) {}
};

#define THICKETS_BOTH(f, ...) {f(x.a, __VA_ARGS__), f(x.b, __VA_ARGS__)}
#define THICKETS_PAIR(f) {f(x.a, y.a), f(x.b, y.b)}
THICKETS_INLINE U32x16 operator+(U32x16 x, U32x16 y) { return THICKETS_PAIR(_mm256_add_epi32); }
THICKETS_INLINE U32x16 operator-(U32x16 x, U32x16 y) { return THICKETS_PAIR(_mm256_sub_epi32); }
THICKETS_INLINE U32x16 operator&(U32x16 x, U32x16 y) { return THICKETS_PAIR(_mm256_and_si256); }
THICKETS_INLINE U32x16 operator|(U32x16 x, U32x16 y) { return THICKETS_PAIR(_mm256_or_si256); }
THICKETS_INLINE U32x16 operator^(U32x16 x, U32x16 y) { return THICKETS_PAIR(_mm256_xor_si256); }
THICKETS_INLINE U32x16 operator<<(U32x16 x, int n) { return THICKETS_BOTH(_mm256_slli_epi32, n); }
THICKETS_INLINE U32x16 operator>>(U32x16 x, int n) { return THICKETS_BOTH(_mm256_srli_epi32, n); }
THICKETS_INLINE U32x16 shift_right_signed(U32x16 x, int n) { return THICKETS_BOTH(_mm256_srai_epi32, n); }

THICKETS_INLINE F32x16 operator+(F32x16 x, F32x16 y) { return THICKETS_PAIR(_mm256_add_ps); }
THICKETS_INLINE F32x16 operator-(F32x16 x, F32x16 y) { return THICKETS_PAIR(_mm256_sub_ps); }
THICKETS_INLINE F32x16 operator*(F32x16 x, F32x16 y) { return THICKETS_PAIR(_mm256_mul_ps); }
#undef THICKETS_BOTH
#undef THICKETS_PAIR
THICKETS_INLINE F32x16 fma(F32x16 x, F32x16 y, F32x16 z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
THICKETS_INLINE F32x16 sqrt(F32x16 x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
THICKETS_INLINE U32x16 bits(F32x16 x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
THICKETS_INLINE F32x16 as_float(U32x16 x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
THICKETS_INLINE F32x16 to_float(U32x16 x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
THICKETS_INLINE __m256i blend_nan(__m256 x, __m256i if_nan, __m256i otherwise) {
  return _mm256_blendv_epi8(otherwise, if_nan, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
}
THICKETS_INLINE U32x16 select_nan(F32x16 x, U32x16 if_nan, U32x16 otherwise) {
  return {blend_nan(x.a, if_nan.a, otherwise.a), blend_nan(x.b, if_nan.b, otherwise.b)};
}

// Philox's lanes: even and odd ones apart, each in the low half of 64 bits, whose high half is never read. A
// product's low and high words then cost one multiplication and one shift.
struct PhiloxLanes {
  __m256i v[4];  // even and odd lanes of the first eight, then of the others
  PhiloxLanes() = default;
  THICKETS_MEMBER explicit PhiloxLanes(uint32_t x) {
    for (__m256i& part : v) part = _mm256_set1_epi32(static_cast<int>(x));
  }
  THICKETS_MEMBER explicit PhiloxLanes(U32x16 x)
      : v{x.a, _mm256_srli_epi64(x.a, 32), x.b, _mm256_srli_epi64(x.b, 32)} {}
};
THICKETS_INLINE PhiloxLanes operator+(PhiloxLanes x, PhiloxLanes y) {
  for (int i = 0; i < 4; ++i) x.v[i] = _mm256_add_epi32(x.v[i], y.v[i]);
  return x;
}
THICKETS_INLINE PhiloxLanes operator^(PhiloxLanes x, PhiloxLanes y) {
  for (int i = 0; i < 4; ++i) x.v[i] = _mm256_xor_si256(x.v[i], y.v[i]);
  return x;
}
THICKETS_INLINE void mul_hi_lo(PhiloxLanes x, uint32_t m, PhiloxLanes& hi, PhiloxLanes& lo) {
  const __m256i factor = _mm256_set1_epi32(static_cast<int>(m));
  for (int i = 0; i < 4; ++i) {
    lo.v[i] = _mm256_mul_epu32(x.v[i], factor);
    hi.v[i] = _mm256_srli_epi64(lo.v[i], 32);
  }
}
THICKETS_INLINE U32x16 in_order(PhiloxLanes x) {
  return {_mm256_blend_epi32(x.v[0], _mm256_slli_epi64(x.v[1], 32), 0xAA),
          _mm256_blend_epi32(x.v[2], _mm256_slli_epi64(x.v[3], 32), 0xAA)};
}
constexpr int CALLS =
    1;  // Philox calls side by side: two would spill (1.5e9 normals a second and core against 1.2e9)

// A table of eight floats in a register, indexed by the low three bits of each lane.
struct Table8 {
  __m256 v;
  THICKETS_MEMBER explicit Table8(const float (&t)[8]) : v(_mm256_loadu_ps(t)) {}
};
THICKETS_INLINE F32x16 lookup(const Table8& table, U32x16 i) {
  return {_mm256_permutevar8x32_ps(table.v, i.a), _mm256_permutevar8x32_ps(table.v, i.b)};
}

THICKETS_INLINE U32x16 load(const uint32_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 8))};
}
THICKETS_INLINE F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
THICKETS_INLINE void store(float* p, F32x16 x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
THICKETS_INLINE void store(uint32_t* p, U32x16 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.a);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), x.b);
}
THICKETS_INLINE F32x16 load(const float* p, int n) {
  if (n >= LANES) return load(p);
  alignas(32) float v[LANES] = {};
  memcpy(v, p, static_cast<size_t>(n) * sizeof(float));
  return load(v);
}
THICKETS_INLINE void store(float* p, F32x16 x, int n) {
  if (n >= LANES) return store(p, x);
  alignas(32) float v[LANES];
  store(v, x);
  memcpy(p, v, static_cast<size_t>(n) * sizeof(float));
}
THICKETS_INLINE U32x16 load_u16(const uint16_t* p, int n) {
  uint16_t v[LANES] = {};
  if (n < LANES) p = static_cast<const uint16_t*>(memcpy(v, p, static_cast<size_t>(n) * sizeof(uint16_t)));
  const __m128i* q = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtepu16_epi32(_mm_loadu_si128(q)), _mm256_cvtepu16_epi32(_mm_loadu_si128(q + 1))};
}
// Lanes hold 16-bit values: pack both halves, in order.
THICKETS_INLINE __m256i pack_u16(U32x16 x) {
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(x.a, x.b), 0xD8);
}
THICKETS_INLINE void store_u16(uint16_t* p, U32x16 x, int n) {
  uint16_t v[LANES];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(n < LANES ? v : p), pack_u16(x));
  if (n < LANES) memcpy(p, v, static_cast<size_t>(n) * sizeof(uint16_t));
}
THICKETS_INLINE F32x16 from_float16(U32x16 h) {
  const __m256i packed = pack_u16(h);
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(packed)),
          _mm256_cvtph_ps(_mm256_extracti128_si256(packed, 1))};
}
THICKETS_INLINE U32x16 float16_bits(F32x16 x) {
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_cvtepu16_epi32(_mm256_cvtps_ph(x.a, nearest)),
          _mm256_cvtepu16_epi32(_mm256_cvtps_ph(x.b, nearest))};
}

// Flips the sign of lane i where bit i is set: bit i moves to bit 31 of its lane.
THICKETS_INLINE F32x16 flip(F32x16 x, uint32_t signs) {
  const __m256i s = _mm256_set1_epi32(static_cast<int>(signs)),
                top = _mm256_set1_epi32(static_cast<int>(0x80000000u));
  const __m256i low = _mm256_sllv_epi32(s, _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24));
  const __m256i high = _mm256_sllv_epi32(s, _mm256_setr_epi32(23, 22, 21, 20, 19, 18, 17, 16));
  return {_mm256_xor_ps(x.a, _mm256_castsi256_ps(_mm256_and_si256(low, top))),
          _mm256_xor_ps(x.b, _mm256_castsi256_ps(_mm256_and_si256(high, top)))};
}

// The four butterflies within a pack (strides 1, 2, 4, 8): x, the partner lane, a sum or a difference.
THICKETS_INLINE __m256 hadamard8(__m256 v) {
  __m256 swapped = _mm256_permute_ps(v, 0xB1);
  v = _mm256_blend_ps(_mm256_add_ps(v, swapped), _mm256_sub_ps(swapped, v), 0xAA);
  swapped = _mm256_permute_ps(v, 0x4E);
  v = _mm256_blend_ps(_mm256_add_ps(v, swapped), _mm256_sub_ps(swapped, v), 0xCC);
  swapped = _mm256_permute2f128_ps(v, v, 0x01);
  return _mm256_blend_ps(_mm256_add_ps(v, swapped), _mm256_sub_ps(swapped, v), 0xF0);
}
THICKETS_INLINE F32x16 hadamard16(F32x16 x) {
  const __m256 a = hadamard8(x.a), b = hadamard8(x.b);
  return {_mm256_add_ps(a, b), _mm256_sub_ps(a, b)};
}

THICKETS_INLINE void transpose8(__m256 (&r)[8]) {
  __m256 t[8], u[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xEE);
    u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    r[j] = _mm256_permute2f128_ps(u[j], u[4 + j], 0x20);
    r[4 + j] = _mm256_permute2f128_ps(u[j], u[4 + j], 0x31);
  }
}
// Four 8 x 8 blocks; the off-diagonal ones change places.
THICKETS_INLINE void transpose16(F32x16 (&r)[16]) {
  __m256 block[8];
  __m256 corner[8];
  for (int i = 0; i < 8; ++i) block[i] = r[i].a;
  transpose8(block);
  for (int i = 0; i < 8; ++i) corner[i] = r[8 + i].a;
  for (int i = 0; i < 8; ++i) r[i].a = block[i];
  transpose8(corner);
  for (int i = 0; i < 8; ++i) block[i] = r[i].b;
  for (int i = 0; i < 8; ++i) r[i].b = corner[i];
  transpose8(block);
  for (int i = 0; i < 8; ++i) r[8 + i].a = block[i];
  for (int i = 0; i < 8; ++i) block[i] = r[8 + i].b;
  transpose8(block);
  for (int i = 0; i < 8; ++i) r[8 + i].b = block[i];
}

}  // namespace THICKETS_ISA
}  // namespace thickets
