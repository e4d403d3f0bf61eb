// Rows of matrices in device memory as the threads that transform them read and write them: in the outer
// layout of transform.h, by chunks of eight elements where alignment allows it, else one by one through
// shared memory.
#pragma once
#include <type_traits>

#include "transform.h"

namespace thickets::cuda {

// A row whose element i, if the cover has it, meets element i of the transform.
struct Line {
  char* data;  // of element 0; null: absent
  Dtype dtype;
};
struct Cover {
  int begin, end;
};

THICKETS_DEVICE int size_of(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 2; }

// Row `row` of a matrix whose column 0 is element `origin`.
THICKETS_DEVICE Line line_of(const Matrix& m, int64_t row, int64_t origin) {
  if (!m.data) return {nullptr, m.dtype};
  return {static_cast<char*>(m.data) + (row * m.ld - origin) * size_of(m.dtype), m.dtype};
}

// The elements, of n, of `count` columns from `origin` on.
THICKETS_DEVICE Cover cover_of(int64_t origin, int64_t count, int64_t n) {
  return {static_cast<int>(max(origin, int64_t(0))), static_cast<int>(min(origin + count, n))};
}

// Whether `count` columns from element `origin` on are whole, aligned chunks in all rows, or there are none.
inline bool allows_chunks(const Matrix& m, int64_t origin, int64_t count) {
  return !m.data || (reinterpret_cast<uintptr_t>(m.data) % 16 == 0 && m.ld % CHUNK == 0 &&
                     origin % CHUNK == 0 && count % CHUNK == 0);
}

template <Dtype dtype>
THICKETS_DEVICE void load_chunk(bool wanted, const char* p, float (&v)[CHUNK]) {
  const uint4 a = load16_if(wanted, p);
  const uint32_t w[4] = {a.x, a.y, a.z, a.w};
  if constexpr (dtype == Dtype::float32) {
    const uint4 b = load16_if(wanted, p + 16);
    const uint32_t x[4] = {b.x, b.y, b.z, b.w};
    THICKETS_UNROLL(4)
    for (int i = 0; i < 4; ++i) v[i] = as_float(w[i]), v[4 + i] = as_float(x[i]);
  } else {
    THICKETS_UNROLL(4)
    for (int i = 0; i < 4; ++i) v[2 * i] = unpack_low<dtype>(w[i]), v[2 * i + 1] = unpack_high<dtype>(w[i]);
  }
}

template <Dtype dtype>
THICKETS_DEVICE void store_chunk(char* p, const float* v) {
  if constexpr (dtype == Dtype::float32) {
    store(p, make_float4(v[0], v[1], v[2], v[3]));
    store(p + 16, make_float4(v[4], v[5], v[6], v[7]));
  } else {
    store(p, make_uint4(pack<dtype>(v[0], v[1]), pack<dtype>(v[2], v[3]), pack<dtype>(v[4], v[5]),
                        pack<dtype>(v[6], v[7])));
  }
}

// use(the dtype as a constant, chunk, whether the cover has it, its first element) for every chunk,
// `together` at a time: what is loaded for them takes registers.
template <int together, bool large, class Use>
THICKETS_DEVICE void for_chunks(const Slot<large>& s, Dtype dtype, Cover cover, Use&& use) {
  const auto some = [&](auto constant, int first) {
    THICKETS_UNROLL(8)
    for (int c = first; c < first + together; ++c) {
      const int i = element_of(s, c);
      use(constant, c, i >= cover.begin && i < cover.end, i);
    }
  };
  THICKETS_UNROLL(8)
  for (int first = 0; first < CHUNKS; first += together) {
    if (dtype == Dtype::bfloat16)
      some(std::integral_constant<Dtype, Dtype::bfloat16>(), first);
    else if (dtype == Dtype::float16)
      some(std::integral_constant<Dtype, Dtype::float16>(), first);
    else
      some(std::integral_constant<Dtype, Dtype::float32>(), first);
  }
}

// use(register, element of the line or 0).
template <int together, bool large, class Use>
THICKETS_DEVICE void read_chunks(const Slot<large>& s, const Line& line, Cover cover, Use&& use) {
  for_chunks<together>(s, line.dtype, cover, [&](auto constant, int c, bool covered, int i) {
    constexpr Dtype dtype = decltype(constant)::value;
    float v[CHUNK];
    load_chunk<dtype>(covered, line.data + i * size_of(dtype), v);
    THICKETS_UNROLL(8)
    for (int j = 0; j < CHUNK; ++j) use(CHUNK * c + j, v[j]);
  });
}

template <bool large>
THICKETS_DEVICE void write_chunks(const Slot<large>& s, const float (&u)[EACH], const Line& line,
                                  Cover cover) {
  for_chunks<2>(s, line.dtype, cover, [&](auto constant, int c, bool covered, int i) {
    constexpr Dtype dtype = decltype(constant)::value;
    if (covered) store_chunk<dtype>(line.data + i * size_of(dtype), u + CHUNK * c);
  });
}

// u = the line, zero outside its cover. A barrier for the block.
template <bool large>
THICKETS_DEVICE void take(const Slot<large>& s, float (&u)[EACH], const Line& line, Cover cover,
                          bool chunks) {
  if (chunks) {
    read_chunks<CHUNKS>(s, line, cover, [&](int r, float value) { u[r] = value; });
    __syncthreads();
    return;
  }
  for (int i = s.thread; i < s.span; i += s.span / EACH)
    s.memory[place_of(s, i)] =
        i >= cover.begin && i < cover.end ? load_float(line.data, line.dtype, i) : 0.0f;
  __syncthreads();
  get(u, outer_chunks(s));
}

// to = base + scale u + bias, summed in float32 and rounded once. Base and bias may be absent, base may be
// `to`.
template <bool large>
THICKETS_DEVICE void finish(const Slot<large>& s, float (&u)[EACH], float scale, const Line& base,
                            const Line& bias, const Line& to, Cover cover, bool chunks) {
  if (chunks) {
    if (base.data)
      read_chunks<2>(s, base, cover, [&](int r, float value) { u[r] = fma(scale, u[r], value); });
    else
      THICKETS_UNROLL(64)
    for (int r = 0; r < EACH; ++r) u[r] *= scale;
    if (bias.data) read_chunks<2>(s, bias, cover, [&](int r, float value) { u[r] += value; });
    write_chunks(s, u, to, cover);
    return;
  }
  put(u, outer_chunks(s));
  __syncthreads();
  for (int i = cover.begin + s.thread; i < cover.end; i += s.span / EACH) {
    float value = s.memory[place_of(s, i)];
    value = base.data ? fma(scale, value, load_float(base.data, base.dtype, i)) : scale * value;
    if (bias.data) value += load_float(bias.data, bias.dtype, i);
    store_float(to.data, to.dtype, i, value);
  }
}

}  // namespace thickets::cuda
