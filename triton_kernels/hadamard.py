"""Hadamard noise (docs/noise.md, section 5): three fast transforms per row in place of a row of entries."""

import triton
import triton.language as tl

from .noise import STREAM_D1, STREAM_D2, STREAM_D3, flip, sign_tile


@triton.jit
def transform(x, N: tl.constexpr, ROWS: tl.constexpr):
    """G x: the unnormalised Walsh-Hadamard transform of every row of x [ROWS, N], N a power of two.

    Each level adds and subtracts neighbours and rotates the index by one bit, so that the next level finds its
    bit lowest; after all of them the order is restored. Levels whose bit lies within a thread only add.
    """
    LEVELS: tl.constexpr = tl.standard._log2(N)
    for _ in tl.static_range(LEVELS):
        a, b = tl.split(tl.reshape(x, (ROWS, N // 2, 2)))
        x = tl.reshape(tl.permute(tl.join(a + b, a - b), (0, 2, 1)), (ROWS, N))
    return x


@triton.jit
def parity_sign(row, N: tl.constexpr):
    """The sign bits of rows of G, uint32 [ROWS, N]: (-1)^popcount(row & column); row [ROWS] < N."""
    v = row[:, None] & tl.arange(0, N)[None, :]
    v = v ^ (v >> 16)
    v = v ^ (v >> 8)
    v = v ^ (v >> 4)
    v = v ^ (v >> 2)
    return (v ^ (v >> 1)).to(tl.uint32, bitcast=True) << 31


@triton.jit
def hadamard_tile(seed, id_low, id_high, row, N: tl.constexpr, ROWS: tl.constexpr):
    """Whole rows of eps, exact float32 [ROWS, N]; row: int64 [ROWS], N = n of the parameter."""
    block = row // N
    sign = sign_tile(seed, id_low, id_high, STREAM_D1, block, 0, ROWS, N)
    sign = sign ^ parity_sign((row % N).to(tl.int32), N)  # D1 times the row of G
    x = transform((sign | 0x3F800000).to(tl.float32, bitcast=True), N, ROWS)
    x = transform(flip(x, sign_tile(seed, id_low, id_high, STREAM_D2, block, 0, ROWS, N)), N, ROWS)
    zero = tl.zeros_like(block)
    return flip(x, sign_tile(seed, id_low, id_high, STREAM_D3, zero, 0, ROWS, N)) * (1.0 / N)
