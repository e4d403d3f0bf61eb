// The fused product's index maps (csrc/cuda/fragment.h) and its decoders (decode.h), for
// tests/test_cuda_fragments.py. What the tensor core does with a fragment is written out here, from the PTX
// ISA's tables for mma.m16n8k16.
//
// fragments multiply FAMILY  W [32, 128] and x [8, 128] of bfloat16 from stdin; y = x W^T [8, 32] of float32
// fragments places FAMILY    the output and column of every lane's every entry: uint32 [32, 4, 16, 2, 2]
// fragments decode           how many entries differ from noise.h: normal4 and rademacher, both dtypes
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "cuda/decode.h"
#include "cuda/fragment.h"

namespace {

using namespace thickets;
using namespace thickets::cuda;

constexpr int LANES = 32, ROWS = 4;  // of a warp; outputs of a lane

float value(uint16_t bfloat16) { return as_float(static_cast<uint32_t>(bfloat16) << 16); }
float half_of(uint32_t pair, int half) { return value(static_cast<uint16_t>(half ? pair >> 16 : pair)); }

// The registers of a warp's operands and sums.
struct Warp {
  uint32_t a[LANES][4], b[LANES][2];
  float c[LANES][4];
};

// mma.m16n8k16 row.col. PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type", with g = lane
// / 4 and t = lane % 4:
//   A: row g for a0, a1 and a4, a5, else g + 8; column 2 t + (i & 1), and 8 more from a4 on
//   B: row 2 t + (i & 1), and 8 more from b2 on; column g
//   C: row g for c0, c1, else g + 8; column 2 t + (i & 1)
void multiply(Warp& w) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < LANES; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 8; ++i) {
      const bool above = i < 2 || (i >= 4 && i < 6);
      a[above ? g : g + 8][2 * t + (i & 1) + (i < 4 ? 0 : 8)] = half_of(w.a[lane][i / 2], i & 1);
    }
    for (int i = 0; i < 4; ++i) b[2 * t + (i & 1) + (i < 2 ? 0 : 8)][g] = half_of(w.b[lane][i / 2], i & 1);
  }
  for (int lane = 0; lane < LANES; ++lane)
    for (int i = 0; i < 4; ++i)
      for (int k = 0; k < 16; ++k)
        w.c[lane][i] += a[i < 2 ? lane / 4 : lane / 4 + 8][k] * b[k][2 * (lane % 4) + (i & 1)];
}

// The pair of columns that a lane holds of one row of a matrix.
uint32_t pair_of(Family family, const uint16_t* row, int t, int pair) {
  const uint32_t low = row[column_of(family, t, pair, 0)], high = row[column_of(family, t, pair, 1)];
  return low | high << 16;
}

void product(Family family) {
  static uint16_t w[TILE_OUT][TILE_COLUMNS], x[8][TILE_COLUMNS];
  static float y[8][TILE_OUT];
  if (fread(w, sizeof w, 1, stdin) != 1 || fread(x, sizeof x, 1, stdin) != 1) exit(2);
  for (int m = 0; m < TILE_OUT / 16; ++m) {
    Warp warp{};
    for (int j = 0; j < PRODUCTS; ++j) {
      for (int lane = 0; lane < LANES; ++lane) {
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; ++i)
          warp.a[lane][i] =
              pair_of(family, w[output_of(g, row_of_register(m, i))], t, pair_of_register(j, i));
        for (int i = 0; i < 2; ++i) warp.b[lane][i] = pair_of(family, x[g], t, 2 * j + i);
      }
      multiply(warp);
    }
    for (int lane = 0; lane < LANES; ++lane)
      for (int i = 0; i < 4; ++i)
        y[x_row_of_sum(lane % 4, i)][output_of(lane / 4, row_of_sum(m, i))] = warp.c[lane][i];
  }
  fwrite(y, sizeof y, 1, stdout);
}

void places(Family family) {
  for (int lane = 0; lane < LANES; ++lane)
    for (int r = 0; r < ROWS; ++r)
      for (int pair = 0; pair < PAIRS; ++pair)
        for (int half = 0; half < 2; ++half) {
          const uint32_t place[2] = {static_cast<uint32_t>(output_of(lane / 4, r)),
                                     static_cast<uint32_t>(column_of(family, lane % 4, pair, half))};
          fwrite(place, sizeof place, 1, stdout);
        }
}

// Entries of a word that come out otherwise than noise.h has them.
template <Dtype dtype>
int wrong(uint32_t word) {
  const float magnitudes[8] = THICKETS_NORMAL4_MAGNITUDES;
  uint32_t pairs[4];
  int found = 0;
  decode_normal4<dtype>(word, pairs);
  for (int i = 0; i < 8; ++i) {
    const float entry = i % 2 ? unpack_high<dtype>(pairs[i / 2]) : unpack_low<dtype>(pairs[i / 2]);
    found += bits(entry) != bits(normal4_entry<float>(word, i, magnitudes));
  }
  for (int i = 0; i < 16; ++i) {
    const uint32_t pair = decode_rademacher<dtype>(word, i);
    found += bits(unpack_low<dtype>(pair)) != bits(rademacher_entry<float>(word, i));
    found += bits(unpack_high<dtype>(pair)) != bits(rademacher_entry<float>(word, i + 16));
  }
  return found;
}

// Every low half and every high half, each beside halves that change from word to word.
int decoded() {
  long found = 0;
  for (uint32_t half = 0; half < 1u << 16; ++half) {
    const uint32_t other = half * 40503u & 0xffffu;
    for (const uint32_t word : {half | other << 16, half << 16 | other})
      found += wrong<Dtype::bfloat16>(word) + wrong<Dtype::float16>(word);
  }
  printf("%ld\n", found);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  if (what == "decode") return decoded();
  const auto family = static_cast<Family>(argc > 2 ? atoi(argv[2]) : 0);
  what == "multiply" ? product(family) : places(family);
  return 0;
}
