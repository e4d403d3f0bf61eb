// Normals by the special-function unit (docs/noise.md, section 4): half the instructions of the exact form in
// noise.h, about 1e-6 rms and at most 1e-3 from it.
#pragma once
#include "machine.h"

namespace thickets::cuda {

// Two normals of two words.
THICKETS_DEVICE void fast_normals(uint32_t wa, uint32_t wb, float& za, float& zb) {
  const float u = to_float((wa >> 1) | 1u) * 4.656612873077393e-10f;  // 2^-31
  // The unit errs by 2^-22 either way, so the square may come out below zero where u is almost 1.
  const float r = sqrt_fast(fabsf(log2_fast(u) * -1.3862944f));
  float sine, cosine;
  sincos_fast(to_float(wb) * 1.4629180792671596e-9f, sine, cosine);  // 2 pi 2^-32
  za = r * cosine;
  zb = r * sine;
}

}  // namespace thickets::cuda
