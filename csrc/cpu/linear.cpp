// Perturbed linear: W' = fma(s, eps, W) formed in a cached tile, multiplied by a register micro-kernel.
//
// A task is 64 outputs and a range of members. For each tile of 128 columns it reads and transposes W once,
// then for each member forms W' (outputs across the lanes) and multiplies all of the member's rows. Every
// output is one chain of fused multiply-adds over ascending k from zero, plus the bias: the bits do not
// depend on the members of the batch, the rows of a member, the threads or the chunks. A mirrored member, or
// another sigma of the same seed, reuses the noise tile.
#include <cstdlib>

#include "convert.h"
#include "few_rows.h"
#include "generate.h"
#include "team.h"

namespace thickets {
namespace THICKETS_ISA {
namespace {

constexpr int COLS = 128;  // columns of a tile
constexpr int PACKS = 4;   // packs of outputs of a tile
constexpr int OUTPUTS = PACKS * LANES;
constexpr int ROWS = 6;                                         // rows of x in a micro-kernel call
constexpr int ACCUMULATORS = THICKETS_ISA_INDEX == 2 ? 24 : 6;  // packs that fit the register file

// Rows of x that all outputs are made of in turn. 8 members of 2048 rows, 1408x512, two threads of a Zen 4:
// 98 GFLOP/s with all rows at once, 161, 164, 177 and 175 with 256, 512, 1024 and 2048.
constexpr int64_t CACHED_ROWS = 1024;

struct Tile {
  alignas(64) float v[PACKS][COLS][LANES];
};

struct Scratch {
  Tile weight, perturbed, eps;
};

// One column tile of one task.
struct Span {
  int64_t output, k;
  int cols, outputs, packs;
};

// 16 x 16 blocks of W, transposed: outputs across the lanes, zeros past the matrix, and where there is none.
void load_tile(const Matrix& w, int64_t element, const Span& span, Tile& tile) {
  if (!w.data) {
    memset(&tile, 0, sizeof tile);
    return;
  }
  for (int p = 0; p < span.packs; ++p)
    for (int k = 0; k < span.cols; k += LANES) {
      const int cols = clamp_lanes(span.cols - k);
      F32x16 block[16];
      for (int r = 0; r < 16; ++r) {
        const int output = p * LANES + r;
        const int64_t at = element + (span.output + output) * w.ld + span.k + k;
        block[r] = output < span.outputs ? load(w, at, cols) : F32x16(0.0f);
        prefetch(w, at + COLS);  // the next tile's part, while the members multiply this one
      }
      transpose16(block);
      for (int j = 0; j < 16; ++j) store(tile.v[p][k + j], block[j]);
    }
}

template <class Emit>
void generate_tile(const Parameter& noise, int64_t seed, const Span& span, Emit&& emit) {
  const LaneKey key = key_of(seed);
  with_dense_family(noise.family, [&](auto family) {
    for (int p = 0; p < span.packs; ++p) {
      const U32x16 rows = iota(static_cast<uint32_t>(noise.row + span.output + p * LANES));
      generate<decltype(family)::value>(noise, key, rows, noise.col + span.k, span.cols,
                                        [=](int k, F32x16 eps) THICKETS_LAMBDA { emit(p, k, eps); });
    }
  });
}

template <class Emit>
void each_pack(const Span& span, Emit&& emit) {
  for (int p = 0; p < span.packs; ++p)
    for (int k = 0; k < span.cols; ++k) emit(p, k);
}

// y[r] (+)= x[r] tile^T for R rows and NP packs of outputs.
template <int R, int NP>
void multiply(const float* x, int64_t ldx, int cols, const float (*tile)[COLS][LANES], float* y, int64_t ldy,
              int outputs, bool first, const float* bias) {
  F32x16 acc[R][NP];
  THICKETS_UNROLL(8)
  for (int r = 0; r < R; ++r) THICKETS_UNROLL(4)
  for (int p = 0; p < NP; ++p)
    acc[r][p] = first ? F32x16(0.0f) : load(y + r * ldy + p * LANES, clamp_lanes(outputs - p * LANES));
  for (int k = 0; k < cols; ++k) {
    F32x16 w[NP];
    THICKETS_UNROLL(4)
    for (int p = 0; p < NP; ++p) w[p] = load(tile[p][k]);
    THICKETS_UNROLL(8)
    for (int r = 0; r < R; ++r) {
      const F32x16 value(x[r * ldx + k]);
      THICKETS_UNROLL(4)
      for (int p = 0; p < NP; ++p) acc[r][p] = fma(value, w[p], acc[r][p]);
    }
  }
  THICKETS_UNROLL(8)
  for (int r = 0; r < R; ++r) THICKETS_UNROLL(4)
  for (int p = 0; p < NP; ++p) {
    const int n = clamp_lanes(outputs - p * LANES);
    if (bias) acc[r][p] = acc[r][p] + load(bias + p * LANES, n);
    store(y + r * ldy + p * LANES, acc[r][p], n);
  }
}

// The widest group of packs that leaves R rows in registers.
template <int R>
void multiply_panel(const float* x, int64_t ldx, const Span& span, const Tile& tile, float* y, int64_t ldy,
                    bool first, const float* bias) {
  constexpr int NP = 4 * R <= ACCUMULATORS ? 4 : 2 * R <= ACCUMULATORS ? 2 : 1;
  const auto packs = [&](int p, auto call) {
    call(x, ldx, span.cols, tile.v + p, y + p * LANES, ldy, span.outputs - p * LANES, first,
         bias ? bias + p * LANES : nullptr);
  };
  int p = 0;
  for (; p + NP <= span.packs; p += NP) packs(p, multiply<R, NP>);
  for (; p < span.packs; ++p) packs(p, multiply<R, 1>);
}

// All rows of one member, in panels of nearly equal height.
void multiply_rows(const float* x, int64_t ldx, int64_t rows, const Span& span, const Tile& tile, float* y,
                   int64_t ldy, bool first, const float* bias) {
  const int64_t panels = (rows + ROWS - 1) / ROWS;
  for (int64_t i = 0, r = 0; i < panels; ++i) {
    const int64_t height = (rows - r + panels - i - 1) / (panels - i);
    const auto panel = [&](auto call) { call(x + r * ldx, ldx, span, tile, y + r * ldy, ldy, first, bias); };
    switch (height) {
      case 1:
        panel(multiply_panel<1>);
        break;
      case 2:
        panel(multiply_panel<2>);
        break;
      case 3:
        panel(multiply_panel<3>);
        break;
      case 4:
        panel(multiply_panel<4>);
        break;
      case 5:
        panel(multiply_panel<5>);
        break;
      default:
        panel(multiply_panel<6>);
        break;
    }
    r += height;
  }
}

// Members in the order of their seeds, so that equal seeds stand together.
int compare_seeds(const void* a, const void* b) {
  const int64_t* x = static_cast<const int64_t*>(a);
  const int64_t* y = static_cast<const int64_t*>(b);
  return x[0] != y[0] ? (x[0] < y[0] ? -1 : 1) : (x[1] < y[1] ? -1 : x[1] > y[1]);
}

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

class LinearTask {
 public:
  LinearTask(const LinearArgs& args, const int64_t (*order)[2], Scratch& scratch)
      : a(args), order(order), s(scratch) {}

