// The fused product on the tensor cores: noise made in registers as their left operand.
//
// A warp multiplies 32 outputs by up to 8 * tiles rows of one member. The four warps of a block take
// different outputs, which share x, or different members, which share W; where there are few of either, they
// take different columns of the same product (`split`). Noise or W' is the left operand, so that one row of x
// fills a tensor core as well as eight do.
#include "fragment.h"
#include "groups.h"
#include "operand.h"
#include "result.h"

namespace thickets::cuda {

namespace {

constexpr int WARPS = 4;

struct KernelArgs {
  LinearArgs of;
  int split;  // warps that share one tile of outputs and rows: 1, 2 or 4
};

// Warps of a block that read the same W: theirs are different members.
template <Family family, bool weighted>
constexpr bool ACROSS_MEMBERS = weighted && family != Family::none;

// weighted: the left operand is W', else eps.
template <Family family, Dtype dtype, bool weighted, int tiles>
__global__ void __launch_bounds__(32 * WARPS, tiles == 1 ? 3 : 2) linear_kernel(KernelArgs k) {
  const LinearArgs& a = k.of;
  const int warp = shuffle<int>(threadIdx.x / 32, 0), g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const int slots = WARPS / k.split, slot = warp / k.split, part = warp % k.split;
  constexpr bool members = ACROSS_MEMBERS<family, weighted>;
  const int64_t tile = members ? static_cast<int64_t>(blockIdx.x) * slots + slot : blockIdx.x;
  const int64_t first_out =
      (members ? blockIdx.y : static_cast<int64_t>(blockIdx.y) * slots + slot) * TILE_OUT;
  const Group group = group_of_tile(a.members, tile, 8 * tiles);
  const float s = family == Family::none ? 0.0f : a.members.sigmas[group.member] * a.members.scale;
  const int64_t skipped = a.x_shared ? group.member * a.members.rows : 0;

  const int in = static_cast<int>(a.in), shift = static_cast<int>(a.noise.col % TILE_COLUMNS);
  const bool any = group.first < group.end && first_out < a.out;
  const int steps = any ? (shift + in + TILE_COLUMNS - 1) / TILE_COLUMNS : 0;
  const int each = (steps + k.split - 1) / k.split;
  const int begin = part * each, end = min(begin + each, steps);

  const int64_t run = static_cast<int64_t>(begin) * TILE_COLUMNS - shift + 32 * t;  // the lane's first column
  const uint16_t* x = static_cast<const uint16_t*>(a.x.data) + (group.first - skipped + g) * a.x.ld + run;
  const uint16_t* w[4];
  THICKETS_UNROLL(4)
  for (int r = 0; r < 4; ++r) {
    const int64_t o = first_out + output_of(g, r);  // past the end any row will do: its sums are not stored
    if constexpr (weighted)
      w[r] = static_cast<const uint16_t*>(a.weight.data) + group.member * a.weight_member +
             (o < a.out ? o : a.out - 1) * a.weight.ld + run;
  }
  const uint64_t seed = family == Family::none ? 0 : static_cast<uint64_t>(a.members.seeds[group.member]);
  LaneNoise<family, dtype> noise{a.noise,
                                 held_key(seed),
                                 static_cast<uint32_t>(a.noise.row + first_out + output_of(g, 0)),
                                 static_cast<uint32_t>(t),
                                 {}};
  float sums[2][tiles][4] = {};
  const auto used = [&](int n) { return group.first + 8 * n < group.end; };
  // The right operand of tile n, pairs 4 c .. 4 c + 3.
  const auto load_x = [&](int n, int c, const Inside& here, uint32_t (&b)[4]) {
    load_pairs<family>(x + 8 * n * a.x.ld, group.first + 8 * n + g < group.end, here, c, b);
  };

  // A chunk of normals is long, and holds many registers: one at a time.
  constexpr int CHUNKS = family == Family::normal ? 1 : 4;
  constexpr bool EARLY = tiles == 1 && CHUNKS == 4;
  for (int step = begin; step < end; ++step) {
    const Inside here{step * TILE_COLUMNS - shift + 32 * t, in};
    const uint32_t block = static_cast<uint32_t>(a.noise.col / TILE_COLUMNS) + step;
    uint32_t early[4][4];  // a single tile of x arrives while the noise is drawn
    if constexpr (EARLY) {
      THICKETS_UNROLL(4)
      for (int c = 0; c < 4; ++c) load_x(0, c, here, early[c]);
    }
    noise.draw(block);
    THICKETS_UNROLL(CHUNKS)
    for (int c = 0; c < 4; ++c) {
      uint32_t left[4][4];
      THICKETS_UNROLL(4)
      for (int r = 0; r < 4; ++r) {
        uint32_t of_w[4];
        if constexpr (weighted) load_pairs<family>(w[r], true, here, c, of_w);
        noise.template pairs<weighted>(block, c, r, s, of_w, left[r]);
      }
      THICKETS_UNROLL(8)
      for (int n = 0; n < tiles; ++n) {
        if (!used(n)) break;
        uint32_t b[4];
        if constexpr (EARLY) {
          THICKETS_UNROLL(4)
          for (int q = 0; q < 4; ++q) b[q] = early[c][q];
        } else {
          load_x(n, c, here, b);
        }
        THICKETS_UNROLL(2)
        for (int m = 0; m < 2; ++m) THICKETS_UNROLL(2)
        for (int j = 0; j < 2; ++j) {
          uint32_t fragment[4];
          THICKETS_UNROLL(4)
          for (int i = 0; i < 4; ++i) fragment[i] = left[row_of_register(m, i)][pair_of_register(j, i)];
          mma<dtype>(sums[m][n], fragment, b[2 * j], b[2 * j + 1]);
        }
      }
    }
    x += TILE_COLUMNS;
    if constexpr (weighted) {
      THICKETS_UNROLL(4)
      for (int r = 0; r < 4; ++r) w[r] += TILE_COLUMNS;
    }
  }

  // The parts' sums meet in shared memory; neighbouring outputs are written side by side.
  __shared__ float shown[WARPS][8 * tiles][TILE_OUT + 1];
  THICKETS_UNROLL(8)
  for (int n = 0; n < tiles; ++n) THICKETS_UNROLL(2)
  for (int m = 0; m < 2; ++m) THICKETS_UNROLL(4)
  for (int i = 0; i < 4; ++i)
    shown[warp][8 * n + x_row_of_sum(t, i)][output_of(g, row_of_sum(m, i))] = sums[m][n][i];
  __syncthreads();
  const int column = threadIdx.x % TILE_OUT;
  if (!any || first_out + column >= a.out) return;
  for (int64_t row = group.first + part; row < group.end; row += k.split) {
    float sum = 0.0f;
    for (int i = 0; i < k.split; ++i) sum += shown[slot * k.split + i][row - group.first][column];
    finish(a.to, group.member, row, row - group.member * a.members.rows, first_out + column,
           weighted ? sum : s * sum);
  }
}

template <Family family, Dtype dtype, bool weighted, int tiles>
void launch_linear(const LinearArgs& a) {
  int64_t rows = cuda::tiles(a.members, 8 * tiles), wide = (a.out + TILE_OUT - 1) / TILE_OUT;
  // Split columns among the warps of a block until there are some blocks for every multiprocessor.
  int split = 1;
  while (split < WARPS && rows * wide * split < 8 * WARPS * multiprocessors(a.place.device)) split *= 2;
  int64_t& shared = ACROSS_MEMBERS<family, weighted> ? rows : wide;
  shared = (shared * split + WARPS - 1) / WARPS;
  const dim3 grid(static_cast<uint32_t>(rows), static_cast<uint32_t>(wide));
  launch(a.place, linear_kernel<family, dtype, weighted, tiles>, grid, 32 * WARPS, 0, KernelArgs{a, split});
}

template <Family family, Dtype dtype, bool weighted>
void for_rows(const LinearArgs& a) {
  const int64_t each = a.members.offsets ? a.members.total / a.members.count : a.members.rows;
  each <= 8 ? launch_linear<family, dtype, weighted, 1>(a) : launch_linear<family, dtype, weighted, 8>(a);
}

template <Dtype dtype>
void for_family(const LinearArgs& a) {
  const bool weighted = a.weight.data != nullptr;
  switch (a.noise.family) {
    case Family::none:
      return for_rows<Family::none, dtype, true>(a);
    case Family::normal:
      return weighted ? for_rows<Family::normal, dtype, true>(a) : for_rows<Family::normal, dtype, false>(a);
    case Family::normal4:
      return weighted ? for_rows<Family::normal4, dtype, true>(a)
                      : for_rows<Family::normal4, dtype, false>(a);
    default:
      return weighted ? for_rows<Family::rademacher, dtype, true>(a)
                      : for_rows<Family::rademacher, dtype, false>(a);
  }
}

// Whether a matrix with rows of whole groups of eight columns allows 16-byte accesses to them.
bool aligned(const Matrix& m) { return reinterpret_cast<uintptr_t>(m.data) % 16 == 0 && m.ld % 8 == 0; }

}  // namespace

void linear(const LinearArgs& a) {
  if (a.members.count == 0) return;
  const bool eights = a.in % 8 == 0 && a.noise.col % 8 == 0 && a.weight_member % 8 == 0 && a.in < 1 << 30;
  if (!eights || !aligned(a.x) || !aligned(a.weight)) return linear_float32(a);
  a.x.dtype == Dtype::bfloat16 ? for_family<Dtype::bfloat16>(a) : for_family<Dtype::float16>(a);
}

}  // namespace thickets::cuda
