// Packs as one zmm register (AVX-512 F, BW, DQ, VL). Included by simd.h only.
#pragma once
#include <immintrin.h>

namespace thickets {
namespace THICKETS_ISA {

struct U32x16 {
  __m512i v;
  U32x16() = default;
  THICKETS_MEMBER U32x16(__m512i x) : v(x) {}
  THICKETS_MEMBER explicit U32x16(uint32_t x) : v(_mm512_set1_epi32(static_cast<int>(x))) {}
};
struct F32x16 {
  __m512 v;
  F32x16() = default;
  THICKETS_MEMBER F32x16(__m512 x) : v(x) {}
  THICKETS_MEMBER explicit F32x16(float x) : v(_mm512_set1_ps(x)) {}
};

THICKETS_INLINE U32x16 operator+(U32x16 a, U32x16 b) { return _mm512_add_epi32(a.v, b.v); }
THICKETS_INLINE U32x16 operator-(U32x16 a, U32x16 b) { return _mm512_sub_epi32(a.v, b.v); }
THICKETS_INLINE U32x16 operator&(U32x16 a, U32x16 b) { return _mm512_and_si512(a.v, b.v); }
THICKETS_INLINE U32x16 operator|(U32x16 a, U32x16 b) { return _mm512_or_si512(a.v, b.v); }
THICKETS_INLINE U32x16 operator^(U32x16 a, U32x16 b) { return _mm512_xor_si512(a.v, b.v); }
THICKETS_INLINE U32x16 operator<<(U32x16 a, int n) {
  return _mm512_slli_epi32(a.v, static_cast<unsigned>(n));
}
THICKETS_INLINE U32x16 operator>>(U32x16 a, int n) {
  return _mm512_srli_epi32(a.v, static_cast<unsigned>(n));
}
THICKETS_INLINE U32x16 shift_right_signed(U32x16 a, int n) {
  return _mm512_srai_epi32(a.v, static_cast<unsigned>(n));
}

THICKETS_INLINE F32x16 operator+(F32x16 a, F32x16 b) { return _mm512_add_ps(a.v, b.v); }
THICKETS_INLINE F32x16 operator-(F32x16 a, F32x16 b) { return _mm512_sub_ps(a.v, b.v); }
THICKETS_INLINE F32x16 operator*(F32x16 a, F32x16 b) { return _mm512_mul_ps(a.v, b.v); }
THICKETS_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }
THICKETS_INLINE F32x16 sqrt(F32x16 a) { return _mm512_sqrt_ps(a.v); }
THICKETS_INLINE U32x16 bits(F32x16 a) { return _mm512_castps_si512(a.v); }
THICKETS_INLINE F32x16 as_float(U32x16 a) { return _mm512_castsi512_ps(a.v); }
THICKETS_INLINE F32x16 to_float(U32x16 a) { return _mm512_cvtepi32_ps(a.v); }
THICKETS_INLINE U32x16 select_nan(F32x16 x, U32x16 if_nan, U32x16 otherwise) {
  return _mm512_mask_mov_epi32(otherwise.v, _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q), if_nan.v);
}

// Philox's lanes: even and odd ones apart, each in the low half of 64 bits, whose high half is never read. A
// product's low and high words then cost one multiplication and one shift.
struct PhiloxLanes {
  __m512i even, odd;
  PhiloxLanes() = default;
  THICKETS_MEMBER PhiloxLanes(__m512i e, __m512i o) : even(e), odd(o) {}
  THICKETS_MEMBER explicit PhiloxLanes(uint32_t x)
      : even(_mm512_set1_epi32(static_cast<int>(x))), odd(even) {}
  THICKETS_MEMBER explicit PhiloxLanes(U32x16 x) : even(x.v), odd(_mm512_srli_epi64(x.v, 32)) {}
};
THICKETS_INLINE PhiloxLanes operator+(PhiloxLanes x, PhiloxLanes y) {
  return {_mm512_add_epi32(x.even, y.even), _mm512_add_epi32(x.odd, y.odd)};
}
THICKETS_INLINE PhiloxLanes operator^(PhiloxLanes x, PhiloxLanes y) {
  return {_mm512_xor_si512(x.even, y.even), _mm512_xor_si512(x.odd, y.odd)};
}
THICKETS_INLINE void mul_hi_lo(PhiloxLanes x, uint32_t m, PhiloxLanes& hi, PhiloxLanes& lo) {
  const __m512i factor = _mm512_set1_epi32(static_cast<int>(m));
  lo = {_mm512_mul_epu32(x.even, factor), _mm512_mul_epu32(x.odd, factor)};
  hi = {_mm512_srli_epi64(lo.even, 32), _mm512_srli_epi64(lo.odd, 32)};
}
THICKETS_INLINE U32x16 in_order(PhiloxLanes x) {
  return _mm512_mask_mov_epi32(x.even, 0xAAAA, _mm512_slli_epi64(x.odd, 32));
}
constexpr int CALLS =
    2;  // Philox calls side by side: 3.3e9 normals a second and core; one at a time 2.4e9 (Zen 5)

