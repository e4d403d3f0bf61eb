#include "emulator.h"

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <memory>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace emulator {

Now now;

namespace {

constexpr size_t STACK = 256 * 1024;
constexpr size_t SHARED = 227 * 1024;

enum class State { ready, at_warp, at_block, done };

struct Fiber {
  ucontext_t start;
  jmp_buf at;
  bool begun = false;
  State state = State::ready;
  Together what = Together::none;
  int meetings = 0;  // of its warp
  std::unique_ptr<unsigned char[]> stack{new unsigned char[STACK]};
};

struct Warp {
  alignas(64) unsigned char slots[2][32 * 64];
};

std::vector<Fiber> fibers;
std::vector<Warp> warps;
alignas(64) unsigned char shared[SHARED + 64];
jmp_buf scheduler;
int current;
void (*kernel)(const void*);
const void* arguments;

void leave(State state) {
  Fiber& fiber = fibers[current];
  fiber.state = state;
  if (_setjmp(fiber.at) == 0) _longjmp(scheduler, 1);
}

// A fiber outlives its block: for the next one it begins again here.
void body() {
  for (;;) {
    kernel(arguments);
    leave(State::done);
  }
}

void resume(int index) {
  current = index;
  Fiber& fiber = fibers[index];
  if (_setjmp(scheduler) != 0) return;
  if (fiber.begun) _longjmp(fiber.at, 1);
  fiber.begun = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = STACK;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, body, 0);
  setcontext(&fiber.start);
}

// Run the lanes first .. end until all have ended or wait for the block.
void run_warp(int first, int end, bool backwards) {
  for (;;) {
    int done = 0, at_block = 0, at_warp = 0;
    for (int i = 0; i < end - first; ++i) {
      const int index = backwards ? end - 1 - i : first + i;
      if (fibers[index].state == State::ready) resume(index);
    }
    for (int i = first; i < end; ++i) {
      done += fibers[i].state == State::done;
      at_block += fibers[i].state == State::at_block;
      at_warp += fibers[i].state == State::at_warp;
    }
    if (at_warp == 0) return;
    if (done + at_block > 0 || end - first < 32)
      throw std::logic_error("emulator: some lanes of a warp miss what the others do together");
    for (int i = first; i < end; ++i) {
      if (fibers[i].what != fibers[first].what)
        throw std::logic_error("emulator: the lanes of a warp do different things together");
      fibers[i].state = State::ready;
    }
  }
}

void run_block(int threads, std::minstd_rand& random) {
  for (int i = 0; i < threads; ++i) fibers[i].state = State::ready;
  const int count = (threads + 31) / 32;
  for (;;) {
    const int shift = static_cast<int>(random() % static_cast<unsigned>(count));
    const bool backwards = random() % 2;
    for (int i = 0; i < count; ++i) {
      const int warp = (i + shift) % count;
      run_warp(32 * warp, std::min(32 * warp + 32, threads), backwards);
    }
    int done = 0;
    for (int i = 0; i < threads; ++i) done += fibers[i].state == State::done;
    if (done == threads) return;
    if (done > 0) throw std::logic_error("emulator: some threads end while others wait for the block");
    for (int i = 0; i < threads; ++i) fibers[i].state = State::ready;
  }
}

}  // namespace

dim3 thread_index() { return {static_cast<uint32_t>(current)}; }
int lane() { return current % 32; }
unsigned char* shared_memory() { return shared; }
unsigned char* slots() { return warps[current / 32].slots[fibers[current].meetings % 2]; }

void meet_block() { leave(State::at_block); }
void meet_warp(Together what) {
  fibers[current].what = what;
  ++fibers[current].meetings;
  leave(State::at_warp);
}

void run(dim3 grid, int threads, size_t bytes, void (*call)(const void*), const void* args) {
  static std::mutex one;
  const std::lock_guard<std::mutex> guard(one);
  if (threads < 1 || threads > 1024) throw std::logic_error("emulator: a block has 1 to 1024 threads");
  if (bytes > SHARED) throw std::logic_error("emulator: a block has at most 227 KiB of shared memory");
  while (static_cast<int>(fibers.size()) < threads) fibers.emplace_back();
  warps.resize(fibers.size() / 32 + 1);
  for (Fiber& fiber : fibers) fiber.meetings = 0;
  kernel = call;
  arguments = args;
  now.grid = grid;
  now.threads = dim3(static_cast<uint32_t>(threads));
  std::minstd_rand random(1);
  try {
    for (uint32_t z = 0; z < grid.z; ++z)
      for (uint32_t y = 0; y < grid.y; ++y)
        for (uint32_t x = 0; x < grid.x; ++x) {
          now.block = dim3(x, y, z);
          std::memset(shared, 0xff, bytes + 64);  // NaN
          run_block(threads, random);
          for (size_t i = bytes; i < bytes + 64; ++i)
            if (shared[i] != 0xff) throw std::logic_error("emulator: a write past shared memory");
        }
  } catch (...) {
    fibers.clear();  // some are in the middle of a kernel
    throw;
  }
}

