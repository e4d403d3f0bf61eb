"""The sum of many members' noise, added to a weight in one pass."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from thickets.long_rows import accumulate_long_rows
from thickets.operands import Members, Noise

from .hadamard import longest
from .launch import FAMILIES, noise_arguments
from .noise import ALIGNMENT
from .rows import noise_tile, order_of, tile_shapes
from .tuning import Tuned


@triton.jit(  # one member is a case of its own: no loop
    do_not_specialize=["id_low", "id_high", "row", "rows"], do_not_specialize_on_alignment=["count"]
)
def accumulate_kernel(
    w,  # [R, C]
    seeds,
    coefficients,
    scale,
    root,
    id_low,
    id_high,
    row,
    col,
    shift,  # columns of the first tile before the first of W
    count,
    rows,
    cols,
    w_stride,
    FAMILY: tl.constexpr,
    RANK: tl.constexpr,
    HEIGHT: tl.constexpr,  # of W, to a power of two: a tile is no taller
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    TALL: tl.constexpr = min(ROWS, HEIGHT)
    width = tl.cdiv(shift + cols, COLS)
    start = (tl.program_id(0) % width) * COLS
    i_w = (tl.program_id(0) // width) * TALL + tl.arange(0, TALL)
    i_c = start - shift + tl.arange(0, COLS)
    m = (i_w < rows)[:, None] & ((i_c >= 0) & (i_c < cols))[None, :]
    i_w = i_w.to(tl.int64)
    p_w = w + (i_w * w_stride)[:, None] + i_c[None, :]
    d = tl.zeros((TALL, COLS), tl.float32)
    for i in range(count):
        seed = tl.load(seeds + i)
        c = tl.load(coefficients + i) * scale
        eps = noise_tile(seed, id_low, id_high, row + i_w, col + start, root, FAMILY, RANK, TALL, COLS)
        d = tl.fma(c, eps, d)
    b_w = tl.load(p_w, mask=m, other=0.0)  # here it holds no registers in the loop
    tl.store(p_w, (b_w.to(tl.float32) + d).to(w.dtype.element_ty), mask=m)


@cache
def tuned(family: str, order: int) -> Tuned:
    """The kernel with the shapes for a family, and for hadamard noise for a transform of that order."""
    key = ["FAMILY", "RANK", "HEIGHT", "cols"]
    return Tuned(accumulate_kernel, tile_shapes(family, order), key, written=["w"])


def accumulate(weight: Tensor, members: Members, noise: Noise) -> None:
    """weight += sum of c_i eps_i: a float32 fma chain from +0 over ascending i, one sum, rounded once.

    weight [R, C] float32, bfloat16 or float16 with a contiguous last dimension; c_i = sigmas[i] * scale.
    """
    order = order_of(noise)
    if order > longest(weight.device):
        accumulate_long_rows(weight, members, noise)
        return
    rows, cols = weight.shape
    shift = noise.col % (order or ALIGNMENT)
    arguments: dict[str, Any] = noise_arguments(noise) | {
        "w": weight, "seeds": members.seeds, "coefficients": members.sigmas, "scale": members.scale,
        "root": 1 / math.sqrt(max(noise.rank, 1)), "row": noise.row, "col": noise.col - shift, "shift": shift,
        "count": len(members.seeds), "rows": rows, "cols": cols, "w_stride": weight.stride(0),
        "FAMILY": FAMILIES[noise.family].value, "RANK": noise.rank,
        "HEIGHT": min(triton.next_power_of_2(rows), 64),
    }  # fmt: skip

    def grid(meta: dict[str, Any]) -> tuple[int]:
        height = min(meta["ROWS"], meta["HEIGHT"])
        return (triton.cdiv(rows, height) * triton.cdiv(shift + cols, meta["COLS"]),)

    tuned(noise.family, order)(grid, **arguments)