// A table of eight floats in a register, indexed by the low three bits of each lane.
struct Table8 {
  __m512 v;
  THICKETS_MEMBER explicit Table8(const float (&t)[8]) : v(_mm512_broadcast_f32x8(_mm256_loadu_ps(t))) {}
};
THICKETS_INLINE F32x16 lookup(const Table8& table, U32x16 i) { return _mm512_permutexvar_ps(i.v, table.v); }

THICKETS_INLINE __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
THICKETS_INLINE U32x16 load(const uint32_t* p) { return _mm512_loadu_si512(p); }
THICKETS_INLINE F32x16 load(const float* p) { return _mm512_loadu_ps(p); }
THICKETS_INLINE F32x16 load(const float* p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
THICKETS_INLINE void store(float* p, F32x16 x) { _mm512_storeu_ps(p, x.v); }
THICKETS_INLINE void store(uint32_t* p, U32x16 x) { _mm512_storeu_si512(p, x.v); }
THICKETS_INLINE void store(float* p, F32x16 x, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), x.v); }
THICKETS_INLINE U32x16 load_u16(const uint16_t* p, int n) {
  return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
THICKETS_INLINE void store_u16(uint16_t* p, U32x16 x, int n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), _mm512_cvtepi32_epi16(x.v));
}
THICKETS_INLINE F32x16 from_float16(U32x16 h) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(h.v)); }
THICKETS_INLINE U32x16 float16_bits(F32x16 x) {
  return _mm512_cvtepu16_epi32(_mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// Flips the sign of lane i where bit i is set.
THICKETS_INLINE F32x16 flip(F32x16 x, uint32_t signs) {
  const __m512i u = _mm512_castps_si512(x.v);
  return _mm512_castsi512_ps(_mm512_mask_xor_epi32(u, static_cast<__mmask16>(signs), u,
                                                   _mm512_set1_epi32(static_cast<int>(0x80000000u))));
}

// The four butterflies within a pack (strides 1, 2, 4, 8): x, the partner lane, a sum or a difference.
THICKETS_INLINE F32x16 hadamard16(F32x16 x) {
  __m512 v = x.v, swapped = _mm512_permute_ps(v, 0xB1);
  v = _mm512_mask_sub_ps(_mm512_add_ps(v, swapped), 0xAAAA, swapped, v);
  swapped = _mm512_permute_ps(v, 0x4E);
  v = _mm512_mask_sub_ps(_mm512_add_ps(v, swapped), 0xCCCC, swapped, v);
  swapped = _mm512_shuffle_f32x4(v, v, 0xB1);
  v = _mm512_mask_sub_ps(_mm512_add_ps(v, swapped), 0xF0F0, swapped, v);
  swapped = _mm512_shuffle_f32x4(v, v, 0x4E);
  return _mm512_mask_sub_ps(_mm512_add_ps(v, swapped), 0xFF00, swapped, v);
}

THICKETS_INLINE void transpose16(F32x16 (&r)[16]) {
  __m512 t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i].v, r[i + 1].v);
    t[i + 1] = _mm512_unpackhi_ps(r[i].v, r[i + 1].v);
  }
  // u[4 i + j] holds column j of rows 4 i .. 4 i + 3 in each 128-bit lane.
  __m512 u[16];
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    const __m512d a = _mm512_castps_pd(t[i]), b = _mm512_castps_pd(t[i + 2]);
    const __m512d c = _mm512_castps_pd(t[i + 1]), d = _mm512_castps_pd(t[i + 3]);
    u[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
    u[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    u[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(c, d));
    u[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(c, d));
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512 a = _mm512_shuffle_f32x4(u[j], u[4 + j], 0x88),
                 b = _mm512_shuffle_f32x4(u[8 + j], u[12 + j], 0x88);
    const __m512 c = _mm512_shuffle_f32x4(u[j], u[4 + j], 0xDD),
                 d = _mm512_shuffle_f32x4(u[8 + j], u[12 + j], 0xDD);
    r[j] = _mm512_shuffle_f32x4(a, b, 0x88);
    r[8 + j] = _mm512_shuffle_f32x4(a, b, 0xDD);
    r[4 + j] = _mm512_shuffle_f32x4(c, d, 0x88);
    r[12 + j] = _mm512_shuffle_f32x4(c, d, 0xDD);
  }
}

}  // namespace THICKETS_ISA
}  // namespace thickets
