// Lines of a matrix as quads of lanes read and write them, 128 columns at a time: lane t of the four has the
// chunks c = 0 .. 3 of eight columns from 32 c + 8 t on, so that what a quad reads or writes at once are
// whole sectors of memory.
#pragma once
#include "machine.h"

namespace thickets::cuda {

constexpr int LINE_BLOCK = 128, LANE_CHUNKS = 4, CHUNK_COLUMNS = 8;

// Columns first .. end of a block are in the matrix.
struct Extent {
  int first, end;
};

// Of the block that begins `start` columns after the first of a matrix, or before it where that is negative.
THICKETS_DEVICE Extent extent_of(int64_t start, int64_t cols) {
  const int64_t room = cols - start;
  return {start < 0 ? static_cast<int>(-start) : 0, room < LINE_BLOCK ? static_cast<int>(room) : LINE_BLOCK};
}

// Successive chunks of a lane as they lie in memory: two runs of 16 bytes each in float32, else one.
template <int chunks>
struct Stored {
  uint4 runs[chunks][2];
};
template <int chunks>
struct Floats {
  float of[chunks][CHUNK_COLUMNS];
};

// ---------------------------------------------------------------- memory
// Elements T of a run all move down by one, and one comes in at the top.
template <class T>
THICKETS_DEVICE void push(uint4& run, uint32_t value) {
  const auto next = [](uint32_t low, uint32_t high) {
    return sizeof(T) == 4 ? high : low >> 16 | high << 16;
  };
  run = make_uint4(next(run.x, run.y), next(run.y, run.z), next(run.z, run.w), next(run.w, value));
}

// The elements of a run that the matrix has, one by one.
template <class T>
THICKETS_DEVICE void load_each(uint4& run, const T* p, int column, Extent in) {
  run = {};
  THICKETS_UNROLL(1)
  for (int i = 0; i < static_cast<int>(16 / sizeof(T)); ++i)
    push<T>(run, column + i >= in.first && column + i < in.end ? p[i] : 0);
}
template <class T>
THICKETS_DEVICE void store_each(uint4 run, T* p, int column, Extent in) {
  THICKETS_UNROLL(1)
  for (int i = 0; i < static_cast<int>(16 / sizeof(T)); ++i) {
    if (column + i >= in.first && column + i < in.end) p[i] = static_cast<T>(run.x);
    push<T>(run, 0);
  }
}

// Whether columns `column` .. column + count, the first of them at p, can be accessed in runs.
THICKETS_DEVICE bool in_runs(const void* p, int column, int count, Extent in) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && column >= in.first && column + count <= in.end;
}

// at_once(run, address) for the runs of the chunks that begin at p and `column`, or each(run, address,
// column, in) where that is not possible. It nearly always is for all of them, which is asked once.
template <class T, class Part, class AtOnce, class Each>
THICKETS_DEVICE void access(Part& part, T* p, int column, Extent in, const AtOnce& at_once,
                            const Each& each) {
  constexpr int chunks = sizeof(part.runs) / sizeof(part.runs[0]), count = 16 / sizeof(T);
  const auto all = [&](const auto& visit) {
    THICKETS_UNROLL(4)
    for (int c = 0; c < chunks; ++c) THICKETS_UNROLL(2)
    for (int i = 0; i < CHUNK_COLUMNS / count; ++i) visit(part.runs[c][i], 32 * c + count * i);
  };
  if (in_runs(p, column, 32 * (chunks - 1) + CHUNK_COLUMNS, in))
    all([&](auto& run, int k) { at_once(run, p + k); });
  else
    all([&](auto& run, int k) {
      if (in_runs(p + k, column + k, count, in))
        at_once(run, p + k);
      else
        each(run, p + k, column + k, in);
    });
}
template <class T, int chunks>
THICKETS_DEVICE void load_as(Stored<chunks>& part, const T* p, int column, Extent in) {
  access(part, p, column, in, [](uint4& run, const T* p) { run = load16_if(true, p); }, load_each<T>);
}
template <class T, int chunks>
THICKETS_DEVICE void store_as(const Stored<chunks>& part, T* p, int column, Extent in) {
  access(part, p, column, in, [](uint4 run, T* p) { store16_if(true, p, run); }, store_each<T>);
}

// The chunks from `column` of a block on; block: the element where the block's column 0 lies, or would.
template <int chunks>
THICKETS_DEVICE void load_chunks(Stored<chunks>& part, const Matrix& m, int64_t block, int column,
                                 Extent in) {
  if (m.dtype == Dtype::float32)
    load_as(part, static_cast<const uint32_t*>(m.data) + block + column, column, in);
  else
    load_as(part, static_cast<const uint16_t*>(m.data) + block + column, column, in);
}
template <int chunks>
THICKETS_DEVICE void store_chunks(const Stored<chunks>& part, const Matrix& m, int64_t block, int column,
                                  Extent in) {
  if (m.dtype == Dtype::float32)
    store_as(part, static_cast<uint32_t*>(m.data) + block + column, column, in);
  else
    store_as(part, static_cast<uint16_t*>(m.data) + block + column, column, in);
}

// ---------------------------------------------------------------- dtypes
template <Dtype dtype, int chunks>
THICKETS_DEVICE void widen_from(const Stored<chunks>& part, Floats<chunks>& v) {
  THICKETS_UNROLL(4)
  for (int c = 0; c < chunks; ++c) {
    const uint4 a = part.runs[c][0], b = part.runs[c][1];
    const uint32_t words[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
    THICKETS_UNROLL(8)
    for (int i = 0; i < CHUNK_COLUMNS; ++i)
      v.of[c][i] = dtype == Dtype::float32 ? as_float(words[i])
                   : i % 2                 ? unpack_high<dtype>(words[i / 2])
                                           : unpack_low<dtype>(words[i / 2]);
  }
}
template <Dtype dtype, int chunks>
THICKETS_DEVICE void round_to(const Floats<chunks>& v, Stored<chunks>& part) {
  THICKETS_UNROLL(4)
  for (int c = 0; c < chunks; ++c) {
    const float (&f)[CHUNK_COLUMNS] = v.of[c];
    if constexpr (dtype == Dtype::float32) {
      part.runs[c][0] = make_uint4(bits(f[0]), bits(f[1]), bits(f[2]), bits(f[3]));
      part.runs[c][1] = make_uint4(bits(f[4]), bits(f[5]), bits(f[6]), bits(f[7]));
    } else {
      part.runs[c][0] = make_uint4(pack<dtype>(f[0], f[1]), pack<dtype>(f[2], f[3]), pack<dtype>(f[4], f[5]),
                                   pack<dtype>(f[6], f[7]));
    }
  }
}
template <int chunks>
THICKETS_DEVICE void widen(const Stored<chunks>& part, Dtype dtype, Floats<chunks>& v) {
  if (dtype == Dtype::float32)
    widen_from<Dtype::float32>(part, v);
  else if (dtype == Dtype::bfloat16)
    widen_from<Dtype::bfloat16>(part, v);
  else
    widen_from<Dtype::float16>(part, v);
}
template <int chunks>
THICKETS_DEVICE void round(const Floats<chunks>& v, Dtype dtype, Stored<chunks>& part) {
  if (dtype == Dtype::float32)
    round_to<Dtype::float32>(v, part);
  else if (dtype == Dtype::bfloat16)
    round_to<Dtype::bfloat16>(v, part);
  else
    round_to<Dtype::float16>(v, part);
}

}  // namespace thickets::cuda
