// The left operand of the fused product: noise, or W', of a lane's four rows by 32 columns, in place
// (fragment.h).
#pragma once
#include "decode.h"
#include "normal.h"
#include "quad.h"

namespace thickets::cuda {

// The round keys of a seed, in registers: what comes by a shuffle is not computed anew in every step.
THICKETS_DEVICE Key<uint32_t> held_key(uint64_t seed) {
  Key<uint32_t> key = schedule(static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  THICKETS_UNROLL(10)
  for (int r = 0; r < 10; ++r) {
    key.k0[r] = shuffle(key.k0[r], 0);
    key.k1[r] = shuffle(key.k1[r], 0);
  }
  return key;
}

// W' = fma(s, eps, W), rounded to the dtype of W.
template <Dtype dtype>
THICKETS_DEVICE uint32_t perturbed(float s, uint32_t eps, uint32_t w) {
  return pack<dtype>(fma(s, unpack_low<dtype>(eps), unpack_low<dtype>(w)),
                     fma(s, unpack_high<dtype>(eps), unpack_high<dtype>(w)));
}

// The noise of a lane's four rows by 32 columns: 16 pairs a row, four at a time.
template <Family family, Dtype dtype>
struct LaneNoise {
  const Parameter& p;
  const Key<uint32_t> key;
  const uint32_t row, t;  // of the lane's first output; rows are 8 apart
  uint32_t words[4][4];

  // The bits for columns 128 block .. 128 block + 127 of the parameter.
  THICKETS_MEMBER __device__ void draw(uint32_t block) {
    if constexpr (family == Family::normal4) {
      Words<uint32_t> calls[4];
      THICKETS_UNROLL(4)
      for (int r = 0; r < 4; ++r)
        calls[r] = counter_at<uint32_t>(p, stream_normal4, 4 * block + t, row + 8 * r);
      philox4x32_10(calls, key);
      THICKETS_UNROLL(4)
      for (int r = 0; r < 4; ++r) THICKETS_UNROLL(4)
      for (int c = 0; c < 4; ++c) words[r][c] = calls[r].w[c];
    } else if constexpr (family == Family::rademacher) {
      // One call has all 128 columns of a row: each lane of a quad draws one row, then they share.
      Words<uint32_t> call[1] = {counter_at<uint32_t>(p, stream_rademacher, block, row + 8 * t)};
      philox4x32_10(call, key);
      transpose_quad(call[0].w, t);
      THICKETS_UNROLL(4)
      for (int r = 0; r < 4; ++r) words[r][0] = call[0].w[r];
    }
  }

  // Pairs 4 c .. 4 c + 3 of row r: eps, or W' where there are pairs of W.
  template <bool weighted>
  THICKETS_MEMBER __device__ void pairs(uint32_t block, int c, int r, float s, const uint32_t (&w)[4],
                                        uint32_t (&out)[4]) const {
    if constexpr (family == Family::normal) {
      Words<uint32_t> calls[2];
      THICKETS_UNROLL(2)
      for (int i = 0; i < 2; ++i)
        calls[i] = counter_at<uint32_t>(p, stream_normal, 32 * block + 8 * t + 2 * c + i, row + 8 * r);
      philox4x32_10(calls, key);
      THICKETS_UNROLL(4)
      for (int q = 0; q < 4; ++q) {
        const uint32_t (&bits)[4] = calls[q / 2].w;
        float low, high;
        fast_normals(bits[2 * (q % 2)], bits[2 * (q % 2) + 1], low, high);
        if constexpr (weighted) {
          low = fma(s, low, unpack_low<dtype>(w[q]));
          high = fma(s, high, unpack_high<dtype>(w[q]));
        }
        out[q] = pack<dtype>(low, high);
      }
    } else {
      if constexpr (family == Family::normal4) decode_normal4<dtype>(words[r][c], out);
      THICKETS_UNROLL(4)
      for (int q = 0; q < 4; ++q) {
        if constexpr (family == Family::rademacher) out[q] = decode_rademacher<dtype>(words[r][0], 4 * c + q);
        if constexpr (family == Family::none) out[q] = w[q];
        if constexpr (weighted && family != Family::none) out[q] = perturbed<dtype>(s, out[q], w[q]);
      }
    }
  }
};

// Whether column k of a lane's 32 lies within the slice; eight do, or do not, together.
struct Inside {
  int at, in;
  THICKETS_MEMBER __device__ bool operator()(int k) const {
    return static_cast<uint32_t>(at + k) < static_cast<uint32_t>(in);
  }
};

// Pairs 4 c .. 4 c + 3 of a lane's 32 columns in a row of x or W, zeros from outside.
template <Family family>
THICKETS_DEVICE void load_pairs(const uint16_t* run, bool wanted, const Inside& here, int c,
                                uint32_t (&out)[4]) {
  if constexpr (family == Family::rademacher) {
    const uint2 low = load8_if(wanted && here(4 * c), run + 4 * c);
    const uint2 high = load8_if(wanted && here(4 * c + 16), run + 4 * c + 16);
    out[0] = permute_bytes(low.x, high.x, 0x5410);
    out[1] = permute_bytes(low.x, high.x, 0x7632);
    out[2] = permute_bytes(low.y, high.y, 0x5410);
    out[3] = permute_bytes(low.y, high.y, 0x7632);
  } else {
    const uint4 all = load16_if(wanted && here(8 * c), run + 8 * c);
    out[0] = all.x;
    out[1] = all.y;
    out[2] = all.z;
    out[3] = all.w;
  }
}

}  // namespace thickets::cuda
