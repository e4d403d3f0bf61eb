// Dense noise as a quad of lanes makes it: four lines, each of a seed and a row, by 128 columns.
#pragma once
#include "decode.h"
#include "lines.h"
#include "normal.h"
#include "quad.h"

namespace thickets::cuda {

// One quad's block: 128 columns, which begin where those of Philox calls do, of each of its lines.
struct Block {
  int64_t line;     // which lines: the quotient of the quad's number by the blocks of a line
  uint32_t number;  // columns 128 number .. 128 number + 127 of the parameter
  int64_t start;    // its first column in the slice; negative where the slice begins within it
  Extent in;
};

inline int64_t blocks_of_line(const Parameter& p, int64_t cols) {
  return (p.col % LINE_BLOCK + cols + LINE_BLOCK - 1) / LINE_BLOCK;
}
inline dim3 grid_of_quads(int64_t quads, int threads) {
  return dim3(static_cast<uint32_t>((4 * quads + threads - 1) / threads));
}
THICKETS_DEVICE Block block_of_quad(const Parameter& p, int64_t blocks, int64_t cols) {
  const uint64_t quad = (static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 4;
  const uint32_t block = static_cast<uint32_t>(quad % static_cast<uint64_t>(blocks));
  const int64_t start = static_cast<int64_t>(block) * LINE_BLOCK - p.col % LINE_BLOCK;
  return {static_cast<int64_t>(quad / static_cast<uint64_t>(blocks)),
          static_cast<uint32_t>(p.col / LINE_BLOCK) + block, start, extent_of(start, cols)};
}

template <class Kernel>
Kernel for_dense_family(Family family, Kernel normal, Kernel normal4, Kernel rademacher) {
  return family == Family::normal ? normal : family == Family::normal4 ? normal4 : rademacher;
}

// Each lane brings one of the four lines. Then, line after line, it gets its chunks of that line: chunk c has
// the columns 32 c + 8 t .. 32 c + 8 t + 7 of the block.
template <Family family>
class QuadNoise {
 public:
  // block: columns 128 block .. 128 block + 127 of the parameter.
  THICKETS_MEMBER __device__ QuadNoise(const Parameter& p, uint32_t block, uint64_t seed, uint32_t row)
      : p(p), block(block), t(threadIdx.x % 4), seed(seed), row(row) {
    if constexpr (family == Family::rademacher) {
      // One call has all 128 columns: each lane draws its own line, then they share.
      Words<uint32_t> call[1] = {counter_at<uint32_t>(p, stream_rademacher, block, row)};
      philox4x32_10(call, key_of(seed));
      THICKETS_UNROLL(4)
      for (int j = 0; j < 4; ++j) drawn[j] = call[0].w[j];
    }
  }

  // The line that lane `from` of the warp brought becomes the current one. All lanes take part.
  THICKETS_MEMBER __device__ void draw(int from) {
    if constexpr (family == Family::rademacher) {
      THICKETS_UNROLL(4)
      for (int c = 0; c < 4; ++c) words[c] = shuffle(drawn[c], from) << (24 - 8 * t);
    } else {
      key = key_of(shuffle(seed, from));
      current = shuffle(row, from);
      if constexpr (family == Family::normal4) {
        Words<uint32_t> call[1] = {counter_at<uint32_t>(p, stream_normal4, 4 * block + t, current)};
        philox4x32_10(call, key);
        THICKETS_UNROLL(4)
        for (int c = 0; c < 4; ++c) words[c] = call[0].w[c];
        transpose_quad(words, t);
      }
    }
  }

  // v = fma(s, eps, v) in chunk c of the current line.
  THICKETS_MEMBER __device__ void add(int c, float s, float (&v)[CHUNK_COLUMNS]) const {
    float eps[CHUNK_COLUMNS];
    chunk(c, eps);
    THICKETS_UNROLL(8)
    for (int i = 0; i < CHUNK_COLUMNS; ++i) v[i] = fma(s, eps[i], v[i]);
  }

 private:
  THICKETS_MEMBER __device__ static Key<uint32_t> key_of(uint64_t seed) {
    return schedule(static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  }

  THICKETS_MEMBER __device__ void chunk(int c, float (&eps)[CHUNK_COLUMNS]) const {
    if constexpr (family == Family::normal4) {
      uint32_t pairs[4];
      decode_normal4<Dtype::bfloat16>(words[c], pairs);
      THICKETS_UNROLL(8)
      for (int i = 0; i < CHUNK_COLUMNS; ++i)
        eps[i] =
            i % 2 ? unpack_high<Dtype::bfloat16>(pairs[i / 2]) : unpack_low<Dtype::bfloat16>(pairs[i / 2]);
    } else if constexpr (family == Family::rademacher) {
      THICKETS_UNROLL(8)
      for (int i = 0; i < CHUNK_COLUMNS; ++i)
        eps[i] = as_float(and_or(words[c] << (7 - i), 0x80000000u, 0x3F800000u));
    } else {
      Words<uint32_t> calls[2];
      THICKETS_UNROLL(2)
      for (int i = 0; i < 2; ++i)
        calls[i] = counter_at<uint32_t>(p, stream_normal, 32 * block + 8 * c + 2 * t + i, current);
      philox4x32_10(calls, key);
      THICKETS_UNROLL(4)
      for (int i = 0; i < 4; ++i) {
        const uint32_t (&w)[4] = calls[i / 2].w;
        fast_normals(w[2 * (i % 2)], w[2 * (i % 2) + 1], eps[2 * i], eps[2 * i + 1]);
      }
    }
  }

  const Parameter& p;
  const uint32_t block;
  const int t;
  const uint64_t seed;  // of this lane's line
  const uint32_t row;
  uint32_t drawn[4];  // rademacher: bits of this lane's line
  uint32_t words[4];  // of the current line: one for each chunk
  Key<uint32_t> key;
  uint32_t current;  // its row
};

}  // namespace thickets::cuda
