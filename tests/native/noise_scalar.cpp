// csrc/noise.h alone, on its scalar lanes, for tests/test_native_header.py: prints rows of the noise as raw
// 32-bit words. Built by any C++17 compiler (with -ffp-contract=off), and by nvcc for the device's code.
//
// noise_scalar KIND SEED ID ROW ROWS BLOCK BLOCKS; KIND is a stream number (words) or a dense family's name.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "noise.h"

namespace {

using namespace thickets;

constexpr int E = 128;  // room for the entries of one call

// The entries, or words, of the call at (block, row); returns how many.
THICKETS_INLINE int call(const Parameter& p, int stream, uint64_t seed, uint32_t block, uint32_t row,
                         uint32_t (&out)[E]) {
  const Key<uint32_t> key = schedule(static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  Words<uint32_t> words[1] = {counter_at(p, static_cast<uint32_t>(stream), block, row)};
  philox4x32_10(words, key);
  const uint32_t (&w)[4] = words[0].w;
  if (p.family == Family::normal) {
    float z[4];
    box_muller(w[0], w[1], z[0], z[1]);
    box_muller(w[2], w[3], z[2], z[3]);
    for (int i = 0; i < 4; ++i) out[i] = bits(z[i]);
    return 4;
  }
  if (p.family == Family::normal4) {
    const float magnitudes[8] = THICKETS_NORMAL4_MAGNITUDES;
    for (int i = 0; i < 32; ++i) out[i] = bits(normal4_entry<float>(w[i / 8], i % 8, magnitudes));
    return 32;
  }
  if (p.family == Family::rademacher) {
    for (int i = 0; i < 128; ++i) out[i] = bits(rademacher_entry<float>(w[i / 32], i % 32));
    return 128;
  }
  for (int i = 0; i < 4; ++i) out[i] = w[i];
  return 4;
}

}  // namespace

#if defined(__CUDACC__)
__global__ void calls(Parameter p, int stream, uint64_t seed, uint32_t* out) {
  uint32_t entries[E];
  const int count = call(p, stream, seed, threadIdx.x, blockIdx.x, entries);
  for (int i = 0; i < count; ++i) out[(blockIdx.x * blockDim.x + threadIdx.x) * count + i] = entries[i];
}
#endif

int main(int argc, char** argv) {
  if (argc != 8) return 2;
  const std::string kind = argv[1];
  const Family family = kind == "normal"       ? Family::normal
                        : kind == "normal4"    ? Family::normal4
                        : kind == "rademacher" ? Family::rademacher
                                               : Family::none;
  const int stream = family == Family::none ? atoi(argv[1]) : static_cast<int>(family) - 1;
  uint64_t n[6];
  for (int i = 0; i < 6; ++i) n[i] = strtoull(argv[i + 2], nullptr, 10);
  const Parameter p{family, 0, n[1], 0, 0, 0};
  for (uint64_t row = n[2]; row < n[2] + n[3]; ++row)
    for (uint64_t block = n[4]; block < n[4] + n[5]; ++block) {
      uint32_t out[E];
      const int count = call(p, stream, n[0], static_cast<uint32_t>(block), static_cast<uint32_t>(row), out);
      fwrite(out, sizeof out[0], static_cast<size_t>(count), stdout);
    }
  return 0;
}
