// One plain argument struct per op of the CUDA kernels. Sigmas, seeds and offsets stay in device memory: a
// captured graph can be replayed with others.
#pragma once
#include "../ops.h"

namespace thickets::cuda {

// Where a launch goes: a device and one of its streams.
struct Place {
  int device;
  void* stream;
};

// N members and their groups of rows: `rows` rows each, or rows offsets[n] .. offsets[n + 1] of member n.
struct Members {
  const int64_t* seeds;    // [N], bit patterns
  const float* sigmas;     // [N]
  float scale;             // of the parameter: s_n = sigmas[n] * scale
  const int64_t* offsets;  // [N + 1], read as if clamped to 0 .. total; null: equal groups
  int64_t count;           // N
  int64_t rows;            // of each member, where groups are equal
  int64_t total;           // rows of all members
};

// How a product ends: y = base + product + bias, summed in float32 and rounded once.
struct Result {
  Matrix y;     // [T, out]
  Matrix base;  // [T, out], or [M, out] shared by all members, or y itself, or absent
  bool base_shared;
  Matrix bias;  // ld elements from one member's [out] to the next one's, 0: one for all; or absent
};

// y = x W'^T + bias with W'_n = fma(s_n, eps_n, W), or without a weight y = base + s_n x eps_n^T + bias.
struct LinearArgs {
  Parameter noise;  // a dense family, or none: a plain product
  Members members;
  Matrix x;  // [T, in], or [M, in] shared by all members
  bool x_shared;
  Matrix weight;          // [out, in], or absent: the noise alone
  int64_t weight_member;  // elements between two members' weights; 0: one weight for all
  Result to;
  int64_t out, in;
  bool storage;  // round W' to the weight's dtype
  Place place;
};

// Structured noise products: y = base + s_n x eps_n^T + bias.
struct ProductArgs {
  Parameter noise;  // family hadamard or lowrank
  Members members;
  Matrix x;
  bool x_shared;
  Result to;
  float* scratch;  // lowrank_scratch() floats, for low rank alone
  int64_t out, in;
  Place place;
};

// Lines of W'_n = fma(s_n, eps_n, W), rounded to the dtype of `out`, or of eps itself without a weight.
struct RowsArgs {
  Parameter noise;
  Members members;
  const int64_t* ids;  // out is [total, cols] and row ids[l] its line l, grouped as activations are; or null:
  bool ids_shared;     // ids are [M], the same for all members
  Matrix weight;       // [rows, cols] or absent
  Matrix out;          // [N, rows, cols], all rows of every member
  int64_t out_member;  // elements between two members in `out`
  int64_t rows, cols;
  Place place;
};

// W = round(W + d), d = fma(c_i, eps_i, d) from 0 over ascending i, with c_i = sigmas[i] * scale.
struct AccumulateArgs {
  Parameter noise;
  Members members;
  Matrix weight;
  int64_t rows, cols;
  Place place;
};

void linear(const LinearArgs&);  // x and W of one 16-bit dtype: tensor cores where memory allows 16-byte
                                 // accesses, else linear_float32
void linear_float32(const LinearArgs&);  // any dtypes: float32 products
void hadamard_product(const ProductArgs&);
void lowrank_product(const ProductArgs&);
void rows(const RowsArgs&);
void accumulate(const AccumulateArgs&);

const char* why_not();                  // why no kernel can run on this machine, in words; null: they can
int64_t longest_transform(int device);  // the largest hadamard order that a block's memory holds
int64_t lowrank_scratch(const ProductArgs&);  // floats

// The families' parts of `rows` and `accumulate`, each in the file of its name.
void dense_rows(const RowsArgs&);
void hadamard_rows(const RowsArgs&);
void lowrank_rows(const RowsArgs&);
void dense_accumulate(const AccumulateArgs&);
void hadamard_accumulate(const AccumulateArgs&);
void lowrank_accumulate(const AccumulateArgs&);

}  // namespace thickets::cuda