// ---------------------------------------------------------------- instructions
uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t pick = selector >> 4 * i & 0xf;
    uint32_t byte = bytes >> 8 * (pick & 7) & 0xff;
    if (pick & 8) byte = byte & 0x80 ? 0xff : 0;  // its sign, everywhere
    result |= byte << 8 * i;
  }
  return result;
}

namespace {

// An error within -1 .. 1 that depends on the argument alone, as a table's does.
float error_of(float x, uint32_t salt) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  u = (u ^ salt) * 2654435761u;
  u = (u ^ u >> 15) * 2246822519u;
  return static_cast<float>(static_cast<int32_t>(u ^ u >> 13)) * 0x1p-31f;
}

}  // namespace

// As inexact as PTX allows the special-function unit to be.
float log2_fast(float x) {
  const float y = std::log2(x);
  return y + error_of(x, 1) * 0x1p-22f * std::max(1.0f, std::abs(y));
}
float sqrt_fast(float x) {
  const float y = std::sqrt(x);
  return y + error_of(x, 2) * 0x1p-22f * y;
}
void sincos_fast(float radians, float& sine, float& cosine) {
  constexpr float most = 5.1e-7f;  // 2^-20.9
  sine = std::sin(radians) + error_of(radians, 3) * most;
  cosine = std::cos(radians) + error_of(radians, 4) * most;
}

namespace {

uint32_t to_bfloat16(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return (u + 0x7fffu + (u >> 16 & 1)) >> 16;
}

uint32_t to_float16(float x) {
  const _Float16 h = static_cast<_Float16>(x);
  uint16_t u;
  std::memcpy(&u, &h, 2);
  return u;
}

float half_of(Dtype dtype, uint32_t pair, int which) {
  const uint32_t half = which ? pair >> 16 : pair & 0xffff;
  if (dtype == Dtype::float16) return from_half(half);
  const uint32_t u = half << 16;
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}

}  // namespace

uint32_t pack_bfloat16(float low, float high) { return to_bfloat16(low) | to_bfloat16(high) << 16; }
uint32_t pack_float16(float low, float high) { return to_float16(low) | to_float16(high) << 16; }
float from_half(uint32_t bits16) {
  const uint16_t u = static_cast<uint16_t>(bits16);
  _Float16 h;
  std::memcpy(&h, &u, 2);
  return static_cast<float>(h);
}

// PTX ISA, mma.m16n8k16 with 16-bit factors: lane 4 g + t has of a the rows g (a0, a2) and g + 8 (a1, a3),
// columns 2 t, 2 t + 1 (a0, a1) and those plus 8 (a2, a3); of b the column g, rows 2 t, 2 t + 1 (b0) and
// those plus 8 (b1); of c the rows g (c0, c1) and g + 8 (c2, c3), columns 2 t and 2 t + 1.
void mma_of(Dtype dtype, float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
  unsigned char* all = slots();
  std::memcpy(all + 64 * lane(), mine, sizeof(mine));
  meet_warp(Together::mma);
  const auto word = [&](int of, int i) {
    uint32_t u;
    std::memcpy(&u, all + 64 * of + 4 * i, 4);
    return u;
  };
  for (int i = 0; i < 4; ++i) {
    const int row = lane() / 4 + 8 * (i / 2), column = 2 * (lane() % 4) + i % 2;
    double sum = 0;
    for (int k = 0; k < 16; ++k) {
      const uint32_t at = word(4 * (row % 8) + k % 8 / 2, row / 8 + 2 * (k / 8));
      const uint32_t bt = word(4 * column + k % 8 / 2, 4 + k / 8);
      sum += static_cast<double>(half_of(dtype, at, k % 2)) * half_of(dtype, bt, k % 2);
    }
    c[i] = static_cast<float>(c[i] + sum);
  }
}

}  // namespace emulator

namespace thickets::cuda {

int multiprocessors(int) { return 2; }
size_t most_shared(int) { return emulator::SHARED; }
const char* why_not() { return nullptr; }

}  // namespace thickets::cuda
