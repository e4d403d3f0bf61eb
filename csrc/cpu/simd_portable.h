// Packs as four vectors of the compiler's own vector extension: any processor, the same bits. Included by
// simd.h only.
//
// setup.py compiles this with -fno-tree-vectorize: GCC 12 at -O3 miscompiles loops over such lanes (it copies
// the first four into the others), and what can be a vector here already is one.
#pragma once

namespace thickets {
namespace THICKETS_ISA {

typedef uint32_t U32x4 __attribute__((vector_size(16)));
typedef float F32x4 __attribute__((vector_size(16)));

struct U32x16 {
  U32x4 v[4];
  U32x16() = default;
  THICKETS_MEMBER explicit U32x16(uint32_t x)
      : v{U32x4{x, x, x, x}, U32x4{x, x, x, x}, U32x4{x, x, x, x}, U32x4{x, x, x, x}} {}
};
struct F32x16 {
  F32x4 v[4];
  F32x16() = default;
  THICKETS_MEMBER explicit F32x16(float x)
      : v{F32x4{x, x, x, x}, F32x4{x, x, x, x}, F32x4{x, x, x, x}, F32x4{x, x, x, x}} {}
};

// A function of four vectors (q = 0 .. 3), and one of 16 lanes (i = 0 .. 15).
#define THICKETS_VECTORS(T, expression)                  \
  {                                                      \
    T out{};                                             \
    for (int q = 0; q < 4; ++q) out.v[q] = (expression); \
    return out;                                          \
  }
#define THICKETS_LANES(T, expression)                                   \
  {                                                                     \
    T out{};                                                            \
    for (int i = 0; i < LANES; ++i) out.v[i / 4][i % 4] = (expression); \
    return out;                                                         \
  }
#define LANE(x) (x).v[i / 4][i % 4]
THICKETS_INLINE U32x16 operator+(U32x16 x, U32x16 y)
    THICKETS_VECTORS(U32x16, x.v[q] + y.v[q]) THICKETS_INLINE U32x16 operator-(U32x16 x, U32x16 y)
        THICKETS_VECTORS(U32x16, x.v[q] - y.v[q]) THICKETS_INLINE U32x16 operator&(U32x16 x, U32x16 y)
            THICKETS_VECTORS(U32x16, x.v[q] & y.v[q]) THICKETS_INLINE U32x16 operator|(U32x16 x, U32x16 y)
                THICKETS_VECTORS(U32x16, x.v[q] | y.v[q]) THICKETS_INLINE U32x16 operator^(U32x16 x, U32x16 y)
                    THICKETS_VECTORS(U32x16, x.v[q] ^ y.v[q]) THICKETS_INLINE U32x16 operator<<(U32x16 x,
                                                                                                int n)
                        THICKETS_VECTORS(U32x16, x.v[q] << n) THICKETS_INLINE U32x16 operator>>(U32x16 x,
                                                                                                int n)
                            THICKETS_VECTORS(U32x16, x.v[q] >> n) THICKETS_INLINE U32x16
    shift_right_signed(U32x16 x, int n) THICKETS_LANES(U32x16, thickets::shift_right_signed(LANE(x), n))

        THICKETS_INLINE F32x16 operator+(F32x16 x, F32x16 y)
            THICKETS_VECTORS(F32x16, x.v[q] + y.v[q]) THICKETS_INLINE F32x16 operator-(F32x16 x, F32x16 y)
                THICKETS_VECTORS(F32x16, x.v[q] - y.v[q]) THICKETS_INLINE F32x16 operator*(F32x16 x, F32x16 y)
                    THICKETS_VECTORS(F32x16, x.v[q] * y.v[q]) THICKETS_INLINE F32x16
    fma(F32x16 x, F32x16 y, F32x16 z)
        THICKETS_LANES(F32x16, ::fmaf(LANE(x), LANE(y), LANE(z))) THICKETS_INLINE F32x16 sqrt(F32x16 x)
            THICKETS_LANES(F32x16, ::sqrtf(LANE(x))) THICKETS_INLINE U32x16 bits(F32x16 x)
                THICKETS_VECTORS(U32x16, (U32x4)x.v[q]) THICKETS_INLINE F32x16 as_float(U32x16 x)
                    THICKETS_VECTORS(F32x16, (F32x4)x.v[q]) THICKETS_INLINE F32x16 to_float(U32x16 x)
                        THICKETS_LANES(F32x16, thickets::to_float(LANE(x))) THICKETS_INLINE U32x16
    select_nan(F32x16 x, U32x16 if_nan, U32x16 otherwise)
        THICKETS_LANES(U32x16, LANE(x) != LANE(x) ? LANE(if_nan) : LANE(otherwise)) THICKETS_INLINE F32x16
    flip(F32x16 x, uint32_t signs)
        THICKETS_LANES(F32x16, thickets::as_float(thickets::bits(LANE(x)) ^ (((signs >> i) & 1u) << 31)))

