// y = base + s x eps^T + bias for low-rank noise, by two thin products: t = x B, R numbers a row that go
// through memory, and t A^T.
#include "lowrank.h"

namespace thickets::cuda {

namespace {

constexpr int PROJECT_THREADS = 256, SPAN = 4 * PROJECT_THREADS;  // columns of x that are summed at a time

// Sums of v[0 .. count - 1] over the lanes of a warp: lane l gets the one(s) of index l count / 32.
template <int count>
THICKETS_DEVICE void sum_over_lanes(float (&v)[count]) {
  const int lane = threadIdx.x % 32;
  int n = count;
  THICKETS_UNROLL(5)
  for (int mask = 16; mask > 0; mask /= 2) {
    if (n == 1) {
      v[0] += shuffle_xor(v[0], mask);
      continue;
    }
    n /= 2;
    const bool upper = lane & mask;
    THICKETS_UNROLL(16)
    for (int i = 0; i < n; ++i) {
      const float other = shuffle_xor(upper ? v[i] : v[i + n], mask);
      v[i] = (upper ? v[i + n] : v[i]) + other;
    }
  }
}

struct ProductKernel {
  ProductArgs of;
  float root;  // 1 / sqrt(R)
  int height;  // rows of a block
  int64_t spans;
  bool x_fours, y_fours, base_fours, bias_fours;
};

// scratch[span, row, k] = x[row] B[k] over the columns of a span: a thread has four of them, and B there.
template <int ranks>
__global__ void __launch_bounds__(PROJECT_THREADS) project_kernel(ProductKernel k) {
  constexpr int TOGETHER = 8, SUMS = TOGETHER * ranks, WARPS = PROJECT_THREADS / 32;
  const ProductArgs& a = k.of;
  const Group group = group_of_tile(a.members, blockIdx.x, k.height);
  if (group.first >= group.end) return;
  __shared__ float of_warps[WARPS][SUMS];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t column = static_cast<int64_t>(blockIdx.y) * SPAN + 4 * threadIdx.x;
  const int64_t skipped = a.x_shared ? group.member * a.members.rows : 0;
  const Key<uint32_t> key = key_of(a.members, group.member);
  for (int block = 0; 4 * block < a.noise.rank; ++block) {
    Four b[4];
    THICKETS_UNROLL(4)
    for (int c = 0; c < 4; ++c)
      b[c] = factor<ranks>(a.noise, stream_lowrank_b, key, a.noise.col + column + c, block);
    for (int64_t first = group.first; first < group.end; first += TOGETHER) {
      uint4 x[TOGETHER];
      THICKETS_UNROLL(8)
      for (int r = 0; r < TOGETHER; ++r)
        x[r] = load_four(a.x, k.x_fours, (first + r - skipped) * a.x.ld, column,
                         first + r < group.end ? a.in : 0);
      float sums[SUMS] = {};
      THICKETS_UNROLL(8)
      for (int r = 0; r < TOGETHER; ++r) {
        const Four of_x = floats_of(x[r], a.x.dtype);
        THICKETS_UNROLL(4)
        for (int q = 0; q < ranks; ++q) THICKETS_UNROLL(4)
        for (int c = 0; c < 4; ++c) sums[r * ranks + q] = fma(of_x.v[c], b[c].v[q], sums[r * ranks + q]);
      }
      sum_over_lanes(sums);
      of_warps[warp][lane * SUMS / 32] = sums[0];
      __syncthreads();
      if (threadIdx.x < SUMS) {
        const int64_t row = first + threadIdx.x / ranks;
        const int rank = 4 * block + threadIdx.x % ranks;
        float sum = 0.0f;
        THICKETS_UNROLL(8)
        for (int w = 0; w < WARPS; ++w) sum += of_warps[w][threadIdx.x];
        if (row < group.end && rank < a.noise.rank)
          a.scratch[(blockIdx.y * a.members.total + row) * a.noise.rank + rank] = sum;
      }
      __syncthreads();
    }
  }
}

// y = base + s / sqrt(R) t A^T + bias.
template <class Ranks>
__global__ void __launch_bounds__(THREADS) expand_kernel(ProductKernel k) {
  const ProductArgs& a = k.of;
  const Group group = group_of_tile(a.members, blockIdx.x, k.height);
  if (group.first >= group.end) return;
  const int64_t column = static_cast<int64_t>(blockIdx.y) * WIDTH + 4 * threadIdx.x;
  const int64_t skipped = a.to.base_shared ? group.member * a.members.rows : 0;
  const int rank = a.noise.rank;
  const float scale = a.members.sigmas[group.member] * a.members.scale * k.root;
  Four bias = {};
  if (a.to.bias.data)
    bias = floats_of(load_four(a.to.bias, k.bias_fours, group.member * a.to.bias.ld, column, a.out),
                     a.to.bias.dtype);

  const auto left = [&](int i, int block) {
    Four t = {};
    THICKETS_UNROLL(4)
    for (int64_t span = 0; span < k.spans; ++span) {
      const float* sums = a.scratch + (span * a.members.total + group.first + i) * rank + 4 * block;
      THICKETS_UNROLL(4)
      for (int q = 0; q < Ranks::used; ++q)
        if (4 * block + q < rank) t.v[q] += sums[q];
    }
    THICKETS_UNROLL(4)
    for (int q = 0; q < 4; ++q) t.v[q] *= scale;
    return t;
  };
  const auto finish = [&](int i, const float (&d)[Ranks::deep][4]) {
    const int64_t first = group.first + i;
    uint4 base[Ranks::deep];
    THICKETS_UNROLL(16)
    for (int r = 0; r < Ranks::deep; ++r)
      if (a.to.base.data)
        base[r] = load_four(a.to.base, k.base_fours, (first + r - skipped) * a.to.base.ld, column,
                            first + r < group.end ? a.out : 0);
    THICKETS_UNROLL(16)
    for (int r = 0; r < Ranks::deep; ++r) {
      if (first + r >= group.end) break;
      Four sum = a.to.base.data ? floats_of(base[r], a.to.base.dtype) : Four{};
      THICKETS_UNROLL(4)
      for (int c = 0; c < 4; ++c) sum.v[c] = sum.v[c] + d[r][c] + bias.v[c];
      store_four(a.to.y, k.y_fours, (first + r) * a.to.y.ld, column, a.out, sum);
    }
  };
  const Key<uint32_t> key = key_of(a.members, group.member);
  thin_product<Ranks>(a.noise, stream_lowrank_a, key, a.noise.row + column,
                      static_cast<int>(group.end - group.first), left, finish);
}

}  // namespace

int64_t lowrank_scratch(const ProductArgs& a) {
  return blocks_of(a.in, SPAN) * a.members.total * a.noise.rank;
}

void lowrank_product(const ProductArgs& a) {
  if (a.members.count == 0) return;
  const uint32_t spans = blocks_of(a.in, SPAN), wide = blocks_of(a.out, WIDTH);
  const int64_t lines = lines_of(a.members);
  ProductKernel k{a,
                  inverse_root(a.noise.rank),
                  0,
                  spans,
                  in_fours(a.x),
                  in_fours(a.to.y),
                  in_fours(a.to.base),
                  in_fours(a.to.bias)};
  const auto grid = [&](uint32_t blocks, int tallest) {
    k.height = height_of(a.members.count, lines, blocks, tallest, a.place.device);
    return dim3(static_cast<uint32_t>(tiles(a.members, k.height)), blocks);
  };
  with_ranks(a.noise.rank, [&](auto ranks) {
    using R = decltype(ranks);
    const dim3 of_x = grid(spans, TALL);
    launch(a.place, project_kernel<R::used>, of_x, PROJECT_THREADS, 0, k);
    const dim3 of_y = grid(wide, R::tall);
    launch(a.place, expand_kernel<R>, of_y, THREADS, 0, k);
  });
}

}  // namespace thickets::cuda
