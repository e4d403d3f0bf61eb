"""Rows of members' weights W' = fma(s, eps, W), or of eps alone, written to memory.

A program writes one tile of one member: consecutive rows of W', or consecutive lines of a batch of looked-up
rows. Members that share a tile of W follow each other, so that it is read from memory once.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from thickets.long_rows import perturbed_long_rows
from thickets.noise import hadamard_order
from thickets.operands import Members, Noise

from .groups import group_of_tile, tiles
from .hadamard import hadamard_tile, longest
from .launch import FAMILIES, member_arguments, noise_arguments
from .noise import ALIGNMENT, HADAMARD, LOWRANK, dense_tile, lowrank_tile
from .tuning import Tuned, config


@triton.jit
def noise_tile(
    seed,
    id_low,
    id_high,
    row,
    col,
    root,
    FAMILY: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Entries [ROWS, COLS] of any family, float32: rows `row` (int64 [ROWS]), columns from `col` on.

    root: float32(1 / sqrt(RANK)). Hadamard tiles are whole rows: col is 0 and COLS the order n.
    """
    if FAMILY == HADAMARD:
        return hadamard_tile(seed, id_low, id_high, row, COLS, ROWS)
    elif FAMILY == LOWRANK:
        columns = (col + tl.arange(0, COLS)).to(tl.int32)
        return lowrank_tile(seed, id_low, id_high, row.to(tl.int32), columns, RANK, ROWS, COLS) * root
    else:
        return dense_tile(seed, id_low, id_high, row.to(tl.int32), col, FAMILY, ROWS, COLS)


@triton.jit(
    do_not_specialize=["id_low", "id_high", "row", "rows", "total"], do_not_specialize_on_alignment=["count"]
)
def rows_kernel(
    out,  # [N, R, C], or with ids [L, C]
    w,  # [R, C] or None: eps alone, unscaled
    ids,  # rows of W', one for each line: [L], or [M] shared by all members; or None: all rows
    seeds,
    sigmas,
    offsets,
    scale,
    root,
    id_low,
    id_high,
    row,
    col,
    shift,  # columns of the first tile before the first of W
    count,
    rows,
    total,
    cols,
    out_member,
    out_stride,
    w_stride,
    FAMILY: tl.constexpr,
    RANK: tl.constexpr,
    SHARED: tl.constexpr,
    MEMBERS: tl.constexpr,
    HEIGHT: tl.constexpr,  # of a group, to a power of two: a tile is no taller
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    TALL: tl.constexpr = min(ROWS, HEIGHT)
    width = tl.cdiv(shift + cols, COLS)
    tile = tl.program_id(0) // width
    start = (tl.program_id(0) % width) * COLS
    if ids is None:
        member = tile % count
        i_w = (tile // count) * TALL + tl.arange(0, TALL)
        m_r = i_w < rows
        i_w = i_w.to(tl.int64)
        p_out = out + member.to(tl.int64) * out_member + i_w * out_stride
    else:
        member, first, end = group_of_tile(
            tile, offsets, count, rows, total, offsets is not None, MEMBERS, TALL
        )
        if first >= end:
            return
        line = first + tl.arange(0, TALL)
        m_r = line < end
        i_w = tl.load(ids + (line - member * rows if SHARED else line), mask=m_r, other=0).to(tl.int64)
        p_out = out + line.to(tl.int64) * out_stride
    i_c = start - shift + tl.arange(0, COLS)
    m = m_r[:, None] & ((i_c >= 0) & (i_c < cols))[None, :]
    seed = tl.load(seeds + member)
    if w is not None:
        b_w = tl.load(w + (i_w * w_stride)[:, None] + i_c[None, :], mask=m, other=0.0)
    value = noise_tile(seed, id_low, id_high, row + i_w, col + start, root, FAMILY, RANK, TALL, COLS)
    if w is not None:
        value = tl.fma(tl.load(sigmas + member) * scale, value, b_w.to(tl.float32))
    tl.store(p_out[:, None] + i_c[None, :], value.to(out.dtype.element_ty), mask=m)


def order_of(noise: Noise) -> int:
    """The order n of a hadamard transform, 0 under other families."""
    return hadamard_order(noise.full_cols) if noise.family == "hadamard" else 0


def tile_shapes(family: str, order: int) -> list[triton.Config]:
    """ROWS and COLS to try, 32 entries a thread: whole rows of a hadamard transform, or tiles."""
    if family == "hadamard":
        warps = [w for w in (4, 8, 16, 32) if order <= 1024 * w and (w < 32 or order > 16384)]
        return [config(ROWS=1024 * w // order, COLS=order, warps=w) for w in warps]
    shapes = [
        config(ROWS=16, COLS=256, warps=4),
        config(ROWS=4, COLS=1024, warps=4),
        config(ROWS=1, COLS=1024, warps=2),
    ]
    return shapes if family == "lowrank" else [config(ROWS=32, COLS=256, warps=8), *shapes]


@cache
def tuned(family: str, order: int) -> Tuned:
    """The kernel with the shapes for a family, and for hadamard noise for a transform of that order."""
    key = ["FAMILY", "RANK", "HEIGHT", "cols"]
    return Tuned(rows_kernel, tile_shapes(family, order), key, written=["out"])


def perturbed_rows(
    out: Tensor, weight: Tensor | None, members: Members, noise: Noise, ids: Tensor | None = None
) -> None:
    """out = fma(s, eps, float32(W)) rounded to the dtype of `out`, or eps unscaled where `weight` is None.

    Without `ids` out is [N, R, C], all rows of every member, for weight [R, C]; one member may overwrite it.
    ids int64 [L], or [M] shared by all members, are rows of W: out is [L, C], line l its member's row ids[l].
    All float32, bfloat16 or float16 with a contiguous last dimension.
    """
    order = order_of(noise)
    if order > longest(out.device):
        perturbed_long_rows(out, weight, members, noise, ids)
        return
    count, cols = len(members.seeds), out.shape[-1]
    shift = noise.col % (order or ALIGNMENT)
    rows = out.shape[1] if ids is None else members.rows
    total = count * rows if ids is None else members.total
    each = rows if members.offsets is None or ids is None else total // count
    arguments: dict[str, Any] = member_arguments(members) | noise_arguments(noise) | {
        "out": out, "w": weight, "ids": ids, "row": noise.row, "col": noise.col - shift, "shift": shift,
        "root": 1 / math.sqrt(max(noise.rank, 1)), "rows": rows, "total": total, "cols": cols,
        "out_member": out.stride(0) if ids is None else 0, "out_stride": out.stride(-2),
        "w_stride": 0 if weight is None else weight.stride(0),
        "FAMILY": FAMILIES[noise.family].value, "RANK": noise.rank,
        "SHARED": ids is not None and len(ids) != total,
        "HEIGHT": min(triton.next_power_of_2(max(each, 1)), 64),
    }  # fmt: skip

    def grid(meta: dict[str, Any]) -> tuple[int]:
        height = min(meta["ROWS"], meta["HEIGHT"])
        ragged = ids is not None and members.offsets is not None
        return (tiles(count, rows, total, ragged, height) * triton.cdiv(shift + cols, meta["COLS"]),)

    tuned(noise.family, order)(grid, **arguments)
