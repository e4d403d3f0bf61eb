// Four neighbours of a row at once, of any storage dtype: one access of 16 or 8 bytes where memory allows,
// else one element at a time.
#pragma once
#include "machine.h"

namespace thickets::cuda {

// Whether all fours of a matrix lie at multiples of their size; step: elements between members' matrices.
inline bool in_fours(const Matrix& m, int64_t step = 0) {
  const uintptr_t size = m.dtype == Dtype::float32 ? 16 : 8;
  return reinterpret_cast<uintptr_t>(m.data) % size == 0 && m.ld % 4 == 0 && step % 4 == 0;
}

THICKETS_DEVICE bool inside(int64_t column, int64_t columns) { return column >= 0 && column < columns; }

// Elements column .. column + 3 of the line that begins at element `line`, as they are stored; zeros where
// they are not within 0 .. columns. fours: the matrix is in_fours.
THICKETS_DEVICE uint4 load_four(const Matrix& m, bool fours, int64_t line, int64_t column, int64_t columns) {
  const float* wide = static_cast<const float*>(m.data) + line + column;
  const uint16_t* narrow = static_cast<const uint16_t*>(m.data) + line + column;
  if (fours && column >= 0 && column + 4 <= columns) {
    if (m.dtype == Dtype::float32) return load<uint4>(wide);
    const uint2 pairs = load<uint2>(narrow);
    return make_uint4(pairs.x, pairs.y, 0, 0);
  }
  uint32_t v[4];
  THICKETS_UNROLL(4)
  for (int i = 0; i < 4; ++i)
    v[i] = !inside(column + i, columns) ? 0
           : m.dtype == Dtype::float32  ? load<uint32_t>(wide + i)
                                        : load<uint16_t>(narrow + i);
  if (m.dtype == Dtype::float32) return make_uint4(v[0], v[1], v[2], v[3]);
  return make_uint4(v[0] | v[1] << 16, v[2] | v[3] << 16, 0, 0);
}

struct alignas(16) Four {
  float v[4];
};

template <Dtype dtype>
THICKETS_DEVICE Four unpacked(uint4 four) {
  return {{unpack_low<dtype>(four.x), unpack_high<dtype>(four.x), unpack_low<dtype>(four.y),
           unpack_high<dtype>(four.y)}};
}

// What load_four gave, as float32.
THICKETS_DEVICE Four floats_of(uint4 four, Dtype dtype) {
  if (dtype == Dtype::float32)
    return {{as_float(four.x), as_float(four.y), as_float(four.z), as_float(four.w)}};
  return dtype == Dtype::bfloat16 ? unpacked<Dtype::bfloat16>(four) : unpacked<Dtype::float16>(four);
}

template <Dtype dtype>
THICKETS_DEVICE uint2 packed(const Four& four) {
  return make_uint2(pack<dtype>(four.v[0], four.v[1]), pack<dtype>(four.v[2], four.v[3]));
}

// The reverse: elements that are not within 0 .. columns stay as they are.
THICKETS_DEVICE void store_four(const Matrix& m, bool fours, int64_t line, int64_t column, int64_t columns,
                                const Four& four) {
  if (fours && column >= 0 && column + 4 <= columns) {
    if (m.dtype == Dtype::float32)
      store(static_cast<float*>(m.data) + line + column, four);
    else
      store(static_cast<uint16_t*>(m.data) + line + column,
            m.dtype == Dtype::bfloat16 ? packed<Dtype::bfloat16>(four) : packed<Dtype::float16>(four));
    return;
  }
  THICKETS_UNROLL(4)
  for (int i = 0; i < 4; ++i)
    if (inside(column + i, columns)) store_float(m.data, m.dtype, line + column + i, four.v[i]);
}

}  // namespace thickets::cuda
