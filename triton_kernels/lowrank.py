"""Low-rank noise A B^T / sqrt(R) (docs/noise.md, section 3): two thin products in place of one with eps.

The factors are generated where they are used and never stored; only t = x B goes through memory, R numbers
a row. Products are float32 fused multiply-adds, few beside the generation of A and B at the ranks in use.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from thickets.operands import Members, Noise

from .epilogue import add_and_store, result
from .groups import group_of_tile, tiles
from .launch import member_arguments, noise_arguments
from .noise import STREAM_A, STREAM_B, four_normals
from .tuning import Tuned, config

SPAN = 1024  # columns of x that one program multiplies by B: sums of t do not depend on the batch


@triton.jit
def _of_threads(product, WIDTH: tl.constexpr):
    """Sums of WIDTH neighbours, [ROWS, TILE_K] -> [ROWS, TILE_K // WIDTH]: no exchange within the loop."""
    ROWS: tl.constexpr = product.shape[0]
    return tl.sum(tl.reshape(product, (ROWS, product.shape[1] // WIDTH, WIDTH)), axis=2)


@triton.jit
def _project(
    p_t,  # [ROWS] of t in column 4 * block
    p_x,  # [ROWS, 1] of x in column 0
    m_y,
    seed,
    id_low,
    id_high,
    col,
    inputs,
    block,
    USED: tl.constexpr,  # ranks of the block, 1 .. 4
    SPAN: tl.constexpr,
    ROWS: tl.constexpr,
    TILE_K: tl.constexpr,
):
    """Ranks 4 * block .. 4 * block + USED - 1 of t for one span of columns."""
    WIDTH: tl.constexpr = 128 // p_x.dtype.element_ty.primitive_bitwidth  # neighbours that a thread loads
    t0 = tl.zeros((ROWS, TILE_K // WIDTH), tl.float32)
    t1, t2, t3 = t0, t0, t0
    begin = tl.program_id(1) * SPAN
    for start in range(begin, tl.minimum(begin + SPAN, inputs), TILE_K):
        i_k = start + tl.arange(0, TILE_K)
        b_x = tl.load(p_x + i_k[None, :], mask=m_y[:, None] & (i_k < inputs)[None, :], other=0.0).to(
            tl.float32
        )
        b0, b1, b2, b3 = four_normals(seed, id_low, id_high, STREAM_B, col + i_k, block)
        t0 += _of_threads(b_x * b0[None, :], WIDTH)
        if USED > 1:
            t1 += _of_threads(b_x * b1[None, :], WIDTH)
        if USED > 2:
            t2 += _of_threads(b_x * b2[None, :], WIDTH)
        if USED > 3:
            t3 += _of_threads(b_x * b3[None, :], WIDTH)
    tl.store(p_t, tl.sum(t0, axis=1), mask=m_y)
    if USED > 1:
        tl.store(p_t + 1, tl.sum(t1, axis=1), mask=m_y)
    if USED > 2:
        tl.store(p_t + 2, tl.sum(t2, axis=1), mask=m_y)
    if USED > 3:
        tl.store(p_t + 3, tl.sum(t3, axis=1), mask=m_y)


@triton.jit(do_not_specialize=["id_low", "id_high", "col", "count", "rows", "total"])
def project_kernel(
    t,  # float32 [spans, T, RANK]: x B, to be summed over the spans of columns
    x,  # [T, K], or [M, K] shared by all members
    seeds,
    sigmas,
    offsets,
    scale,
    id_low,
    id_high,
    col,
    count,
    rows,
    total,
    inputs,
    x_stride,
    RANK: tl.constexpr,
    SPAN: tl.constexpr,
    SHARED: tl.constexpr,
    MEMBERS: tl.constexpr,
    EACH: tl.constexpr,  # the most rows a program is given
    TILE_M: tl.constexpr,
    TILE_K: tl.constexpr,
):
    ROWS: tl.constexpr = min(TILE_M, EACH)
    member, first, end = group_of_tile(
        tl.program_id(0), offsets, count, rows, total, offsets is not None, MEMBERS, ROWS
    )
    if first >= end:
        return
    member = member.to(tl.int64)
    seed = tl.load(seeds + member)
    i_y = first + tl.arange(0, ROWS).to(tl.int64)
    m_y = i_y < end
    p_x = x + (i_y - member * rows if SHARED else i_y)[:, None] * x_stride
    p_t = t + (tl.program_id(1).to(tl.int64) * total + i_y) * RANK
    for block in range(0, RANK // 4):
        _project(p_t + 4 * block, p_x, m_y, seed, id_low, id_high, col, inputs, block, 4, SPAN, ROWS, TILE_K)
    if RANK % 4 > 0:
        block = RANK // 4
        USED: tl.constexpr = RANK % 4
        _project(
            p_t + 4 * block, p_x, m_y, seed, id_low, id_high, col, inputs, block, USED, SPAN, ROWS, TILE_K
        )


@triton.jit
def _expand(
    acc,  # [ROWS, TILE_O]
    p_t,  # [SPANS, ROWS] of t in column 4 * block
    m_t,
    seed,
    id_low,
    id_high,
    line,  # global rows of eps, [TILE_O]
    block,
    USED: tl.constexpr,
):
    """acc + t A^T for ranks 4 * block .. 4 * block + USED - 1."""
    a0, a1, a2, a3 = four_normals(seed, id_low, id_high, STREAM_A, line, block)
    acc = tl.fma(tl.sum(tl.load(p_t, mask=m_t, other=0.0), axis=0)[:, None], a0[None, :], acc)
    if USED > 1:
        acc = tl.fma(tl.sum(tl.load(p_t + 1, mask=m_t, other=0.0), axis=0)[:, None], a1[None, :], acc)
    if USED > 2:
        acc = tl.fma(tl.sum(tl.load(p_t + 2, mask=m_t, other=0.0), axis=0)[:, None], a2[None, :], acc)
    if USED > 3:
        acc = tl.fma(tl.sum(tl.load(p_t + 3, mask=m_t, other=0.0), axis=0)[:, None], a3[None, :], acc)
    return acc


@triton.jit(do_not_specialize=["id_low", "id_high", "row", "count", "rows", "total", "spans"])
def expand_kernel(
    y,  # [T, O]
    t,  # float32 [spans, T, RANK]
    base,  # [T, O], or [M, O] shared by all members, or None
    bias,  # [O], or [N, O] one per member, or None
    seeds,
    sigmas,
    offsets,
    scale,
    root,
    id_low,
    id_high,
    row,
    count,
    rows,
    total,
    spans,
    outputs,
    y_stride,
    base_stride,
    bias_member,
    RANK: tl.constexpr,
    SPANS: tl.constexpr,  # spans, to a power of two
    BASE_SHARED: tl.constexpr,
    MEMBERS: tl.constexpr,
    EACH: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_O: tl.constexpr,
):
    ROWS: tl.constexpr = min(TILE_M, EACH)
    member, first, end = group_of_tile(
        tl.program_id(0), offsets, count, rows, total, offsets is not None, MEMBERS, ROWS
    )
    if first >= end:
        return
    member = member.to(tl.int64)
    seed = tl.load(seeds + member)
    s = tl.load(sigmas + member) * scale
    i_y = first + tl.arange(0, ROWS).to(tl.int64)
    m_y = i_y < end
    first_o = tl.program_id(1) * TILE_O
    line = row + first_o + tl.arange(0, TILE_O)
    i_s = tl.arange(0, SPANS).to(tl.int64)
    p_t = t + (i_s[:, None] * total + i_y[None, :]) * RANK
    m_t = (i_s < spans)[:, None] & m_y[None, :]
    acc = tl.zeros((ROWS, TILE_O), tl.float32)
    for block in range(0, RANK // 4):
        acc = _expand(acc, p_t + 4 * block, m_t, seed, id_low, id_high, line, block, 4)
    if RANK % 4 > 0:
        block = RANK // 4
        USED: tl.constexpr = RANK % 4
        acc = _expand(acc, p_t + 4 * block, m_t, seed, id_low, id_high, line, block, USED)
    add_and_store(
        y, base, bias, acc * (s * root), first_o, i_y, m_y, member, rows, outputs,
        y_stride, base_stride, bias_member, BASE_SHARED,
    )  # fmt: skip


# At 16 rows a thread has all rows of its columns and makes their normals once: 14 instructions per element of
# x at rank 1 and 29 at rank 4, 13 and 20 per output (bfloat16, compiled for sm_90); in tiles of 16 x 256 they
# are 50, 84, 35 and 55.
PROJECT = Tuned(
    project_kernel,
    [
        config(TILE_M=16, TILE_K=256, warps=4),
        config(TILE_M=16, TILE_K=1024, warps=4),
        config(TILE_M=8, TILE_K=1024, warps=4),
        config(TILE_M=1, TILE_K=1024, warps=8),
    ],
    key=["inputs", "RANK", "EACH"],
    written=["t"],
)
EXPAND = Tuned(
    expand_kernel,
    [
        config(TILE_M=16, TILE_O=256, warps=4),
        config(TILE_M=16, TILE_O=1024, warps=4),
        config(TILE_M=8, TILE_O=1024, warps=4),
    ],
    key=["outputs", "RANK", "EACH"],
    written=["y"],
)


def lowrank_product(
    y: Tensor, x: Tensor, base: Tensor | None, bias: Tensor | None, members: Members, noise: Noise
) -> None:
    """y = base + s (x eps^T) + bias for low-rank noise: t = x B, then y = base + s / sqrt(R) t A^T + bias.

    y [T, O]; x [T, K], or [M, K] shared by all members; base as y, or as x [M, O], or y itself; bias [O] or
    [N, O]. All float32, bfloat16 or float16 with a contiguous last dimension; sums are float32, rounded once.
    """
    (total, outputs), inputs, count = y.shape, x.shape[1], len(members.seeds)
    ragged = members.offsets is not None
    each = total // count if ragged else members.rows
    spans = triton.cdiv(inputs, SPAN)
    t = torch.empty(spans, total, noise.rank, device=y.device)
    common: dict[str, Any] = member_arguments(members) | noise_arguments(noise) | {
        "t": t, "RANK": noise.rank,
        "EACH": min(triton.next_power_of_2(max(each, 1)), 16),
    }  # fmt: skip

    def groups(meta: dict[str, Any]) -> int:
        return tiles(count, members.rows, total, ragged, min(meta["TILE_M"], meta["EACH"]))

    PROJECT(
        lambda meta: (groups(meta), spans),
        **common,
        x=x,
        col=noise.col,
        inputs=inputs,
        x_stride=x.stride(0),
        SPAN=SPAN,
        SHARED=len(x) != total,
    )
    EXPAND(
        lambda meta: (groups(meta), triton.cdiv(outputs, meta["TILE_O"])),
        **common,
        **result(y, base, bias),
        root=1 / math.sqrt(noise.rank),
        row=noise.row,
        spans=spans,
        SPANS=triton.next_power_of_2(spans),
    )
