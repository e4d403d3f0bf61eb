// Perturbed rows and accumulated noise: embeddings, vectors, perturb_, the noise alone, accumulate_.
#include "convert.h"
#include "generate.h"
#include "hadamard.h"
#include "team.h"

namespace thickets {
namespace THICKETS_ISA {
namespace {

constexpr int COLS = 128;

// Up to 16 rows, each of its own seed.
struct Lanes {
  int count;
  int64_t seeds[LANES], rows[LANES];  // rows are global
};

// Columns col .. col + cols of a low-rank product: chain over the rank, then 1 / sqrt(R). A differs by lane,
// B is that of one seed. Writes cols packs to `tile`; `factors` holds those of RANKS ranks.
void generate_lowrank(const Parameter& p, const LaneKey& key, U32x16 rows, int64_t seed, int64_t col,
                      int cols, float* factors, float* tile) {
  float* a = factors;
  float* b = factors + RANKS * LANES;
  const LaneKey key_b = key_of(seed);
  memset(tile, 0, static_cast<size_t>(cols) * sizeof(float[LANES]));
  for (int rank = 0, ranks; rank < p.rank; rank += ranks) {
    ranks = p.rank - rank < RANKS ? p.rank - rank : RANKS;
    generate_factor(p, stream_lowrank_a, key, rows, rank, ranks,
                    [&](int k, F32x16 f) { store(a + k * LANES, f); });
    for (int j = 0; j < cols; j += LANES)
      generate_factor(p, stream_lowrank_b, key_b, iota(static_cast<uint32_t>(col + j)), rank, ranks,
                      [&](int k, F32x16 f) { store(b + k * COLS + j, f); });
    for (int j = 0; j < cols; ++j) {
      F32x16 sum = load(tile + j * LANES);
      for (int k = 0; k < ranks; ++k) sum = fma(load(a + k * LANES), F32x16(b[k * COLS + j]), sum);
      store(tile + j * LANES, sum);
    }
  }
  const F32x16 inverse_root(static_cast<float>(1.0 / ::sqrt(static_cast<double>(p.rank))));
  for (int j = 0; j < cols; ++j) store(tile + j * LANES, load(tile + j * LANES) * inverse_root);
}

// One row of hadamard noise, n floats: (1 / n) D3 H D2 H D1 H e_row; H e_row is a pattern of signs.
void hadamard_row(const Parameter& p, int64_t seed, int64_t row, int64_t n, float* out, uint32_t* signs) {
  const LaneKey key = key_of(seed);
  const int64_t block = row / n, index = row % n;
  for (int64_t i = 0; i < n; ++i)
    out[i] = __builtin_parityll(static_cast<uint64_t>(i & index)) ? -1.0f : 1.0f;
  diagonal(p, key, stream_hadamard_1, block, n, signs);
  hadamard_transform(out, out, n, signs);
  diagonal(p, key, stream_hadamard_2, block, n, signs);
  hadamard_transform(out, out, n, signs);
  diagonal(p, key, stream_hadamard_3, 0, n, signs);
  const F32x16 scale(1.0f / static_cast<float>(n));
  for (int64_t i = 0; i < n / LANES; ++i)
    store(out + i * LANES, flip(load(out + i * LANES), signs_of_pack(signs, i)) * scale);
}

// emit(lane, k, eps of columns col + k .. + n, n) for k in 0, 16, .. cols.
template <class Emit>
void each_pack(const Parameter& p, const Lanes& lanes, int64_t col, int64_t cols, float* scratch,
               Emit&& emit) {
  if (p.family == Family::hadamard) {
    const int64_t n = hadamard_length(p.full_cols);
    for (int l = 0; l < lanes.count; ++l) {
      hadamard_row(p, lanes.seeds[l], lanes.rows[l], n, scratch, reinterpret_cast<uint32_t*>(scratch + n));
      for (int64_t k = 0; k < cols; k += LANES)
        emit(l, k, load(scratch + col + k, clamp_lanes(cols - k)), clamp_lanes(cols - k));
    }
    return;
  }
  const LaneKey key = key_of(lanes.seeds, lanes.count);
  alignas(64) uint32_t row_words[LANES] = {};
  for (int l = 0; l < lanes.count; ++l) row_words[l] = static_cast<uint32_t>(lanes.rows[l]);
  const U32x16 rows = load(row_words);
  const auto keep = [=](int k, F32x16 eps) THICKETS_LAMBDA { store(scratch + k * LANES, eps); };
  for (int64_t begin = 0, width; begin < cols; begin += width) {
    // Tiles end at multiples of COLS of the global columns, so that Philox calls are not cut.
    const int64_t aligned = COLS - (col + begin) % COLS;
    width = aligned < cols - begin ? aligned : cols - begin;
    // A low-rank tile serves the lanes of one seed, the others all lanes.
    for (int l = 0, end; l < lanes.count; l = end) {
      end = lanes.count;
      if (p.family == Family::lowrank) {
        for (end = l + 1; end < lanes.count && lanes.seeds[end] == lanes.seeds[l];) ++end;
        generate_lowrank(p, key, rows, lanes.seeds[l], col + begin, static_cast<int>(width),
                         scratch + COLS * LANES, scratch);
      } else {
        with_dense_family(p.family, [&](auto family) {
          generate<decltype(family)::value>(p, key, rows, col + begin, static_cast<int>(width), keep);
        });
      }
      for (int64_t k = 0; k < width; k += LANES) {
        F32x16 block[16];
        for (int j = 0; j < 16; ++j) block[j] = load(scratch + (k + j) * LANES);
        transpose16(block);
        for (int i = l; i < end; ++i) emit(i, begin + k, block[i], clamp_lanes(width - k));
      }
    }
  }
}

// Floats of scratch that each_pack needs: a row and its signs, or a tile and low-rank factors.
int64_t scratch_floats(const Parameter& p) {
  if (p.family != Family::hadamard) return COLS * LANES + RANKS * (LANES + COLS);
  const int64_t n = hadamard_length(p.full_cols);
  return n + n / 32;
}

}  // namespace

void rows(const RowsArgs& a) {
  const Team team(1.0 * a.count * a.cols, scratch_floats(a.noise));
#pragma omp parallel num_threads(team.size)
  {
    float* scratch = team.scratch();
#pragma omp for schedule(dynamic)
    for (int64_t first = 0; first < a.count; first += LANES) {
      Lanes lanes;
      lanes.count = clamp_lanes(a.count - first);
      for (int l = 0; l < lanes.count; ++l) {
        lanes.seeds[l] = a.seeds[first + l];
        lanes.rows[l] = a.noise.row + a.rows[first + l];
      }
      each_pack(a.noise, lanes, a.noise.col, a.cols, scratch, [&](int l, int64_t k, F32x16 eps, int n) {
        if (a.weight.data)
          eps = fma(F32x16(a.scales[first + l]), eps, load(a.weight, a.rows[first + l] * a.weight.ld + k, n));
        store(a.out, (first + l) * a.out.ld + k, eps, n);
      });
    }
  }
}

void accumulate(const AccumulateArgs& a) {
  // Hadamard noise comes a whole row at a time; the others in tiles of 16 rows and COLS columns, W read once.
  const bool whole_rows = a.noise.family == Family::hadamard;
  const int64_t height = whole_rows ? 1 : LANES, width = whole_rows ? (a.cols > 0 ? a.cols : 1) : COLS;
  const int64_t across = (a.cols + width - 1) / width, down = (a.rows + height - 1) / height;
  const int64_t ld = (width + LANES - 1) / LANES * LANES;
  const Team team(1.0 * a.count * a.rows * a.cols, height * ld + scratch_floats(a.noise));
#pragma omp parallel num_threads(team.size)
  {
    float* sum = team.scratch();
    float* scratch = sum + height * ld;
#pragma omp for schedule(dynamic)
    for (int64_t t = 0; t < down * across; ++t) {
      const int64_t row = t / across * height, col = t % across * width;
      const int64_t cols = a.cols - col < width ? a.cols - col : width;
      Lanes lanes;
      lanes.count = static_cast<int>(a.rows - row < height ? a.rows - row : height);
      memset(sum, 0, static_cast<size_t>(height * ld) * sizeof(float));
      for (int64_t i = 0; i < a.count; ++i) {
        for (int l = 0; l < lanes.count; ++l) {
          lanes.seeds[l] = a.seeds[i];
          lanes.rows[l] = a.noise.row + row + l;
        }
        const F32x16 c(a.coefficients[i]);
        each_pack(a.noise, lanes, a.noise.col + col, cols, scratch, [&](int l, int64_t k, F32x16 eps, int n) {
          float* d = sum + l * ld + k;
          store(d, fma(c, eps, load(d, n)), n);
        });
      }
      for (int l = 0; l < lanes.count; ++l)
        for (int64_t k = 0; k < cols; k += LANES) {
          const int n = clamp_lanes(cols - k);
          const int64_t at = (row + l) * a.weight.ld + col + k;
          store(a.weight, at, load(a.weight, at, n) + load(sum + l * ld + k, n), n);
        }
    }
  }
}

}  // namespace THICKETS_ISA
}  // namespace thickets
