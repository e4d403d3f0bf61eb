// One plain argument struct per op, shared by cpu/ (and, when it comes, cuda/). Pointers, sizes, element
// strides.
#pragma once
#include "noise.h"

namespace thickets {

enum class Dtype : int32_t { float32 = 0, bfloat16 = 1, float16 = 2 };

// A row-major matrix in one of the storage dtypes.
struct Matrix {
  void* data;
  Dtype dtype;
  int64_t ld;
};

// N members as rows of activations see them: rows offsets[n] .. offsets[n + 1] belong to member n.
struct Groups {
  const int64_t* seeds;    // [N], bit patterns
  const float* scales;     // [N], s_n
  const int64_t* offsets;  // [N + 1]
  int64_t count;           // N
  bool shared;             // every member reads the same input rows, 0 .. M

  int64_t rows() const { return offsets[count]; }  // of all members
};

// y = x W'^T + bias with W'_n = fma(s_n, eps_n, W), or y += s_n x eps_n^T where `weight.data` is null.
struct LinearArgs {
  Parameter noise;  // family none: a plain product
  Groups groups;
  const float* x;  // [T, in] or [M, in]
  int64_t ldx;
  Matrix weight;          // [out, in]
  int64_t member_stride;  // elements between two members' weights; 0: one weight for all
  const float* bias;      // [N, out], [out] or null
  int64_t bias_stride;    // out or 0
  float* y;               // [T, out]
  int64_t ldy;
  int64_t out, in;
  bool storage;  // round W' to the weight's dtype
};

// Structured noise products: y += s_n x eps_n^T.
struct NoiseProductArgs {
  Parameter noise;  // family hadamard or lowrank
  Groups groups;
  const float* x;
  int64_t ldx;
  float* y;
  int64_t ldy;
  int64_t out, in;
};

// L perturbed rows, each of its own seed: out[l] = round(fma(s_l, eps(seed_l, row_l), W[source_l])), or eps
// itself where `weight.data` is null. Serves embeddings, vectors, perturb_ and the noise alone.
struct RowsArgs {
  Parameter noise;
  const int64_t* seeds;  // [L]
  const float* scales;   // [L]; unused without a weight
  const int64_t* rows;   // [L], within the parameter's slice
  int64_t count, cols;
  Matrix weight;  // row rows[l] of the slice
  Matrix out;     // [L, cols]
};

// W = round(W + d), d = sum_i fma(c_i, eps_i, .) from 0 in the order of i, in float32.
struct AccumulateArgs {
  Parameter noise;
  const int64_t* seeds;       // [N]
  const float* coefficients;  // [N]
  int64_t count, rows, cols;
  Matrix weight;
};

#define THICKETS_DECLARE_OPS(isa)                 \
  namespace isa {                                 \
  void linear(const LinearArgs&);                 \
  void hadamard_product(const NoiseProductArgs&); \
  void lowrank_product(const NoiseProductArgs&);  \
  void rows(const RowsArgs&);                     \
  void accumulate(const AccumulateArgs&);         \
  }
THICKETS_DECLARE_OPS(portable)
THICKETS_DECLARE_OPS(avx2)
THICKETS_DECLARE_OPS(avx512)
#undef THICKETS_DECLARE_OPS

}  // namespace thickets
