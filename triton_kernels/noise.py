"""The noise contract (docs/noise.md) as Triton device functions: the twin of csrc/noise.h.

Every step is an integer operation or a float32 operation rounded once, so that a GPU, the interpreter and the
CPU backends agree bit for bit; kernels that call these are compiled with `enable_fp_fusion=False`
(tuning.py). Tiles are in natural order: a thread makes neighbouring columns, which joins put side by side.
"""

import torch
import triton
import triton.language as tl
from triton import knobs

# Families as in csrc/noise.h; NONE is a plain product.
NONE = tl.constexpr(0)
NORMAL = tl.constexpr(1)
NORMAL4 = tl.constexpr(2)
RADEMACHER = tl.constexpr(3)
HADAMARD = tl.constexpr(4)
LOWRANK = tl.constexpr(5)

ALIGNMENT = 128  # tiles begin at multiples of it: there a Philox call of every dense family does

# Section 3: stream numbers, the low three bits of counter word c3.
STREAM_NORMAL = tl.constexpr(0)
STREAM_NORMAL4 = tl.constexpr(1)
STREAM_RADEMACHER = tl.constexpr(2)
STREAM_A = tl.constexpr(3)
STREAM_B = tl.constexpr(4)
STREAM_D1 = tl.constexpr(5)
STREAM_D2 = tl.constexpr(6)
STREAM_D3 = tl.constexpr(7)


@triton.jit
def words(seed, id_low, id_high, stream: tl.constexpr, row, block):
    """The four words of (row, block) in one of a parameter's streams (section 2), uint32.

    seed: int64; id_low: counter word c2; id_high: c3 without its stream, both as int32 bit patterns.
    """
    zero = tl.zeros_like(row + block)
    c0, c1 = (zero + block).to(tl.int32), (zero + row).to(tl.int32)
    return tl.philox(seed, c0, c1, (zero + id_low).to(tl.int32), (zero + (id_high | stream)).to(tl.int32), 10)


@triton.jit
def root(x, inverse):
    """The correctly rounded square root of a float32 x that is +-0 or within 1e-30 .. 1e30.

    `inverse` is 1 / sqrt(x), wrong by at most 5 units in the last place (PTX promises 2.2 of rsqrt.approx).
    Two Newton steps and a correction make it right, without the branches of tl.sqrt_rn.
    """
    y, half = x * inverse, -0.5 * inverse
    error = tl.fma(y, half, 0.5)
    y, half = tl.fma(y, error, y), tl.fma(half, error, half)
    return tl.where(x == 0, x, tl.fma(tl.fma(y, y, -x), half, y))


@triton.jit
def box_muller(w_a, w_b):
    """Two normals of two words (section 4, step by step)."""
    x = ((w_a >> 1) | 1).to(tl.int32, bitcast=True).to(tl.float32)
    bits = x.to(tl.int32, bitcast=True)
    e = (bits - 0x3F3504F3) >> 23
    t = (bits - (e << 23)).to(tl.float32, bitcast=True) - 1.0
    t2 = t * t
    t4 = t2 * t2
    high = tl.fma(tl.fma(t, 0.28733575, -0.29904565), t2, tl.fma(t, 0.33124804, -0.39913666))
    low = tl.fma(tl.fma(t, 0.5000415, -0.66668373), t2, tl.fma(t, 0.99999976, -2.0))
    p = tl.fma(tl.fma(t4, -0.17444487, high), t4, low)
    square = tl.fma((e - 31).to(tl.float32), -1.3862944, p * t)
    r = root(square, tl.rsqrt(square))
    v = w_b + 0x20000000
    f = (w_b << 2).to(tl.int32, bitcast=True).to(tl.float32) * 4.656612873077393e-10  # 2^-31
    q = f * f
    sine = tl.fma(tl.fma(tl.fma(q, -3.595451e-05, 0.002490007), q, -0.080745436), q, 0.7853982) * f
    cosine = tl.fma(tl.fma(tl.fma(q, -0.0003188805, 0.015849914), q, -0.30842426), q, 1.0)
    swap = (v & 0x40000000) != 0
    a = tl.where(swap, sine, cosine).to(tl.uint32, bitcast=True) ^ ((v ^ (v << 1)) & 0x80000000)
    b = tl.where(swap, cosine, sine).to(tl.uint32, bitcast=True) ^ (v & 0x80000000)
    return r * a.to(tl.float32, bitcast=True), r * b.to(tl.float32, bitcast=True)


@triton.jit
def four_normals(seed, id_low, id_high, stream: tl.constexpr, row, block):
    """The normals of columns 4 * block .. 4 * block + 3."""
    w0, w1, w2, w3 = words(seed, id_low, id_high, stream, row, block)
    z0, z1 = box_muller(w0, w1)
    z2, z3 = box_muller(w2, w3)
    return z0, z1, z2, z3


@triton.jit
def _in_order(w0, w1, w2, w3):
    """[...] x 4 -> [..., 2, 2], which flattens to the order 0, 1, 2, 3."""
    return tl.join(tl.join(w0, w2), tl.join(w1, w3))


