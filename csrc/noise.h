// The noise contract (docs/noise.md), once, for every native backend.
//
// Everything is a template over the lane type: uint32_t and float here (scalar host and device code), packs
// of 16 lanes in cpu/simd_*.h. A pack type offers the same free functions (mul_hi_lo, bits, as_float,
// to_float, shift_right_signed, fma, sqrt, lookup) and operators, so the vector code and the scalar code are
// one text.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

// Internal linkage: each instruction set compiles its own copy, and the linker can never swap one for
// another.
#if defined(__CUDACC__)
#define THICKETS_INLINE static __host__ __device__ __forceinline__
#else
#define THICKETS_INLINE static inline __attribute__((always_inline))
#endif
#define THICKETS_MEMBER inline __attribute__((always_inline))
#define THICKETS_LAMBDA __attribute__((always_inline))  // between a lambda's parameters and its body

// Loops over registers must unroll; an array of lanes is better left a loop.
#define THICKETS_PRAGMA(x) _Pragma(#x)
#if defined(__CUDA_ARCH__)
#define THICKETS_UNROLL(n) THICKETS_PRAGMA(unroll n)
#elif defined(__AVX2__) && !defined(__CUDACC__)
#define THICKETS_UNROLL(n) THICKETS_PRAGMA(GCC unroll n)
#else
#define THICKETS_UNROLL(n)
#endif

