// Section 5: diagonals of signs and the fast Walsh-Hadamard transform.
#pragma once
#include "generate.h"

namespace thickets {
namespace THICKETS_ISA {

// Signs of one diagonal as bits, [n / 32] words: bit (i & 31) of word i >> 5, 1 = negative.
THICKETS_INLINE void diagonal(const Parameter& p, const LaneKey& key, uint32_t stream, int64_t block,
                              int64_t n, uint32_t* signs) {
  alignas(64) uint32_t lanes[4][LANES];
  for (int64_t c = 0; c < n / 128; c += LANES) {
    const U32x16 calls_of_lanes[1] = {iota(static_cast<uint32_t>(c))};
    Words<U32x16> words[1];
    words_at(p, stream, calls_of_lanes, U32x16(static_cast<uint32_t>(block)), key, words);
    for (int j = 0; j < 4; ++j) store(lanes[j], words[0].w[j]);
    const int64_t calls = n / 128 - c < LANES ? n / 128 - c : LANES;
    for (int64_t l = 0; l < calls; ++l)
      for (int j = 0; j < 4; ++j) signs[4 * (c + l) + j] = lanes[j][l];
  }
}

THICKETS_INLINE uint32_t signs_of_pack(const uint32_t* signs, int64_t pack) {
  return signs[pack / 2] >> (16 * (pack & 1));
}

// Butterflies of strides 1, 2, .. G / 2 packs, in registers.
template <int G>
THICKETS_INLINE void butterflies(F32x16 (&v)[G]) {
  THICKETS_UNROLL(4)
  for (int h = 1; h < G; h *= 2) THICKETS_UNROLL(16)
  for (int i = 0; i < G; ++i)
    if (!(i & h)) {
      const F32x16 a = v[i], b = v[i + h];
      v[i] = a + b;
      v[i + h] = a - b;
    }
}

// One pass over memory: butterflies of strides `stride` .. `stride` G / 2 packs.
template <int G, class Load>
THICKETS_INLINE void pass(float* v, int64_t packs, int64_t stride, Load&& load_pack) {
  for (int64_t base = 0; base < packs; base += G * stride)
    for (int64_t j = base; j < base + stride; ++j) {
      F32x16 group[G];
      THICKETS_UNROLL(16)
      for (int i = 0; i < G; ++i) group[i] = load_pack(j + i * stride);
      butterflies<G>(group);
      THICKETS_UNROLL(16)
      for (int i = 0; i < G; ++i) store(v + (j + i * stride) * LANES, group[i]);
    }
}

constexpr int RADIX = THICKETS_ISA_INDEX == 2 ? 8 : 4;  // packs that stay in registers

// out = H (D in), unnormalised, n a power of two >= 128. In place where out == in.
inline void hadamard_transform(float* out, const float* in, int64_t n, const uint32_t* signs) {
  const int64_t packs = n / LANES;
  pass<RADIX>(out, packs, 1,
              [&](int64_t i) { return hadamard16(flip(load(in + i * LANES), signs_of_pack(signs, i))); });
  const auto again = [&](int64_t i) { return load(out + i * LANES); };
  int64_t stride = RADIX;
  for (; packs / stride >= RADIX; stride *= RADIX) pass<RADIX>(out, packs, stride, again);
  for (; stride < packs; stride *= 2) pass<2>(out, packs, stride, again);
}

}  // namespace THICKETS_ISA
}  // namespace thickets
