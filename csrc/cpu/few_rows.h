// Products with stored weights of members with few rows: rows across the lanes, W read where it lies.
//
// A tile of outputs would be read once for each member, and transposing it costs more than multiplying a few
// rows. Here x is transposed instead, and each entry of W is broadcast to all rows. Every output is the same
// chain of fused multiply-adds over ascending k as in linear.cpp: the same bits.
// 8 rows on one thread of a Zen 4: 512 x 512 from 104 to 71 us, 4096 x 4096 from 6.3 to 4.8 ms. Asking for
// the lines of the next stripe took 16 members' 512 x 512, which come from memory, from 150 to 85 us each;
// asking for those of the same rows further on cost a tenth.
#pragma once
#include "convert.h"
#include "team.h"

#if THICKETS_ISA_INDEX > 0
#include <immintrin.h>

namespace thickets {
namespace THICKETS_ISA {
namespace {

constexpr int FEW = 8;     // rows, one per lane of a ymm register; tiles serve 16 rows as well
constexpr int STRIPE = 8;  // outputs side by side: as many chains as hide the latency of an fma

// Whether the members' weights are written down, and each has so few rows that this is faster.
inline bool has_few_rows(const LinearArgs& a) {
  const bool stored = a.member_stride != 0 || a.groups.count == 1;
  if (a.noise.family != Family::none || !a.weight.data || a.weight.dtype != Dtype::float32 || !stored)
    return false;
  for (int64_t n = 0; n < a.groups.count; ++n)
    if (a.groups.offsets[n + 1] - a.groups.offsets[n] > FEW) return false;
  return true;
}

// t[k] = column k of x [rows, in], zeros past the rows.
inline void transpose_rows(const float* x, int64_t ldx, int rows, int64_t in, float* t) {
  for (int64_t k = 0; k < in; k += LANES) {
    const int cols = clamp_lanes(in - k);
    F32x16 block[16];
    for (int r = 0; r < 16; ++r) block[r] = r < rows ? load(x + r * ldx + k, cols) : F32x16(0.0f);
    transpose16(block);
    for (int j = 0; j < cols; ++j) store(t + (k + j) * FEW, block[j], FEW);
  }
}

// y[r, o] = sum_k t[k, r] w[o, k] + bias[o] for up to STRIPE outputs, those of W from `element` on.
inline void multiply_stripe(const float* t, const Matrix& w, int64_t element, int64_t in, int rows,
                            int outputs, const float* bias, float* y, int64_t ldy) {
  const float* row[STRIPE];
  __m256 sum[STRIPE];
  THICKETS_UNROLL(8)
  for (int o = 0; o < STRIPE; ++o) {
    // What is past the matrix is computed in vain.
    row[o] = static_cast<const float*>(w.data) + element + (o < outputs ? o : outputs - 1) * w.ld;
    sum[o] = _mm256_setzero_ps();
  }
  for (int64_t begin = 0; begin < in; begin += LANES) {
    THICKETS_UNROLL(8)
    for (int o = 0; o < STRIPE; ++o) prefetch(w, element + (STRIPE + o) * w.ld + begin);  // the next stripe
    const int64_t end = begin + LANES < in ? begin + LANES : in;
    THICKETS_UNROLL(4)
    for (int64_t k = begin; k < end; ++k) {
      const __m256 column = _mm256_load_ps(t + k * FEW);
      THICKETS_UNROLL(8)
      for (int o = 0; o < STRIPE; ++o)
        sum[o] = _mm256_fmadd_ps(column, _mm256_broadcast_ss(row[o] + k), sum[o]);
    }
  }
  // By constant indices only: read in the loop below, the sums would live in memory.
  alignas(32) float lanes[STRIPE][FEW];
  THICKETS_UNROLL(8)
  for (int o = 0; o < STRIPE; ++o) _mm256_store_ps(lanes[o], sum[o]);
  for (int o = 0; o < outputs; ++o)
    for (int r = 0; r < rows; ++r) y[r * ldy + o] = bias ? lanes[o][r] + bias[o] : lanes[o][r];
}

inline void linear_of_few_rows(const LinearArgs& a) {
  const int64_t members = a.groups.count;
  const Team team(1.0 * (members + a.groups.rows() / 16) * a.out * a.in, a.in * FEW);
  const int64_t parts = members >= team.size ? 1 : (team.size + members - 1) / members;
#pragma omp parallel num_threads(team.size)
  {
    float* columns = team.scratch();
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < members * parts; ++i) {
      const int64_t n = i / parts, first = a.groups.offsets[n];
      const int rows = static_cast<int>(a.groups.offsets[n + 1] - first);
      if (rows == 0) continue;
      transpose_rows(a.x + (a.groups.shared ? 0 : first) * a.ldx, a.ldx, rows, a.in, columns);
      const float* bias = a.bias ? a.bias + n * a.bias_stride : nullptr;
      const int64_t begin = a.out * (i % parts) / parts, end = a.out * (i % parts + 1) / parts;
      for (int64_t o = begin; o < end; o += STRIPE)
        multiply_stripe(columns, a.weight, n * a.member_stride + o * a.weight.ld, a.in, rows,
                        static_cast<int>(end - o < STRIPE ? end - o : STRIPE), bias ? bias + o : nullptr,
                        a.y + first * a.ldy + o, a.ldy);
    }
  }
}

}  // namespace
}  // namespace THICKETS_ISA
}  // namespace thickets
#endif
