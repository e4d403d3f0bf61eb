// The fast Walsh-Hadamard transform of rows in registers, and diagonals of signs (docs/noise.md, section 5).
//
// A row of n elements has the room of `span` = max(n, 512), and span / 64 threads hold it, 64 elements each.
// A layout says which six bits of an element's index pick the register; the other bits pick the thread:
//   outer:  bits 0 .. 2 and the top three: eight chunks of eight consecutive elements, and neighbouring
//           threads have neighbouring chunks, as memory likes it
//   inner:  bits 3 .. 8
//   middle: bits 0 .. 2 and those from 9 on that are no top ones, on the way between the two if n > 4096
// A level of the transform adds and subtracts elements whose indices differ in one bit: within a thread. In
// between, a row changes its layout through shared memory. There a thread overwrites what it alone read last,
// so that one barrier a change is enough.
#pragma once
#include "machine.h"

namespace thickets::cuda {

constexpr int EACH = 64, CHUNK = 8, CHUNKS = 8;       // elements of a thread, of a chunk; chunks of a thread
constexpr int LEAST_SPAN = 512, BLOCK_COLUMNS = 128;  // columns whose signs one Philox call gives

// One row's place in a block of threads. `large`: n >= 4096, where more is known when compiling.
template <bool large>
struct Slot {
  int log, span;  // log2 n; the elements that the row has room for
  int thread;     // of its span / 64
  float* memory;  // padded(span) floats of shared memory
};

// What lies at index i of shared memory is moved to padded(i), so that all banks are busy. A quarter of a
// warp writes chunks side by side, 16 bytes of each at a time: hence four floats after each 32. A warp in the
// inner layout reads eight consecutive elements of each of four groups, 512 apart: hence eight more. Indices
// without a common bit may be padded one by one, and added.
THICKETS_INLINE constexpr int padded(int i) { return i + i / 32 * 4 + i / 512 * 8; }

// Large rows lie there with their bits in another order, 9 to 11 being the top ones: the strides of the outer
// layout are then the same for all n.
template <bool large>
THICKETS_DEVICE int place_of(const Slot<large>& s, int i) {
  if (!large) return padded(i);
  const int top = i >> (s.log - 3), others = i % (s.span / CHUNKS) / 512;
  return padded(i % 512 | top * 512 | others * 4096);
}

// ---------------------------------------------------------------- levels
// Sums and differences of all registers whose numbers differ in bit `bit`: the sum as 2 a - (a - b), so that
// nothing but these registers is needed, and a level may be skipped without moving any.
template <int bit>
THICKETS_DEVICE void level(float (&u)[EACH]) {
  THICKETS_UNROLL(64)
  for (int i = 0; i < EACH; ++i)
    if (!(i >> bit & 1)) {
      float &a = u[i], &b = u[i + (1 << bit)];
      b = a - b;
      a = fma(2.0f, a, -b);
    }
}

// The first `count` of the levels of bits first .. end - 1.
template <int first, int end>
THICKETS_DEVICE void levels(float (&u)[EACH], int count) {
  if constexpr (first < end) {
    if (count > 0) level<first>(u);
    levels<first + 1, end>(u, count - 1);
  }
}

// Each layout does the bits that no other one has done: the outer one three and the top ones of n (three,
// unless n < 512), the middle one those from 9 on, the inner one those from 3 on.
template <bool large>
THICKETS_DEVICE void outer_levels(const Slot<large>& s, float (&u)[EACH]) {
  levels<0, 3>(u, 3);
  levels<3, 6>(u, large ? 3 : min(s.log - 6, 3));
}
template <bool large>
THICKETS_DEVICE void middle_levels(const Slot<large>& s, float (&u)[EACH]) {
  levels<3, 6>(u, s.log - 12);
}
template <bool large>
THICKETS_DEVICE void inner_levels(const Slot<large>& s, float (&u)[EACH]) {
  levels<0, 6>(u, large ? 6 : max(s.log - 6, 3));
}

// ---------------------------------------------------------------- layouts in shared memory
// A thread's chunks: the place of the first one, and what each bit of a chunk's number adds to it.
struct Chunks {
  float* first;
  int bits[3];
};

THICKETS_DEVICE float* chunk(const Chunks& at, int c) {
  return at.first + (c & 1 ? at.bits[0] : 0) + (c & 2 ? at.bits[1] : 0) + (c & 4 ? at.bits[2] : 0);
}
template <bool large>
THICKETS_DEVICE Chunks outer_chunks(const Slot<large>& s) {
  const int first = large ? s.thread / 64 * 4096 + s.thread % 64 * CHUNK : s.thread * CHUNK;
  const int stride = large ? 512 : s.span / CHUNKS;
  return {s.memory + padded(first), {padded(stride), padded(2 * stride), padded(4 * stride)}};
}
// The bits that the middle layout is for lie from 4096 on; where there are fewer, top ones take their places.
template <bool large>
THICKETS_DEVICE Chunks middle_chunks(const Slot<large>& s) {
  return {s.memory + padded(s.thread * CHUNK),
          {padded(4096), padded(s.log > 13 ? 8192 : 1024), padded(s.log > 14 ? 16384 : 2048)}};
}

THICKETS_DEVICE void put(const float (&u)[EACH], const Chunks& at) {
  THICKETS_UNROLL(8)
  for (int c = 0; c < CHUNKS; ++c) THICKETS_UNROLL(2)
  for (int i = CHUNK * c; i < CHUNK * (c + 1); i += 4)
    store(chunk(at, c) + i % CHUNK, make_float4(u[i], u[i + 1], u[i + 2], u[i + 3]));
}
THICKETS_DEVICE void get(float (&u)[EACH], const Chunks& at) {
  THICKETS_UNROLL(8)
  for (int c = 0; c < CHUNKS; ++c) THICKETS_UNROLL(2)
  for (int i = CHUNK * c; i < CHUNK * (c + 1); i += 4) {
    const float4 four = load<float4>(chunk(at, c) + i % CHUNK);
    u[i] = four.x, u[i + 1] = four.y, u[i + 2] = four.z, u[i + 3] = four.w;
  }
}

// The first of a thread's elements in the inner layout; they are 8 apart.
template <bool large>
THICKETS_DEVICE float* inner_elements(const Slot<large>& s) {
  return s.memory + padded(s.thread / 8 * 512) + s.thread % 8;
}
template <bool large>
THICKETS_DEVICE void put_inner(const Slot<large>& s, const float (&u)[EACH]) {
  float* to = inner_elements(s);
  THICKETS_UNROLL(64)
  for (int r = 0; r < EACH; ++r) to[padded(8 * r)] = u[r];
}
template <bool large>
THICKETS_DEVICE void get_inner(const Slot<large>& s, float (&u)[EACH]) {
  const float* from = inner_elements(s);
  THICKETS_UNROLL(64)
  for (int r = 0; r < EACH; ++r) u[r] = from[padded(8 * r)];
}

// ---------------------------------------------------------------- transforms
template <bool large>
THICKETS_DEVICE void visit_middle(const Slot<large>& s, float (&u)[EACH]) {
  if (!large || s.log == 12) return;
  get(u, middle_chunks(s));
  middle_levels(s, u);
  put(u, middle_chunks(s));
  __syncthreads();
}

// G u: from the outer to the inner layout, and the other way round.
template <bool large>
THICKETS_DEVICE void transform_inwards(const Slot<large>& s, float (&u)[EACH]) {
  outer_levels(s, u);
  put(u, outer_chunks(s));
  __syncthreads();
  visit_middle(s, u);
  get_inner(s, u);
  inner_levels(s, u);
}
template <bool large>
THICKETS_DEVICE void transform_outwards(const Slot<large>& s, float (&u)[EACH]) {
  inner_levels(s, u);
  put_inner(s, u);
  __syncthreads();
  visit_middle(s, u);
  get(u, outer_chunks(s));
  outer_levels(s, u);
}

// ---------------------------------------------------------------- diagonals
// The signs of a diagonal as bits, in shared memory: span / 32 words; 1 = negative.
template <bool large>
THICKETS_DEVICE void draw_diagonal(const Slot<large>& s, const Parameter& p, int64_t seed, Stream stream,
                                   int64_t row_block, uint32_t* signs) {
  if (s.thread >= s.span / BLOCK_COLUMNS) return;
  const Key<uint32_t> key = schedule(static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  Words<uint32_t> calls[1] = {counter_at<uint32_t>(p, stream, s.thread, static_cast<uint32_t>(row_block))};
  philox4x32_10(calls, key);
  const uint32_t (&w)[4] = calls[0].w;
  store(signs + 4 * s.thread, make_uint4(w[0], w[1], w[2], w[3]));
}

// The first element of a thread's chunk in the outer layout.
template <bool large>
THICKETS_DEVICE int element_of(const Slot<large>& s, int c) {
  return CHUNK * s.thread + c * (s.span / CHUNKS);
}

// The signs of a thread's chunk in the outer layout, in the low eight bits.
template <bool large>
THICKETS_DEVICE uint32_t signs_of_chunk(const Slot<large>& s, const uint32_t* signs, int c) {
  return reinterpret_cast<const unsigned char*>(signs)[c * (s.span / EACH) + s.thread];
}

// x with the sign of a word flipped into its own.
THICKETS_DEVICE float flip(float x, uint32_t sign) { return as_float(bits(x) ^ (sign & 0x80000000u)); }

template <bool large>
THICKETS_DEVICE void flip_outer(const Slot<large>& s, float (&u)[EACH], const uint32_t* signs) {
  THICKETS_UNROLL(8)
  for (int c = 0; c < CHUNKS; ++c) {
    const uint32_t byte = signs_of_chunk(s, signs, c);
    THICKETS_UNROLL(8)
    for (int j = 0; j < CHUNK; ++j) u[CHUNK * c + j] = flip(u[CHUNK * c + j], byte << (31 - j));
  }
}
template <bool large>
THICKETS_DEVICE void flip_inner(const Slot<large>& s, float (&u)[EACH], const uint32_t* signs) {
  // Those of 512 elements that lie together in shared memory; this thread's are 8 apart.
  const int group = s.thread / 8, groups = s.span / CHUNKS / 512;
  const uint32_t* from = signs + (large ? group % 8 * groups + group / 8 : group) * 16;
  THICKETS_UNROLL(4)
  for (int q = 0; q < 4; ++q) {
    const uint4 four = load<uint4>(from + 4 * q);
    const uint32_t words[4] = {four.x, four.y, four.z, four.w};
    THICKETS_UNROLL(16)
    for (int r = 0; r < 16; ++r)
      u[16 * q + r] = flip(u[16 * q + r], words[r / 4] << (7 - s.thread % 8) << (24 - r % 4 * 8));
  }
}

// Row `row` of the Walsh-Hadamard matrix as a diagonal: signs (-1)^popcount(row & i).
template <bool large>
THICKETS_DEVICE void flip_hadamard_row(const Slot<large>& s, float (&u)[EACH], int row) {
  // Within a chunk the low three bits of i; a chunk's first element decides on all.
  const uint32_t low = (row & 1 ? 0xaau : 0u) ^ (row & 2 ? 0xccu : 0u) ^ (row & 4 ? 0xf0u : 0u);
  THICKETS_UNROLL(8)
  for (int c = 0; c < CHUNKS; ++c) {
    uint32_t odd = static_cast<uint32_t>(row & element_of(s, c));
    odd ^= odd >> 8;
    odd ^= odd >> 4;
    odd ^= odd >> 2;
    odd ^= odd >> 1;
    const uint32_t byte = low ^ (odd & 1 ? 0xffu : 0u);
    THICKETS_UNROLL(8)
    for (int j = 0; j < CHUNK; ++j) u[CHUNK * c + j] = flip(u[CHUNK * c + j], byte << (31 - j));
  }
}

}  // namespace thickets::cuda
