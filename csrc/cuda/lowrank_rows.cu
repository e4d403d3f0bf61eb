// Lines of W' under low-rank noise, and sums of many members' noise: thin products A B^T.
#include "lowrank.h"

namespace thickets::cuda {

namespace {

struct RowsKernel {
  RowsArgs of;
  float root;
  int height;
  bool weight_fours, out_fours;
};

// Lines of W' of one member, consecutive in the result.
template <class Ranks>
__global__ void __launch_bounds__(THREADS) rows_kernel(RowsKernel k) {
  const RowsArgs& a = k.of;
  Group group;
  if (a.ids) {
    group = group_of_tile(a.members, blockIdx.x, k.height);
  } else {  // members that share a part of W follow each other
    const int64_t first = blockIdx.x / a.members.count * k.height, end = first + k.height;
    group = {blockIdx.x % a.members.count, first, end < a.rows ? end : a.rows};
  }
  if (group.first >= group.end) return;
  const int64_t column = static_cast<int64_t>(blockIdx.y) * WIDTH + 4 * threadIdx.x;
  const int64_t skipped = a.ids_shared ? group.member * a.members.rows : 0;
  const int64_t out = a.ids ? 0 : group.member * a.out_member;
  const float s = a.weight.data ? a.members.sigmas[group.member] * a.members.scale : 0.0f;
  const auto row_of = [&](int64_t line) { return a.ids ? looked_up(a, line - skipped) : line; };

  const Key<uint32_t> key = key_of(a.members, group.member);
  const auto left = [&](int i, int block) {
    return cropped_factor<Ranks::used>(a.noise, stream_lowrank_a, key, a.noise.row + row_of(group.first + i),
                                       block);
  };
  const auto finish = [&](int i, const float (&d)[Ranks::deep][4]) {
    const int64_t first = group.first + i;
    uint4 weight[Ranks::deep];
    THICKETS_UNROLL(16)
    for (int r = 0; r < Ranks::deep; ++r)
      if (a.weight.data && first + r < group.end)
        weight[r] = load_four(a.weight, k.weight_fours, row_of(first + r) * a.weight.ld, column, a.cols);
    THICKETS_UNROLL(16)
    for (int r = 0; r < Ranks::deep; ++r) {
      if (first + r >= group.end) break;
      Four value;
      THICKETS_UNROLL(4)
      for (int c = 0; c < 4; ++c) value.v[c] = d[r][c] * k.root;
      if (a.weight.data) {
        const Four w = floats_of(weight[r], a.weight.dtype);
        THICKETS_UNROLL(4)
        for (int c = 0; c < 4; ++c) value.v[c] = fma(s, value.v[c], w.v[c]);
      }
      store_four(a.out, k.out_fours, out + (first + r) * a.out.ld, column, a.cols, value);
    }
  };
  thin_product<Ranks>(a.noise, stream_lowrank_b, key, a.noise.col + column,
                      static_cast<int>(group.end - group.first), left, finish);
}

// ---------------------------------------------------------------- accumulated noise
struct AccumulateKernel {
  AccumulateArgs of;
  float root;
  bool fours;
};

constexpr int LINES = 16, AHEAD = THREADS / LINES;  // each thread draws A of one line, for one of AHEAD calls

template <class Ranks>
__global__ void __launch_bounds__(THREADS) accumulate_kernel(AccumulateKernel k) {
  const AccumulateArgs& a = k.of;
  __shared__ Four shared_left[AHEAD][LINES];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * LINES;
  const int64_t column = static_cast<int64_t>(blockIdx.y) * WIDTH + 4 * threadIdx.x;
  const int blocks = Ranks::many ? (a.noise.rank + 3) / 4 : 1, line = threadIdx.x % LINES;
  const int64_t calls = a.members.count * blocks;  // call n * blocks + b: ranks 4 b .. 4 b + 3 of member n
  float sums[LINES][4] = {};
  for (int64_t member = 0, call = 0; member < a.members.count; ++member) {
    const Key<uint32_t> key = key_of(a.members, member);
    float d[LINES][4] = {};
    THICKETS_UNROLL(1)
    for (int block = 0; block < blocks; ++block, ++call) {
      if (call % AHEAD == 0) {
        const int64_t mine = call + threadIdx.x / LINES;
        __syncthreads();
        if (mine < calls)
          shared_left[threadIdx.x / LINES][line] =
              cropped_factor<Ranks::used>(a.noise, stream_lowrank_a, key_of(a.members, mine / blocks),
                                          a.noise.row + first + line, static_cast<int>(mine % blocks));
        __syncthreads();
      }
      Four right[4];
      THICKETS_UNROLL(4)
      for (int c = 0; c < 4; ++c)
        right[c] = factor<Ranks::used>(a.noise, stream_lowrank_b, key, a.noise.col + column + c, block);
      THICKETS_UNROLL(16)
      for (int r = 0; r < LINES; ++r) chain<Ranks::used>(shared_left[call % AHEAD][r], right, d[r]);
    }
    const float coefficient = a.members.sigmas[member] * a.members.scale;
    THICKETS_UNROLL(16)
    for (int r = 0; r < LINES; ++r) THICKETS_UNROLL(4)
    for (int c = 0; c < 4; ++c) sums[r][c] = fma(coefficient, d[r][c] * k.root, sums[r][c]);
  }
  THICKETS_UNROLL(16)
  for (int r = 0; r < LINES; ++r) {
    if (first + r >= a.rows) break;
    const int64_t start = (first + r) * a.weight.ld;
    Four w = floats_of(load_four(a.weight, k.fours, start, column, a.cols), a.weight.dtype);
    THICKETS_UNROLL(4)
    for (int c = 0; c < 4; ++c) w.v[c] += sums[r][c];
    store_four(a.weight, k.fours, start, column, a.cols, w);
  }
}

}  // namespace

void lowrank_rows(const RowsArgs& a) {
  if (a.members.count == 0) return;
  const uint32_t wide = blocks_of(a.cols, WIDTH);
  with_ranks(a.noise.rank, [&](auto ranks) {
    using R = decltype(ranks);
    const int height =
        height_of(a.members.count, a.ids ? lines_of(a.members) : a.rows, wide, R::tall, a.place.device);
    const int64_t high = a.ids ? tiles(a.members, height) : a.members.count * blocks_of(a.rows, height);
    launch(
        a.place, rows_kernel<R>, dim3(static_cast<uint32_t>(high), wide), THREADS, 0,
        RowsKernel{a, inverse_root(a.noise.rank), height, in_fours(a.weight), in_fours(a.out, a.out_member)});
  });
}

void lowrank_accumulate(const AccumulateArgs& a) {
  const dim3 grid(blocks_of(a.rows, LINES), blocks_of(a.cols, WIDTH));
  with_ranks(a.noise.rank, [&](auto ranks) {
    launch(a.place, accumulate_kernel<decltype(ranks)>, grid, THREADS, 0,
           AccumulateKernel{a, inverse_root(a.noise.rank), in_fours(a.weight)});
  });
}

}  // namespace thickets::cuda