  // Members order[begin .. end), part `part` of `parts` of each member's rows.
  void run(int64_t output, int64_t begin, int64_t end, int64_t part, int64_t parts) {
    Span span{output, 0, 0, static_cast<int>(a.out - output < OUTPUTS ? a.out - output : OUTPUTS), 0};
    span.packs = (span.outputs + LANES - 1) / LANES;
    do {
      // Tiles end at multiples of COLS of the global columns, so that Philox calls are not cut.
      const int64_t aligned = COLS - (a.noise.col + span.k) % COLS;
      span.cols = static_cast<int>(aligned < a.in - span.k ? aligned : a.in - span.k);
      if (!a.member_stride) load_tile(a.weight, 0, span, s.weight);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = order[i][1];
        const Tile& tile = perturbed(span, i, begin, end);
        const int64_t rows = a.groups.offsets[n + 1] - a.groups.offsets[n];
        const int64_t r0 = rows * part / parts, r1 = rows * (part + 1) / parts;
        const float* x = a.x + (a.groups.shared ? r0 : a.groups.offsets[n] + r0) * a.ldx + span.k;
        float* y = a.y + (a.groups.offsets[n] + r0) * a.ldy + output;
        const bool last = span.k + span.cols == a.in;
        const float* bias = last && a.bias ? a.bias + n * a.bias_stride + output : nullptr;
        multiply_rows(x, a.ldx, r1 - r0, span, tile, y, a.ldy, span.k == 0 && a.weight.data, bias);
      }
      span.k += span.cols;
    } while (span.k < a.in);
  }