            THICKETS_INLINE void mul_hi_lo(U32x16 x, uint32_t m, U32x16& hi, U32x16& lo) {
  hi = lo = U32x16(0u);
  for (int i = 0; i < LANES; ++i) {
    const uint64_t product = static_cast<uint64_t>(LANE(x)) * m;
    LANE(hi) = static_cast<uint32_t>(product >> 32);
    LANE(lo) = static_cast<uint32_t>(product);
  }
}

using PhiloxLanes = U32x16;
THICKETS_INLINE U32x16 in_order(PhiloxLanes x) { return x; }
constexpr int CALLS = 1;  // Philox calls side by side

struct Table8 {
  const float* t;
  explicit Table8(const float (&table)[8]) : t(table) {}
};
THICKETS_INLINE F32x16 lookup(const Table8& table, U32x16 x) THICKETS_LANES(F32x16, table.t[LANE(x) & 7])

    THICKETS_INLINE U32x16 load(const uint32_t* p) THICKETS_LANES(U32x16, p[i]) THICKETS_INLINE F32x16
    load(const float* p) THICKETS_LANES(F32x16, p[i]) THICKETS_INLINE F32x16 load(const float* p, int n)
        THICKETS_LANES(F32x16, i < n ? p[i] : 0.0f) THICKETS_INLINE U32x16 load_u16(const uint16_t* p, int n)
            THICKETS_LANES(U32x16, i < n ? p[i] : 0u) THICKETS_INLINE void store(float* p, F32x16 x) {
  memcpy(p, x.v, sizeof x.v);
}
THICKETS_INLINE void store(uint32_t* p, U32x16 x) { memcpy(p, x.v, sizeof x.v); }
THICKETS_INLINE void store(float* p, F32x16 x, int n) {
  memcpy(p, x.v, static_cast<size_t>(n) * sizeof(float));
}
THICKETS_INLINE void store_u16(uint16_t* p, U32x16 x, int n) {
  for (int i = 0; i < n; ++i) p[i] = static_cast<uint16_t>(LANE(x));
}

// IEEE half precision by integer steps; subnormals and infinities included.
THICKETS_INLINE float float16_value(uint32_t h) {
  const uint32_t sign = (h & 0x8000u) << 16, magnitude = h & 0x7fffu;
  if (magnitude >= 0x7c00u) return thickets::as_float(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  // 2^112 shifts the exponent's bias from 15 to 127 and normalises subnormals.
  return thickets::as_float(sign |
                            thickets::bits(thickets::as_float(magnitude << 13) * 5.192296858534828e33f));
}
THICKETS_INLINE uint32_t float16_round(float x) {
  const uint32_t u = thickets::bits(x), sign = (u >> 16) & 0x8000u, magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;
  if (magnitude < 0x38800000u)  // below 2^-14: a fixed grid of 2^-24, rounded by the addition
    return sign | (thickets::bits(thickets::as_float(magnitude) + 0.5f) - 0x3f000000u);
  return sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13);
}
THICKETS_INLINE F32x16 from_float16(U32x16 h)
    THICKETS_LANES(F32x16, float16_value(LANE(h))) THICKETS_INLINE U32x16 float16_bits(F32x16 x)
        THICKETS_LANES(U32x16, float16_round(LANE(x)))

    // The four butterflies within a pack (strides 1, 2, 4, 8).
    THICKETS_INLINE F32x16 hadamard16(F32x16 x) {
  for (int stride = 1; stride < LANES; stride *= 2) {
    F32x16 out;
    for (int i = 0; i < LANES; ++i) {
      const int partner = i ^ stride;
      const float other = x.v[partner / 4][partner % 4];
      LANE(out) = i & stride ? other - LANE(x) : LANE(x) + other;
    }
    x = out;
  }
  return x;
}

THICKETS_INLINE void transpose16(F32x16 (&r)[16]) {
  for (int i = 0; i < LANES; ++i)
    for (int j = 0; j < i; ++j) {
      const float swap = r[i].v[j / 4][j % 4];
      r[i].v[j / 4][j % 4] = LANE(r[j]);
      LANE(r[j]) = swap;
    }
}
#undef LANE
#undef THICKETS_LANES
#undef THICKETS_VECTORS

}  // namespace THICKETS_ISA
}  // namespace thickets
