// What the kernels use of the machine: the few instructions that C++ has no word for, launches, and facts
// about the device. tests/native/emulator/emulator.h says the same for a CPU, so that the kernels run in the
// tests without a GPU.
#pragma once
#include "args.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>

#include <mutex>
#include <stdexcept>
#include <string>
#define THICKETS_DEVICE static __device__ __forceinline__
#else
#include <emulator.h>
#define THICKETS_DEVICE static inline
#endif

namespace thickets::cuda {

// Facts about a device, asked for once.
int multiprocessors(int device);
size_t most_shared(int device);  // bytes of shared memory that a block may have

#if defined(__CUDACC__)

// Bytes of (b, a), numbered from the low end of a; nibble i of the selector picks byte i.
THICKETS_DEVICE uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t d;  // __byte_perm would mask the selector
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(selector));
  return d;
}

// (a & b) | c in one instruction: compilers would move shifts in `a` behind the mask.
THICKETS_DEVICE uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

// Upper half of a word, by the multiplier: the unit of shifts and masks is the busier one.
THICKETS_DEVICE uint32_t upper_half(uint32_t a) {
  uint32_t d;
  asm("mul.hi.u32 %0, %1, 0x10000;" : "=r"(d) : "r"(a));
  return d;
}

// 16 or 8 bytes of constant memory contents, or zeros, without a branch.
THICKETS_DEVICE uint4 load16_if(bool wanted, const void* p) {
  uint4 v;
  asm("{\n.reg .pred q;\nsetp.ne.b32 q, %5, 0;\nmov.b32 %0, 0;\nmov.b32 %1, 0;\nmov.b32 %2, 0;\nmov.b32 %3, "
      "0;\n"
      "@q ld.global.v4.b32 {%0, %1, %2, %3}, [%4];\n}"
      : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
      : "l"(p), "r"(static_cast<int>(wanted)));
  return v;
}
THICKETS_DEVICE uint2 load8_if(bool wanted, const void* p) {
  uint2 v;
  asm("{\n.reg .pred q;\nsetp.ne.b32 q, %3, 0;\nmov.b32 %0, 0;\nmov.b32 %1, 0;\n@q ld.global.v2.b32 {%0, "
      "%1}, [%2];\n}"
      : "=&r"(v.x), "=&r"(v.y)
      : "l"(p), "r"(static_cast<int>(wanted)));
  return v;
}

// 16 bytes, without a branch; compilers would split some assignments of a uint4 into four stores.
THICKETS_DEVICE void store16_if(bool wanted, void* p, uint4 v) {
  asm volatile(
      "{\n.reg .pred q;\nsetp.ne.b32 q, %5, 0;\n@q st.global.v4.b32 [%4], {%0, %1, %2, %3};\n}" ::"r"(v.x),
      "r"(v.y), "r"(v.z), "r"(v.w), "l"(p), "r"(static_cast<int>(wanted))
      : "memory");
}

// The value of another lane of the warp; all lanes take part.
template <class T>
THICKETS_DEVICE T shuffle(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
template <class T>
THICKETS_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// The special-function unit; subnormals count as zero.
THICKETS_DEVICE float log2_fast(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
THICKETS_DEVICE float sqrt_fast(float x) {
  float y;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
THICKETS_DEVICE void sincos_fast(float radians, float& sine, float& cosine) {
  asm("sin.approx.ftz.f32 %0, %1;" : "=f"(sine) : "f"(radians));
  asm("cos.approx.ftz.f32 %0, %1;" : "=f"(cosine) : "f"(radians));
}

// Two floats rounded to nearest even, side by side.
template <Dtype dtype>
THICKETS_DEVICE uint32_t pack(float low, float high) {
  uint32_t pair;
  if constexpr (dtype == Dtype::bfloat16)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
THICKETS_DEVICE float from_half(uint32_t bits16) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(static_cast<uint16_t>(bits16)));
  return x;
}

// c += a b on the tensor cores, by all lanes of a warp together, so never moved into a branch: a 16 x 16 by b
// 16 x 8, fragments as PTX lays them out (fragment.h).
template <Dtype dtype>
THICKETS_DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (dtype == Dtype::bfloat16)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The launch's dynamic shared memory.
template <class T>
THICKETS_DEVICE T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char thickets_shared[];
  return reinterpret_cast<T*>(thickets_shared);
}

inline void check(cudaError_t status, const char* doing) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string("CUDA: ") + doing + " failed: " + cudaGetErrorString(status));
}

// Run kernel(args) on grid blocks of `threads` threads. Nothing here allocates or waits.
template <class Args>
void launch(const Place& place, void (*kernel)(Args), dim3 grid, int threads, size_t shared, Args args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  const void* function = reinterpret_cast<const void*>(kernel);
  check(cudaSetDevice(place.device), "choosing the device");
  // The limit is the kernel's, not the launch's: no other thread may lower it in between.
  static std::mutex one;
  std::unique_lock<std::mutex> alone(one, std::defer_lock);
  if (shared > 48 * 1024) {
    alone.lock();
    check(
        cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
        "asking for shared memory");
  }
  void* values[] = {&args};
  check(cudaLaunchKernel(function, grid, dim3(threads), values, shared,
                         static_cast<cudaStream_t>(place.stream)),
        "a launch");
}

#else

using emulator::and_or, emulator::dynamic_shared, emulator::from_half, emulator::launch, emulator::load16_if,
    emulator::load8_if, emulator::log2_fast, emulator::mma, emulator::pack, emulator::permute_bytes,
    emulator::shuffle, emulator::shuffle_xor, emulator::sincos_fast, emulator::sqrt_fast,
    emulator::store16_if, emulator::upper_half;

#endif

// Halves of a pair as float32.
template <Dtype dtype>
THICKETS_DEVICE float unpack_low(uint32_t pair) {
  return dtype == Dtype::bfloat16 ? as_float(pair << 16) : from_half(pair & 0xffffu);
}
template <Dtype dtype>
THICKETS_DEVICE float unpack_high(uint32_t pair) {
  return dtype == Dtype::bfloat16 ? as_float(pair & 0xffff0000u) : from_half(pair >> 16);
}

template <class T>
THICKETS_DEVICE T load(const void* p) {
  return *static_cast<const T*>(p);
}
template <class T>
THICKETS_DEVICE void store(void* p, T value) {
  *static_cast<T*>(p) = value;
}

// One element of an array whose dtype is known at run time.
THICKETS_DEVICE float load_float(const void* p, Dtype dtype, int64_t i) {
  if (dtype == Dtype::float32) return static_cast<const float*>(p)[i];
  const uint32_t half = static_cast<const uint16_t*>(p)[i];
  return dtype == Dtype::bfloat16 ? as_float(half << 16) : from_half(half);
}
THICKETS_DEVICE void store_float(void* p, Dtype dtype, int64_t i, float value) {
  if (dtype == Dtype::float32)
    static_cast<float*>(p)[i] = value;
  else
    static_cast<uint16_t*>(p)[i] = static_cast<uint16_t>(
        dtype == Dtype::bfloat16 ? pack<Dtype::bfloat16>(value, 0.0f) : pack<Dtype::float16>(value, 0.0f));
}

// The value as it would be read back from storage.
THICKETS_DEVICE float rounded(float value, Dtype dtype) {
  if (dtype == Dtype::float32) return value;
  return dtype == Dtype::bfloat16 ? unpack_low<Dtype::bfloat16>(pack<Dtype::bfloat16>(value, 0.0f))
                                  : unpack_low<Dtype::float16>(pack<Dtype::float16>(value, 0.0f));
}

}  // namespace thickets::cuda
