// How a warp's tile of W, 32 outputs by 128 columns, lies in the left operands of mma.m16n8k16, and which
// columns of x meet it. The tensor core sums over its 16 slots for k in whatever order, so a lane may own
// consecutive columns: what a Philox call gives, it uses in place, and nothing passes through shared memory.
//
// Lane 4 g + t has the outputs g, g + 8, g + 16 and g + 24 and the columns 32 t .. 32 t + 31, as 16 pairs of
// each output. Product j (0 .. 7) of outputs 16 m .. 16 m + 15 takes pairs 2 j and 2 j + 1. Host and device
// functions: tests/native/fragments.cpp multiplies through them.
#pragma once
#include "../noise.h"

namespace thickets::cuda {

constexpr int TILE_OUT = 32, TILE_COLUMNS = 128;  // of a warp's tile
constexpr int PAIRS = 16, PRODUCTS = 8;           // of a lane and output; of a tile and 16 outputs

// The column of one half (0: low, 1: high) of a lane's pair. Rademacher bits i and i + 16 are one shift away
// from their places in a pair, so they are neighbours there.
THICKETS_INLINE int column_of(Family family, int t, int pair, int half) {
  return 32 * t + (family == Family::rademacher ? pair + 16 * half : 2 * pair + half);
}

// The output, within the tile, of a lane's row r = 0 .. 3.
THICKETS_INLINE int output_of(int g, int r) { return g + 8 * r; }

// The left operand's register i (0 .. 3) of product j and outputs 16 m .. 16 m + 15: which of the lane's rows
// and pairs it is. The right operand's registers 0 and 1 are pairs 2 j and 2 j + 1 of x row g.
THICKETS_INLINE int row_of_register(int m, int i) { return 2 * m + i % 2; }
THICKETS_INLINE int pair_of_register(int j, int i) { return 2 * j + i / 2; }

// Of the sums c of a lane, entry i is x row 2 t + i % 2 and the output of row 2 m + i / 2.
THICKETS_INLINE int row_of_sum(int m, int i) { return 2 * m + i / 2; }
THICKETS_INLINE int x_row_of_sum(int t, int i) { return 2 * t + i % 2; }

}  // namespace thickets::cuda
