// Rows of members cut into tasks for the threads.
#pragma once
#include "../ops.h"
#include "team.h"

namespace thickets {
namespace THICKETS_ISA {

// Rows begin .. end of the batch, all of one member; row r reads input row r - shift.
struct RowTask {
  int64_t member, begin, end, shift;
};

// f(task, scratch of `floats` floats) over all rows of all members: a member is one task, or several where
// members are fewer than threads. `work` as in Team.
template <class F>
void for_row_tasks(const Groups& g, double work, int64_t floats, F&& f) {
  const Team team(work, floats);
  const int64_t parts = g.count == 0 || g.count >= team.size ? 1 : (team.size + g.count - 1) / g.count;
#pragma omp parallel num_threads(team.size)
  {
    float* scratch = team.scratch();
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < g.count * parts; ++i) {
      const int64_t n = i / parts, part = i % parts;
      const int64_t first = g.offsets[n], rows = g.offsets[n + 1] - first;
      const RowTask task{n, first + rows * part / parts, first + rows * (part + 1) / parts,
                         g.shared ? first : 0};
      if (task.begin < task.end) f(task, scratch);
    }
  }
}

}  // namespace THICKETS_ISA
}  // namespace thickets
