// What both modules of kernels take from Python: tuples of integers, checked and made into plain structs.
#pragma once
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <tuple>

#include "ops.h"

namespace thickets::bindings {

namespace py = pybind11;

// (family, rank, parameter id, row, col, full_cols)
using Noise = std::tuple<int, int, uint64_t, int64_t, int64_t, int64_t>;
// (pointer, dtype, leading dimension)
using Strided = std::tuple<uintptr_t, int, int64_t>;

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// data_ptr() of a fake tensor is 0 and does not raise: refuse it here.
template <class T>
T* required(uintptr_t address, int64_t elements, const char* name) {
  if (address == 0 && elements > 0)
    throw std::invalid_argument(std::string(name) + " has no memory (a fake or meta tensor?)");
  return pointer<T>(address);
}

// The noise of a slice of `cols` columns, of a family from `first` to `last`.
inline Parameter parameter(const Noise& n, int64_t cols, Family first, Family last) {
  const auto [number, rank, id, row, col, full_cols] = n;
  const Family family = static_cast<Family>(number);
  if (family < first || family > last)
    throw std::invalid_argument("noise must be a family that this kernel takes, got number " +
                                std::to_string(number));
  if (family == Family::lowrank && rank < 1)
    throw std::invalid_argument("noise must have a rank >= 1, got " + std::to_string(rank));
  // Scratch memory depends on these: 2^39 columns are the most that any family has.
  if (family != Family::none &&
      (row < 0 || col < 0 || cols < 0 || full_cols - col < cols || full_cols > int64_t{1} << 39))
    throw std::invalid_argument("noise must lie within full_cols = " + std::to_string(full_cols) + ", got " +
                                std::to_string(cols) + " columns from (" + std::to_string(row) + ", " +
                                std::to_string(col) + ")");
  return {family, rank, id, row, col, full_cols};
}

inline Dtype dtype_of(int number, const char* name) {
  if (number < 0 || number > static_cast<int>(Dtype::float16))
    throw std::invalid_argument(std::string(name) + " must have a known dtype, got number " +
                                std::to_string(number));
  return static_cast<Dtype>(number);
}

// No memory is fine where there is no matrix: (0, 0, 0).
inline Matrix matrix(const Strided& m, const char* name) {
  const auto [address, dtype, ld] = m;
  return {required<void>(address, ld, name), dtype_of(dtype, name), ld};
}

}  // namespace thickets::bindings
