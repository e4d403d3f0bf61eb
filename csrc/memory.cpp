// One copy for all instruction sets: what throws must not come from an object that the CPU cannot run.
#include "memory.h"

#include <cstdlib>
#include <new>
#include <string>

namespace thickets {

namespace {

// Reaches Python as MemoryError with this text.
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(int64_t count)
      : text("out of memory: a kernel needs scratch for " + std::to_string(count) + " floats") {}
  const char* what() const noexcept override { return text.c_str(); }

 private:
  std::string text;
};

}  // namespace

float* allocate_floats(int64_t count) {
  constexpr int64_t most = INT64_MAX / 8;
  void* memory = count < most ? std::aligned_alloc(64, static_cast<size_t>((count + 16) / 16 * 64)) : nullptr;
  if (!memory) throw OutOfMemory(count);
  return static_cast<float*>(memory);
}

}  // namespace thickets
