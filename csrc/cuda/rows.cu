// Rows of members' weights W' = fma(s, eps, W), or of eps alone, written to memory: for perturb_, embeddings,
// vectors and the noise itself.
//
// A quad of lanes makes up to four lines by 128 columns; neighbouring quads of a warp have neighbouring
// columns. Without ids, lines are ordered by row and then by member, so that members share what they read of
// W. A lane reads of W only what it writes, so one member may overwrite it.
#include "dense.h"
#include "groups.h"

namespace thickets::cuda {

namespace {

constexpr int THREADS = 128;
constexpr int RESIDENT = 128;  // quads of a multiprocessor at a time

struct KernelArgs {
  RowsArgs of;
  int64_t lines;
  int64_t blocks;  // of 128 columns, in a line
  int each;        // lines of a quad: 1, 2 or 4
};

// One line of the result.
struct Line {
  int64_t member, row;
  int64_t out;  // its first element
};

THICKETS_DEVICE Line line_at(const RowsArgs& a, int64_t index) {
  if (a.ids) {
    const int64_t member = member_of_row(a.members, index);
    return {member, looked_up(a, a.ids_shared ? index - member * a.members.rows : index), index * a.out.ld};
  }
  const uint64_t count = static_cast<uint64_t>(a.members.count), l = static_cast<uint64_t>(index);
  const int64_t row = static_cast<int64_t>(l / count), member = static_cast<int64_t>(l % count);
  return {member, row, member * a.out_member + row * a.out.ld};
}

template <Family family>
__global__ void __launch_bounds__(THREADS) rows_kernel(KernelArgs k) {
  constexpr int chunks = family == Family::normal ? 2 : LANE_CHUNKS;  // at a time, as registers allow
  const RowsArgs& a = k.of;
  const int lane = threadIdx.x % 32, t = lane % 4;
  const Block at = block_of_quad(a.noise, k.blocks, a.cols);
  const int64_t first = k.each * at.line;

  // Each lane looks up one line, past the end the last one.
  const Line mine = line_at(a, min(first + t, k.lines - 1));
  const float sigma = a.weight.data ? a.members.sigmas[mine.member] * a.members.scale : 1.0f;
  QuadNoise<family> noise(a.noise, at.number, static_cast<uint64_t>(a.members.seeds[mine.member]),
                          static_cast<uint32_t>(a.noise.row + mine.row));

  THICKETS_UNROLL(1)
  for (int j = 0; j < k.each; ++j) {
    const int from = lane - t + j;
    const Extent in = first + j < k.lines ? at.in : Extent{};
    const float s = shuffle(sigma, from);
    const int64_t weight = shuffle(mine.row, from) * a.weight.ld + at.start;
    const int64_t out = shuffle(mine.out, from) + at.start;
    THICKETS_UNROLL(1)
    for (int c = 0; c < LANE_CHUNKS; c += chunks) {
      const int column = 32 * c + CHUNK_COLUMNS * t;
      Stored<chunks> stored;
      Floats<chunks> v;
      if (a.weight.data) load_chunks(stored, a.weight, weight, column, in);
      if (c == 0) noise.draw(from);  // while the weights arrive
      if (a.weight.data)
        widen(stored, a.weight.dtype, v);
      else
        v = {};
      THICKETS_UNROLL(4)
      for (int i = 0; i < chunks; ++i) noise.add(c + i, s, v.of[i]);
      round(v, a.out.dtype, stored);
      store_chunks(stored, a.out, out, column, in);
    }
  }
}

}  // namespace

void dense_rows(const RowsArgs& a) {
  const int64_t lines = a.ids ? a.members.total : a.members.count * a.rows;
  const int64_t blocks = blocks_of_line(a.noise, a.cols);
  int each = 4;  // fewer where that would leave multiprocessors idle
  while (each > 1 && lines * blocks < each * RESIDENT * multiprocessors(a.place.device)) each /= 2;
  launch(a.place,
         for_dense_family(a.noise.family, rows_kernel<Family::normal>, rows_kernel<Family::normal4>,
                          rows_kernel<Family::rademacher>),
         grid_of_quads((lines + each - 1) / each * blocks, THREADS), THREADS, 0,
         KernelArgs{a, lines, blocks, each});
}

void rows(const RowsArgs& a) {
  switch (a.noise.family) {
    case Family::hadamard:
      return hadamard_rows(a);
    case Family::lowrank:
      return lowrank_rows(a);
    default:
      return dense_rows(a);
  }
}

}  // namespace thickets::cuda