# A word $8 -> its eight normal4 entries $0 .. $7 in bfloat16, which holds them exactly. A nibble picks a byte
# of each of two tables: low and high halves of magnitudes. Sign bits lie where the high bytes have theirs.
NORMAL4_PTX = tl.constexpr("""{
.reg .b32 pick, low, high, pair;
and.b32 pick, $8, 0x77777777;
prmt.b32 low, 0x09BC5C91, 0x08A27238, pick;
prmt.b32 high, 0x3F3E3E3D, 0x403F3F3F, pick;
and.b32 pair, $8, 0x80808080;
or.b32 high, high, pair;
prmt.b32 pair, low, high, 0x5140;
mov.b32 {$0, $1}, pair;
prmt.b32 pair, low, high, 0x7362;
mov.b32 {$2, $3}, pair;
shr.u32 pick, pick, 16;
prmt.b32 low, 0x09BC5C91, 0x08A27238, pick;
prmt.b32 high, 0x3F3E3E3D, 0x403F3F3F, pick;
shl.b32 pair, $8, 4;
and.b32 pair, pair, 0x80808080;
or.b32 high, high, pair;
prmt.b32 pair, low, high, 0x5140;
mov.b32 {$4, $5}, pair;
prmt.b32 pair, low, high, 0x7362;
mov.b32 {$6, $7}, pair;
}""")
HAS_PTX = tl.constexpr(not knobs.runtime.interpret and torch.version.hip is None)
EIGHT_BFLOAT16 = tl.constexpr((tl.bfloat16,) * 8)


@triton.jit
def _normal4_by_bytes(w):
    """Words [...] -> their eight entries [..., 2, 2, 2], on NVIDIA GPUs: 1.6 instructions an entry."""
    e0, e1, e2, e3, e4, e5, e6, e7 = tl.inline_asm_elementwise(
        NORMAL4_PTX, "=h,=h,=h,=h,=h,=h,=h,=h,r", [w], dtype=EIGHT_BFLOAT16, is_pure=True, pack=1
    )
    return tl.join(_in_order(e0, e2, e4, e6), _in_order(e1, e3, e5, e7)).to(tl.float32)


@triton.jit
def _normal4_by_selects(w):
    """Words [...] -> their eight entries [..., 2, 2, 2], anywhere: 9 instructions an entry."""
    index = tl.join(w, w >> 16)
    index = tl.join(index, index >> 8)
    index = tl.join(index, index >> 4)  # element i: w >> 4 i, its magnitude in the low three bits
    sign = tl.join(w, w << 4)
    sign = tl.join(sign << 16, sign)
    sign = tl.join(sign << 8, sign)  # element i: its sign bit on top
    bit0, bit1 = (index & 1) != 0, (index & 2) != 0
    small = tl.where(bit1, tl.where(bit0, 0.53515625, 0.3671875), tl.where(bit0, 0.21484375, 0.07080078125))
    large = tl.where(bit1, tl.where(bit0, 2.125, 1.265625), tl.where(bit0, 0.9453125, 0.71875))
    magnitude = tl.where((index & 4) != 0, large, small).to(tl.uint32, bitcast=True)
    return (magnitude | (sign & 0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def _signs(w):
    """Words [...] -> their 32 bits [..., 2, 2, 2, 2, 2], each the top bit of its lane."""
    w = tl.join(w << 16, w)
    w = tl.join(w << 8, w)
    w = tl.join(w << 4, w)
    w = tl.join(w << 2, w)
    return tl.join(w << 1, w)


@triton.jit
def dense_tile(seed, id_low, id_high, row, col, FAMILY: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Entries [ROWS, COLS] of a dense family, float32 (section 3).

    row: int32 [ROWS]; col: the first column, a multiple of 128, as COLS is.
    """
    if FAMILY == NORMAL:
        block = col // 4 + tl.arange(0, COLS // 4)
        z0, z1, z2, z3 = four_normals(seed, id_low, id_high, STREAM_NORMAL, row[:, None], block[None, :])
        return tl.reshape(_in_order(z0, z1, z2, z3), (ROWS, COLS))
    elif FAMILY == NORMAL4:
        block = col // 32 + tl.arange(0, COLS // 32)
        w0, w1, w2, w3 = words(seed, id_low, id_high, STREAM_NORMAL4, row[:, None], block[None, :])
        w = _in_order(w0, w1, w2, w3)
        if HAS_PTX:
            return tl.reshape(_normal4_by_bytes(w), (ROWS, COLS))
        else:
            return tl.reshape(_normal4_by_selects(w), (ROWS, COLS))
    else:
        tl.static_assert(FAMILY == RADEMACHER)
        block = col // 128 + tl.arange(0, COLS // 128)
        w0, w1, w2, w3 = words(seed, id_low, id_high, STREAM_RADEMACHER, row[:, None], block[None, :])
        sign = _signs(_in_order(w0, w1, w2, w3)) & 0x80000000
        return tl.reshape((sign | 0x3F800000).to(tl.float32, bitcast=True), (ROWS, COLS))


@triton.jit
def lowrank_tile(seed, id_low, id_high, row, col, RANK: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Entries [ROWS, COLS] of lowrank-RANK times sqrt(RANK), float32; row: [ROWS], col: [COLS]."""
    tile = tl.zeros((ROWS, COLS), tl.float32)
    for block in range(0, (RANK + 3) // 4):
        a0, a1, a2, a3 = four_normals(seed, id_low, id_high, STREAM_A, row, block)
        b0, b1, b2, b3 = four_normals(seed, id_low, id_high, STREAM_B, col, block)
        tile = tl.fma(a0[:, None], b0[None, :], tile)
        # A factor beyond the rank is zero: fma(0, b, d) is d, since d is never -0.
        if RANK > 1:
            tile = tl.fma(tl.where(4 * block + 1 < RANK, a1, 0.0)[:, None], b1[None, :], tile)
        if RANK > 2:
            tile = tl.fma(tl.where(4 * block + 2 < RANK, a2, 0.0)[:, None], b2[None, :], tile)
        if RANK > 3:
            tile = tl.fma(tl.where(4 * block + 3 < RANK, a3, 0.0)[:, None], b3[None, :], tile)
    return tile
