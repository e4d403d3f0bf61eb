// Scratch memory for the kernels.
#pragma once
#include <cstdint>

namespace thickets {

// Room for that many floats, aligned to 64 bytes; throws std::bad_alloc. Freed by std::free.
float* allocate_floats(int64_t count);

}  // namespace thickets
