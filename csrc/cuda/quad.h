// What the four lanes of a quad do together.
#pragma once
#include "machine.h"

namespace thickets::cuda {

// Lanes 0 .. 3 of a quad hold the rows of a 4 x 4 matrix; afterwards its columns.
THICKETS_DEVICE void transpose_quad(uint32_t (&w)[4], int t) {
  THICKETS_UNROLL(2)
  for (int bit = 1; bit <= 2; bit *= 2) THICKETS_UNROLL(2)
  for (int i = 0; i < 2; ++i) {
    const int low = bit == 1 ? 2 * i : i, high = low + bit;
    const uint32_t got = shuffle_xor(t & bit ? w[low] : w[high], bit);
    w[low] = t & bit ? got : w[low];
    w[high] = t & bit ? w[high] : got;
  }
}

}  // namespace thickets::cuda
