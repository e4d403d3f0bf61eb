// The sum of many members' noise, added to a weight in one pass: a quad of lanes holds the sums of one row by
// 128 columns while it goes through the members, four at a time.
#include "dense.h"

namespace thickets::cuda {

namespace {

constexpr int THREADS = 128;

struct KernelArgs {
  AccumulateArgs of;
  int64_t blocks;  // of 128 columns, in a row
};

template <Family family>
__global__ void __launch_bounds__(THREADS) accumulate_kernel(KernelArgs k) {
  const AccumulateArgs& a = k.of;
  const int lane = threadIdx.x % 32, t = lane % 4;
  const Block at = block_of_quad(a.noise, k.blocks, a.cols);
  const int64_t row = min(at.line, a.rows - 1);
  const uint32_t global_row = static_cast<uint32_t>(a.noise.row + row);

  Floats<LANE_CHUNKS> sum = {};
  for (int64_t first = 0; first < a.members.count; first += 4) {
    // Each lane brings one member, past the end the last one.
    const int64_t member = min(first + t, a.members.count - 1);
    const float coefficient = a.members.sigmas[member] * a.members.scale;
    QuadNoise<family> noise(a.noise, at.number, static_cast<uint64_t>(a.members.seeds[member]), global_row);
    const int count = static_cast<int>(min(a.members.count - first, static_cast<int64_t>(4)));
    THICKETS_UNROLL(1)
    for (int j = 0; j < count; ++j) {
      noise.draw(lane - t + j);
      const float s = shuffle(coefficient, lane - t + j);
      THICKETS_UNROLL(4)
      for (int c = 0; c < LANE_CHUNKS; ++c) noise.add(c, s, sum.of[c]);
    }
  }

  const Extent in = at.line < a.rows ? at.in : Extent{};
  const int64_t start = row * a.weight.ld + at.start;
  Stored<LANE_CHUNKS> stored;
  Floats<LANE_CHUNKS> weight;
  load_chunks(stored, a.weight, start, CHUNK_COLUMNS * t, in);
  widen(stored, a.weight.dtype, weight);
  THICKETS_UNROLL(4)
  for (int c = 0; c < LANE_CHUNKS; ++c) THICKETS_UNROLL(8)
  for (int i = 0; i < CHUNK_COLUMNS; ++i) weight.of[c][i] += sum.of[c][i];
  round(weight, a.weight.dtype, stored);
  store_chunks(stored, a.weight, start, CHUNK_COLUMNS * t, in);
}

}  // namespace

void dense_accumulate(const AccumulateArgs& a) {
  const int64_t blocks = blocks_of_line(a.noise, a.cols);
  launch(a.place,
         for_dense_family(a.noise.family, accumulate_kernel<Family::normal>,
                          accumulate_kernel<Family::normal4>, accumulate_kernel<Family::rademacher>),
         grid_of_quads(a.rows * blocks, THREADS), THREADS, 0, KernelArgs{a, blocks});
}

void accumulate(const AccumulateArgs& a) {
  switch (a.noise.family) {
    case Family::hadamard:
      return hadamard_accumulate(a);
    case Family::lowrank:
      return lowrank_accumulate(a);
    default:
      return dense_accumulate(a);
  }
}

}  // namespace thickets::cuda
