"""The fast Walsh-Hadamard transform and diagonals of signs, on rows in registers (docs/noise.md, section 5).

G is the unnormalised Walsh-Hadamard matrix, entries (-1)^popcount(i & j). Signs travel as words of 32 bits
and are spread where they are used, in the layout of what they multiply.
"""

import triton
import triton.language as tl

from .noise import words


@triton.constexpr_function
def levels(n: int) -> int:
    """log2 of a power of two."""
    return n.bit_length() - 1


@triton.jit
def transform(x, N: tl.constexpr, ROWS: tl.constexpr):
    """G x for every row of x, float32 [ROWS, N] with N a power of two.

    Each level adds and subtracts neighbours and rotates the index by one bit, so that the next level finds
    its bit lowest; after all of them the order is restored. Where a bit lies within a thread, it only adds.
    """
    for _ in tl.static_range(levels(N)):
        a, b = tl.split(tl.reshape(x, (ROWS, N // 2, 2)))
        x = tl.reshape(tl.permute(tl.join(a + b, a - b), (0, 2, 1)), (ROWS, N))
    return x


@triton.jit
def diagonal_words(seed, id_low, id_high, stream: tl.constexpr, row, start, COLS: tl.constexpr):
    """The signs of diagonals as bits, uint32 [rows, COLS // 32]: bit i & 31 of word i // 32.

    row: row blocks, int [rows]; start: the first column, a multiple of 128, as COLS is.
    """
    ROWS: tl.constexpr = row.shape[0]
    call = start // 128 + tl.arange(0, COLS // 128)
    w0, w1, w2, w3 = words(seed, id_low, id_high, stream, row[:, None], call[None, :])
    return tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (ROWS, COLS // 32))


@triton.jit
def row_words(row, start, COLS: tl.constexpr):
    """The signs of rows of G, (-1)^popcount(row & i), as `diagonal_words` has them; row: int32 [rows] < n."""
    i = start + 32 * tl.arange(0, COLS // 32)
    v = row[:, None] & i[None, :]
    v = v ^ (v >> 16)
    v = v ^ (v >> 8)
    v = v ^ (v >> 4)
    v = v ^ (v >> 2)
    high = -((v ^ (v >> 1)) & 1)  # the sign of a word's first column; within a word a pattern of five bits:
    low = tl.where(row & 1 != 0, 0x55555555 << 1, 0)
    low = low ^ tl.where(row & 2 != 0, 0x33333333 << 2, 0)
    low = low ^ tl.where(row & 4 != 0, 0x0F0F0F0F << 4, 0)
    low = low ^ tl.where(row & 8 != 0, 0x00FF00FF << 8, 0)
    low = low ^ tl.where(row & 16 != 0, 0x0000FFFF << 16, 0)
    return high.to(tl.uint32, bitcast=True) ^ low[:, None].to(tl.uint32)


@triton.jit
def sign_bits(word, N: tl.constexpr):
    """Words [rows, N // 32] -> sign bits [rows, N // 32, 32], 0 or 2^31: spread where they are used."""
    ROWS: tl.constexpr = word.shape[0]
    shift = (31 - tl.arange(0, 32)).to(tl.uint32)
    return (tl.reshape(word, (ROWS, N // 32, 1)) << shift[None, None, :]) & 0x80000000


@triton.jit
def diagonal(x, word, N: tl.constexpr, ROWS: tl.constexpr):
    """D x for every row of x, float32 [ROWS, N]: signs [ROWS, N // 32], or [1, N // 32] for all rows."""
    bits = tl.reshape(x, (ROWS, N // 32, 32)).to(tl.uint32, bitcast=True) ^ sign_bits(word, N)
    return tl.reshape(bits.to(tl.float32, bitcast=True), (ROWS, N))


@triton.jit
def quarters(x, N: tl.constexpr, ROWS: tl.constexpr):
    """The quarters of the columns of x, [ROWS, N // 4]: finished one by one, they need fewer registers."""
    even, odd = tl.split(tl.permute(tl.reshape(x, (ROWS, 2, 2, N // 4)), (0, 3, 1, 2)))
    q0, q2 = tl.split(even)
    q1, q3 = tl.split(odd)
    return q0, q1, q2, q3
