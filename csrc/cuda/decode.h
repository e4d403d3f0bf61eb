// Words of bits to pairs of 16-bit entries, as the tensor cores take them (docs/noise.md, section 3).
#pragma once
#include "machine.h"

namespace thickets::cuda {

// The eight entries of a normal4 word: pairs (0, 1), (2, 3), (4, 5), (6, 7). A nibble picks a byte of each of
// two tables, the low and the high halves of the magnitudes, which both dtypes hold exactly; the sign bits
// lie where the high bytes have theirs.
template <Dtype dtype>
THICKETS_DEVICE void decode_normal4(uint32_t word, uint32_t (&pairs)[4]) {
  constexpr bool wide = dtype == Dtype::bfloat16;
  constexpr uint32_t low_0 = wide ? 0x09BC5C91u : 0x48E0E088u, low_1 = wide ? 0x08A27238u : 0x401090C0u;
  constexpr uint32_t high_0 = wide ? 0x3F3E3E3Du : 0x3835322Cu, high_1 = wide ? 0x403F3F3Fu : 0x403D3B39u;
  const uint32_t nibbles = word & 0x77777777u;
  THICKETS_UNROLL(2)
  for (int half = 0; half < 2; ++half) {
    const uint32_t pick = half ? upper_half(nibbles) : nibbles, signs = half ? word << 4 : word;
    const uint32_t low = permute_bytes(low_0, low_1, pick);
    const uint32_t high = and_or(signs, 0x80808080u, permute_bytes(high_0, high_1, pick));
    pairs[2 * half] = permute_bytes(low, high, 0x5140);
    pairs[2 * half + 1] = permute_bytes(low, high, 0x7362);
  }
}

// Entries i (low) and i + 16 (high) of a rademacher word, i = 0 .. 15: one shift moves both signs.
template <Dtype dtype>
THICKETS_DEVICE uint32_t decode_rademacher(uint32_t word, int i) {
  return and_or(word << (15 - i), 0x80008000u, dtype == Dtype::bfloat16 ? 0x3F803F80u : 0x3C003C00u);
}

}  // namespace thickets::cuda
