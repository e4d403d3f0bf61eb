// The machine that csrc/cuda/machine.h names, on a CPU: the kernels compile as plain C++, the threads of a
// block run as fibers, and what a warp does together is a rendezvous of its 32 lanes.
//
// It is stricter than a GPU: a lane or thread that misses what its warp or block does together is an error,
// and so is a warp whose lanes do different things. Blocks and warps run in changing order, fresh shared
// memory is full of NaN: a missing barrier shows as a wrong result.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cuda/args.h"

struct uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct dim3 {
  uint32_t x, y, z;
  constexpr dim3(uint32_t x = 1, uint32_t y = 1, uint32_t z = 1) : x(x), y(y), z(z) {}
};

inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }

using std::max, std::min;

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __shared__ static
#define __launch_bounds__(...)
#define threadIdx (emulator::thread_index())
#define blockIdx (emulator::now.block)
#define blockDim (emulator::now.threads)
#define gridDim (emulator::now.grid)
#define __syncthreads() emulator::meet_block()
#define __syncwarp() emulator::meet_warp(emulator::Together::sync)

namespace emulator {

using thickets::Dtype;

// The launch in progress.
struct Now {
  dim3 block, threads, grid;
};
extern Now now;

enum class Together { none, sync, shuffle, mma };

dim3 thread_index();
void meet_block();
void meet_warp(Together what);
unsigned char* shared_memory();
// What the lanes of this warp show each other: 32 slots of 64 bytes, free again two rendezvous later.
unsigned char* slots();
int lane();

void run(dim3 grid, int threads, size_t shared, void (*call)(const void*), const void* args);

template <class T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(shared_memory());
}

template <class Args>
struct Call {
  void (*kernel)(Args);
  Args args;
};

template <class Args>
void launch(const thickets::cuda::Place&, void (*kernel)(Args), dim3 grid, int threads, size_t shared,
            Args args) {
  const Call<Args> call{kernel, args};
  run(
      grid, threads, shared,
      [](const void* c) {
        const Call<Args>& call = *static_cast<const Call<Args>*>(c);
        call.kernel(call.args);
      },
      &call);
}

template <class T>
T shuffle(T value, int source) {
  static_assert(sizeof(T) <= 64);
  unsigned char* all = slots();
  std::memcpy(all + 64 * lane(), &value, sizeof(T));
  meet_warp(Together::shuffle);
  std::memcpy(&value, all + 64 * (source & 31), sizeof(T));
  return value;
}
template <class T>
T shuffle_xor(T value, int mask) {
  return shuffle(value, lane() ^ mask);
}

inline uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) { return (a & b) | c; }
inline uint32_t upper_half(uint32_t a) { return a >> 16; }
inline uint4 load16_if(bool wanted, const void* p) {
  return wanted ? *static_cast<const uint4*>(p) : uint4{};
}
inline uint2 load8_if(bool wanted, const void* p) { return wanted ? *static_cast<const uint2*>(p) : uint2{}; }
inline void store16_if(bool wanted, void* p, uint4 v) {
  if (wanted) *static_cast<uint4*>(p) = v;
}
uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector);
float log2_fast(float x);
float sqrt_fast(float x);
void sincos_fast(float radians, float& sine, float& cosine);
uint32_t pack_bfloat16(float low, float high);
uint32_t pack_float16(float low, float high);
float from_half(uint32_t bits16);
void mma_of(Dtype dtype, float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

template <Dtype dtype>
uint32_t pack(float low, float high) {
  return dtype == Dtype::bfloat16 ? pack_bfloat16(low, high) : pack_float16(low, high);
}
template <Dtype dtype>
void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  mma_of(dtype, c, a, b0, b1);
}

}  // namespace emulator