 private:
  // The tile that member order[i] multiplies with.
  const Tile& perturbed(const Span& span, int64_t i, int64_t begin, int64_t end) {
    const int64_t n = order[i][1];
    if (a.member_stride) load_tile(a.weight, n * a.member_stride, span, s.weight);
    if (a.noise.family == Family::none) return s.weight;
    const bool known = i > begin && order[i - 1][0] == order[i][0];
    const bool wanted = i + 1 < end && order[i + 1][0] == order[i][0];
    // Plain pointers, held by value down to the innermost loop: nothing is read again after each store.
    const F32x16 scale(a.groups.scales[n]);
    const auto weight = s.weight.v;
    const auto out = s.perturbed.v;
    const auto kept = s.eps.v;
    const auto form = [=](int p, int k, F32x16 eps)
                          THICKETS_LAMBDA { store(out[p][k], fma(scale, eps, load(weight[p][k]))); };
    if (!known && !wanted) {
      generate_tile(a.noise, order[i][0], span, form);
    } else {
      if (!known)
        generate_tile(a.noise, order[i][0], span,
                      [=](int p, int k, F32x16 eps) THICKETS_LAMBDA { store(kept[p][k], eps); });
      each_pack(span, [=](int p, int k) THICKETS_LAMBDA { form(p, k, load(kept[p][k])); });
    }
    if (a.storage && a.weight.dtype != Dtype::float32)
      each_pack(span, [&](int p, int k)
                          THICKETS_LAMBDA { store(out[p][k], rounded(load(out[p][k]), a.weight.dtype)); });
    return s.perturbed;
  }

  const LinearArgs& a;
  const int64_t (*order)[2];
  Scratch& s;
};

}  // namespace

void linear(const LinearArgs& a) {
  const int64_t members = a.groups.count, blocks = (a.out + OUTPUTS - 1) / OUTPUTS;
  if (members == 0 || blocks == 0) return;
#if THICKETS_ISA_INDEX > 0
  if (has_few_rows(a)) return linear_of_few_rows(a);
#endif
  const int64_t rows = a.groups.rows();
  const Team team(1.0 * (members + rows / 16) * a.out * a.in, sizeof(Scratch) / sizeof(float));
  auto order = reinterpret_cast<int64_t (*)[2]>(allocate_floats(4 * members));
  for (int64_t n = 0; n < members; ++n) {
    order[n][0] = a.noise.family == Family::none ? 0 : a.groups.seeds[n];
    order[n][1] = n;
  }
  if (a.noise.family != Family::none)
    qsort(order, static_cast<size_t>(members), sizeof(int64_t[2]), compare_seeds);

  // Enough tasks for the threads, and few enough rows to stay in the cache while their outputs are made one
  // after the other: first by chunks of members, then (at the price of forming W' again) by rows.
  const auto rounded_up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t wanted = team.size == 1 ? 1 : 4 * team.size, each = rounded_up(rows, members);
  const int64_t chunks = least(members, most(rounded_up(wanted, blocks), rounded_up(rows, CACHED_ROWS)));
  const int64_t by_tasks = least(wanted / (blocks * chunks), each / 64);
  const int64_t parts = most(most(by_tasks, 1), rounded_up(each, CACHED_ROWS));
#pragma omp parallel num_threads(team.size)
  {
    LinearTask task(a, order, *reinterpret_cast<Scratch*>(team.scratch()));
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < chunks * parts * blocks; ++i) {
      const int64_t chunk = i / (parts * blocks), part = i / blocks % parts, block = i % blocks;
      task.run(block * OUTPUTS, members * chunk / chunks, members * (chunk + 1) / chunks, part, parts);
    }
  }
  free(order);
}

}  // namespace THICKETS_ISA
}  // namespace thickets