namespace thickets {

enum class Family : int32_t { none = 0, normal = 1, normal4 = 2, rademacher = 3, hadamard = 4, lowrank = 5 };

// Section 3: the low three bits of counter word c3.
enum Stream : uint32_t {
  stream_normal = 0,
  stream_normal4 = 1,
  stream_rademacher = 2,
  stream_lowrank_a = 3,
  stream_lowrank_b = 4,
  stream_hadamard_1 = 5,
  stream_hadamard_2 = 6,
  stream_hadamard_3 = 7,
};

// One parameter's noise: all that eps depends on besides the seed.
struct Parameter {
  Family family;
  int32_t rank;       // R of lowrank-R
  uint64_t id;        // section 2: BLAKE2b of the canonical name
  int64_t row, col;   // global position of entry (0, 0) in the matrix view
  int64_t full_cols;  // global column count
};

// ---------------------------------------------------------------- scalar lanes
THICKETS_INLINE void mul_hi_lo(uint32_t a, uint32_t m, uint32_t& hi, uint32_t& lo) {
  const uint64_t p = static_cast<uint64_t>(a) * m;
  hi = static_cast<uint32_t>(p >> 32);
  lo = static_cast<uint32_t>(p);
}
THICKETS_INLINE uint32_t bits(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return u;
}
THICKETS_INLINE float as_float(uint32_t u) {
  float x;
  memcpy(&x, &u, 4);
  return x;
}
THICKETS_INLINE float to_float(uint32_t u) { return static_cast<float>(static_cast<int32_t>(u)); }
THICKETS_INLINE uint32_t shift_right_signed(uint32_t u, int n) {
  return static_cast<uint32_t>(static_cast<int32_t>(u) >> n);
}
THICKETS_INLINE float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
THICKETS_INLINE float sqrt(float x) { return ::sqrtf(x); }
THICKETS_INLINE float lookup(const float (&table)[8], uint32_t i) { return table[i & 7]; }

// ---------------------------------------------------------------- section 2: Philox4x32-10
constexpr uint32_t philox_m0 = 0xD2511F53u, philox_m1 = 0xCD9E8D57u;
constexpr uint32_t philox_w0 = 0x9E3779B9u, philox_w1 = 0xBB67AE85u;

template <class U>
struct Words {
  U w[4];
};

// The ten round keys of a seed.
template <class U>
struct Key {
  U k0[10], k1[10];
};

template <class U>
THICKETS_INLINE Key<U> schedule(U k0, U k1) {
  Key<U> key;
  for (int r = 0; r < 10; ++r) {
    key.k0[r] = k0;
    key.k1[r] = k1;
    k0 = k0 + U(philox_w0);
    k1 = k1 + U(philox_w1);
  }
  return key;
}

// Ten rounds of `calls` counters side by side (each hides the latency of the others); counters become
// outputs.
template <int calls, class U>
THICKETS_INLINE void philox4x32_10(Words<U> (&counters)[calls], const Key<U>& key) {
  THICKETS_UNROLL(10)
  for (int r = 0; r < 10; ++r) THICKETS_UNROLL(4)
  for (int i = 0; i < calls; ++i) {
    U(&c)[4] = counters[i].w;
    U hi0, lo0, hi1, lo1;
    mul_hi_lo(c[0], philox_m0, hi0, lo0);
    mul_hi_lo(c[2], philox_m1, hi1, lo1);
    c[0] = hi1 ^ c[1] ^ key.k0[r];
    c[1] = lo1;
    c[2] = hi0 ^ c[3] ^ key.k1[r];
    c[3] = lo0;
  }
}

// The counter at (block, row) of one of the parameter's streams.
template <class U>
THICKETS_INLINE Words<U> counter_at(const Parameter& p, uint32_t stream, U block, U row) {
  const uint32_t c2 = static_cast<uint32_t>(p.id),
                 c3 = stream + 8 * static_cast<uint32_t>((p.id >> 32) & 0x1fffffffu);
  return {{block, row, U(c2), U(c3)}};
}

// ---------------------------------------------------------------- section 4: Box-Muller, exact form
template <class F, class U>
THICKETS_INLINE void box_muller(U wa, U wb, F& za, F& zb) {
  // r = sqrt(-2 ln u), u = ((wa >> 1) | 1) 2^-31
  const F x = to_float((wa >> 1) | U(1u));
  const U i = bits(x) - U(0x3f3504f3u);
  const U e = shift_right_signed(i, 23);
  const F t = as_float(bits(x) - (e << 23)) - F(1.0f);
  const F t2 = t * t, t4 = t2 * t2;
  const F top =
      fma(F(-0.17444487f), t4,
          fma(fma(F(0.28733575f), t, F(-0.29904565f)), t2, fma(F(0.33124804f), t, F(-0.39913666f))));
  const F low = fma(fma(F(0.5000415f), t, F(-0.66668373f)), t2, fma(F(0.99999976f), t, F(-2.0f)));
  const F r = sqrt(fma(to_float(e - U(31u)), F(-1.3862944f), fma(top, t4, low) * t));
  // theta = 2 pi wb 2^-32, an eighth of a turn either side of the nearest quarter
  const U v = wb + U(0x20000000u);
  const F f = to_float(wb << 2) * F(4.656612873077393e-10f);
  const F q = f * f;
  const F s = fma(fma(fma(F(-3.595451e-05f), q, F(0.002490007f)), q, F(-0.080745436f)), q, F(0.7853982f)) * f;
  const F c = fma(fma(fma(F(-0.0003188805f), q, F(0.015849914f)), q, F(-0.30842426f)), q, F(1.0f));
  const U swap = (bits(s) ^ bits(c)) & shift_right_signed(v << 1, 31);
  const U sign = v & U(0x80000000u);
  za = r * as_float((bits(c) ^ swap) ^ sign ^ ((v << 1) & U(0x80000000u)));
  zb = r * as_float((bits(s) ^ swap) ^ sign);
}

// ---------------------------------------------------------------- section 3: entries of one word
// Element i (0..7) of a normal4 word: three bits of magnitude, one spare bit of sign.
template <class F, class U, class Table>
THICKETS_INLINE F normal4_entry(U w, int i, const Table& magnitudes) {
  const int sign = i < 4 ? 8 * i + 7 : 8 * (i - 4) + 3;
  return as_float(bits(lookup(magnitudes, w >> (4 * i))) | ((w << (31 - sign)) & U(0x80000000u)));
}
#define THICKETS_NORMAL4_MAGNITUDES \
  {0.07080078125f, 0.21484375f, 0.3671875f, 0.53515625f, 0.71875f, 0.9453125f, 1.265625f, 2.125f}

// Element i (0..31) of a rademacher word: bit i, 1 = negative.
template <class F, class U>
THICKETS_INLINE F rademacher_entry(U w, int i) {
  return as_float(U(0x3f800000u) | ((w << (31 - i)) & U(0x80000000u)));
}

// Section 5: the transform's length.
THICKETS_INLINE int64_t hadamard_length(int64_t full_cols) {
  int64_t n = 128;
  while (n < full_cols) n *= 2;
  return n;
}

}  // namespace thickets
