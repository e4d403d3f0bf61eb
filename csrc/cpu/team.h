// The threads of one parallel region and their scratch memory.
#pragma once
#ifdef _OPENMP
#include <omp.h>
#endif
#include <cstdlib>

#include "../memory.h"
#include "../noise.h"

namespace thickets {
namespace THICKETS_ISA {

#ifdef _OPENMP
THICKETS_INLINE int64_t max_threads() { return omp_get_max_threads(); }
THICKETS_INLINE int64_t this_thread() { return omp_get_thread_num(); }
#else
THICKETS_INLINE int64_t max_threads() { return 1; }
THICKETS_INLINE int64_t this_thread() { return 0; }
#endif

// Threads enough for `work`, counted in entries of noise (a double: no product of sizes overflows it), each
// with scratch of `floats` floats. Made before `#pragma omp parallel num_threads(team.size)`, since no
// exception may leave such a region.
class Team {
 public:
  Team(double work, int64_t floats)
      : size(static_cast<int>(work > SERIAL ? max_threads() : 1)),
        stride((floats + 15) / 16 * 16),
        memory(allocate_floats(size * stride)) {}
  ~Team() { free(memory); }
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  float* scratch() const { return memory + this_thread() * stride; }

  const int size;

 private:
  static constexpr double SERIAL = 16384;  // about 10 us of work: less than waking threads may cost
  const int64_t stride;
  float* const memory;
};

}  // namespace THICKETS_ISA
}  // namespace thickets
