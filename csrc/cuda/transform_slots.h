// A block's shared memory, where it transforms rows: slots have a row each.
#pragma once
#include "transform.h"

namespace thickets::cuda {

// Whose row a slot holds. It lies in shared memory, since the transforms need the registers.
struct Seat {
  int64_t row;
  bool exists;
  int64_t member, seed;
};

// A block's shared memory has the rows' elements, then the signs of two diagonals each, then the seats, and
// what is kept of the rows.
inline size_t slot_bytes(int span) {
  return sizeof(float) * padded(span) + sizeof(uint32_t) * span / 16 + sizeof(Seat);
}

THICKETS_DEVICE int log_threads(int log) { return max(log - 6, 3); }
THICKETS_DEVICE int slots_of(int log) { return static_cast<int>(blockDim.x) >> log_threads(log); }
THICKETS_DEVICE int slot_index(int log) { return static_cast<int>(threadIdx.x) >> log_threads(log); }

template <bool large>
THICKETS_DEVICE Slot<large> slot_of(int log) {
  const int threads = 1 << log_threads(log), span = threads * EACH;
  return {log, span, static_cast<int>(threadIdx.x) & (threads - 1),
          dynamic_shared<float>() + slot_index(log) * padded(span)};
}
template <bool large>
THICKETS_DEVICE uint32_t* words_of(const Slot<large>& s, int index) {
  return reinterpret_cast<uint32_t*>(dynamic_shared<float>() + slots_of(s.log) * padded(s.span)) +
         index * (s.span / 16);
}
template <bool large>
THICKETS_DEVICE Seat* seat_of(const Slot<large>& s) {
  return reinterpret_cast<Seat*>(words_of(s, slots_of(s.log))) + slot_index(s.log);
}

// Four of a thread's kept elements, the same four as of its neighbours side by side.
template <bool large>
THICKETS_DEVICE float* kept(const Slot<large>& s, int four) {
  float* all = reinterpret_cast<float*>(seat_of(s) - slot_index(s.log) + slots_of(s.log));
  return all + 4 * (four * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x));
}
template <bool large>
THICKETS_DEVICE void keep(const Slot<large>& s, const float (&u)[EACH]) {
  THICKETS_UNROLL(16)
  for (int i = 0; i < EACH; i += 4) store(kept(s, i / 4), make_float4(u[i], u[i + 1], u[i + 2], u[i + 3]));
}
template <bool large>
THICKETS_DEVICE void recall(const Slot<large>& s, float (&u)[EACH]) {
  THICKETS_UNROLL(16)
  for (int i = 0; i < EACH; i += 4) {
    const float4 four = load<float4>(kept(s, i / 4));
    u[i] = four.x, u[i + 1] = four.y, u[i + 2] = four.z, u[i + 3] = four.w;
  }
}

}  // namespace thickets::cuda
