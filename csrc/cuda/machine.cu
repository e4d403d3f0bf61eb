// Facts about the devices. The emulator of the tests has its own.
#include <atomic>

#include "machine.h"

namespace thickets::cuda {

namespace {

constexpr int DEVICES = 64;  // whose answers are kept

int attribute(cudaDeviceAttr which, int device, std::atomic<int>* kept) {
  const bool keep = device >= 0 && device < DEVICES;
  int value = keep ? kept[device].load(std::memory_order_relaxed) : 0;
  if (value == 0) {
    check(cudaDeviceGetAttribute(&value, which, device), "asking about the device");
    if (keep) kept[device].store(value, std::memory_order_relaxed);
  }
  return value;
}

}  // namespace

int multiprocessors(int device) {
  static std::atomic<int> kept[DEVICES];
  return attribute(cudaDevAttrMultiProcessorCount, device, kept);
}

size_t most_shared(int device) {
  static std::atomic<int> kept[DEVICES];
  return static_cast<size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device, kept));
}

const char* why_not() {
  int driver = 0, count = 0, device = 0, major = 0;
  if (cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0) return "there is no CUDA driver";
  cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess && count == 0) return "the CUDA driver finds no device";
  if (status == cudaSuccess) status = cudaGetDevice(&device);
  if (status == cudaSuccess)
    status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (status != cudaSuccess) {
    cudaGetLastError();  // an error here is no error of a later launch
    return cudaGetErrorString(status);
  }
  return major < 8 ? "its kernels need compute capability 8.0 (Ampere) or later" : nullptr;
}

}  // namespace thickets::cuda
