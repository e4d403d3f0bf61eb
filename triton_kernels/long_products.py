"""Products with hadamard noise of rows too long for one program: the same transforms, through memory."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from thickets import long_rows
from thickets.operands import Members, Noise

from .groups import member_of_row
from .launch import member_arguments, noise_arguments
from .transform import diagonal, diagonal_words, transform
from .tuning import Tuned, config

LOW = tl.constexpr(4096)  # columns of a first pass, whose butterflies have strides below it
ELEMENTS = 1 << 25  # of transformed rows at a time: 128 MiB each of z and u


@triton.jit(do_not_specialize=["start", "id_low", "id_high", "block", "count", "rows", "total"])
def low_kernel(
    u,  # float32 [lines, n]
    z,  # the same
    start,  # line of all rows of activations that line 0 belongs to
    seeds,
    sigmas,
    offsets,
    scale,
    id_low,
    id_high,
    block,
    count,
    rows,
    total,
    n,
    STREAM: tl.constexpr,
    MEMBERS: tl.constexpr,
    LOW: tl.constexpr,
):
    """u = the transform over the low bits of the column of D z, D the diagonal of a stream and row block."""
    line = tl.program_id(0).to(tl.int64)
    member = member_of_row(start + line, offsets, count, rows, total, offsets is not None, MEMBERS)
    begin = tl.program_id(1) * LOW
    at = line * n + begin + tl.arange(0, LOW)
    row = tl.zeros((1,), tl.int32) + block
    word = diagonal_words(tl.load(seeds + member), id_low, id_high, STREAM, row, begin, LOW)
    b_z = tl.reshape(tl.load(z + at), (1, LOW))
    tl.store(u + at, tl.reshape(transform(diagonal(b_z, word, LOW, 1), LOW, 1), (LOW,)))


@triton.jit
def high_kernel(u, n, LOW: tl.constexpr, HIGH: tl.constexpr, TILE: tl.constexpr):
    """The transform over the high bits of the column, in place: u float32 [lines, HIGH * LOW]."""
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    at = tl.program_id(0).to(tl.int64) * n + column[:, None] + LOW * tl.arange(0, HIGH)[None, :]
    tl.store(u + at, transform(tl.load(u + at), HIGH, TILE))


LOW_TUNED = Tuned(low_kernel, [config(warps=4)], key=["n"], written=["u"])
HIGH_TUNED = Tuned(high_kernel, [config(warps=8)], key=["n"], written=["u"])


def _multiply(
    u: Tensor, z: Tensor, start: int, members: Members, noise: Noise, stream: int, block: int
) -> None:
    """`thickets.long_rows.Multiply`."""
    lines, n = z.shape
    high = n // LOW.value
    tile = max(8, min(8192 // high, LOW.value))
    LOW_TUNED(
        lambda meta: (lines, n // LOW.value),
        **member_arguments(members) | noise_arguments(noise),
        u=u, z=z, start=start, block=block, n=n, STREAM=stream, LOW=LOW.value,
    )  # fmt: skip
    HIGH_TUNED(lambda meta: (lines, LOW.value // tile), u=u, n=n, LOW=LOW.value, HIGH=high, TILE=tile)


def long_hadamard_product(
    y: Tensor, x: Tensor, base: Tensor | None, bias: Tensor | None, members: Members, noise: Noise
) -> None:
    """`hadamard_product` for any order n of at least 2^13, with the same arguments."""
    long_rows.long_hadamard_product(y, x, base, bias, members, noise, _multiply, ELEMENTS)
