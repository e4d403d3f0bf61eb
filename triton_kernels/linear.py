"""The fused product: noise generated in registers as an operand of the tensor cores.

A program multiplies one tile of outputs by one tile of a member's rows. Noise or W' is the left operand
[outputs, columns], so that few rows still fill a tensor core, whose 16 or 64 lines are outputs. Programs that
share a tile of W follow each other: it is read from memory once for many members.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from thickets.operands import Members, Noise, multiplied_in

from .epilogue import result
from .groups import group_of_tile, tiles
from .launch import DTYPES, FAMILIES, member_arguments, noise_arguments
from .noise import ALIGNMENT, NONE, NORMAL4, RADEMACHER, dense_tile
from .tuning import Tuned, config


@triton.jit(do_not_specialize=["id_low", "id_high", "row", "col", "count", "rows", "total"])
def linear_kernel(
    y,  # [T, O]
    x,  # [T, K], or [M, K] shared by all members
    w,  # [O, K], or [N, O, K] one per member, or None: the noise alone
    base,  # [T, O], or [M, O] as x, or None: what the product is added to
    bias,  # [O], or [N, O] one per member, or None
    seeds,
    sigmas,
    offsets,
    scale,
    id_low,
    id_high,
    row,
    col,
    count,
    rows,
    total,
    outputs,
    inputs,
    y_stride,
    x_stride,
    w_stride,
    w_member,
    base_stride,
    bias_member,
    FAMILY: tl.constexpr,
    SHIFT: tl.constexpr,  # columns of the first tile before the first of W
    SHARED: tl.constexpr,
    BASE_SHARED: tl.constexpr,
    STORAGE: tl.constexpr,  # round W' to the dtype of W
    OPERAND: tl.constexpr,  # the dtype of both factors
    MEMBERS: tl.constexpr,
    TILE_O: tl.constexpr,
    TILE_K: tl.constexpr,
    TILE_M: tl.constexpr,
):
    member, first, end = group_of_tile(
        tl.program_id(0), offsets, count, rows, total, offsets is not None, MEMBERS, TILE_M
    )
    if first >= end:
        return
    member = member.to(tl.int64)
    if FAMILY != NONE:
        seed = tl.load(seeds + member)
        s = tl.load(sigmas + member) * scale
    i_y = first + tl.arange(0, TILE_M)
    m_y = i_y < end
    i_x = i_y - member * rows if SHARED else i_y
    i_o = tl.program_id(1) * TILE_O + tl.arange(0, TILE_O)
    m_o = i_o < outputs
    p_x = x + i_x[None, :] * x_stride
    if w is not None:
        p_w = w + member * w_member + i_o[:, None].to(tl.int64) * w_stride
    acc = tl.zeros((TILE_O, TILE_M), tl.float32)
    for start in range(0, SHIFT + inputs, TILE_K):
        i_k = start - SHIFT + tl.arange(0, TILE_K)
        m_k = i_k < inputs
        if SHIFT > 0:
            m_k = m_k & (i_k >= 0)
        b_x = tl.load(p_x + i_k[:, None], mask=m_k[:, None] & m_y[None, :], other=0.0)  # [TILE_K, TILE_M]
        if w is not None:
            b_w = tl.load(p_w + i_k[None, :], mask=m_o[:, None] & m_k[None, :], other=0.0)  # [TILE_O, TILE_K]
        if FAMILY != NONE:
            eps = dense_tile(seed, id_low, id_high, row + i_o, col - SHIFT + start, FAMILY, TILE_O, TILE_K)
            if w is None:
                b_w = eps
            elif STORAGE:
                b_w = tl.fma(s, eps, b_w.to(tl.float32)).to(w.dtype.element_ty)
            else:
                b_w = tl.fma(s, eps, b_w.to(tl.float32))
        acc = tl.dot(b_w.to(OPERAND), b_x.to(OPERAND), acc, input_precision="ieee")
    if w is None:
        acc = acc * s
    m_out = m_o[:, None] & m_y[None, :]
    if base is not None:
        i_base = (i_y - member * rows if BASE_SHARED else i_y) * base_stride
        acc = tl.load(base + i_base[None, :] + i_o[:, None], mask=m_out, other=0.0).to(tl.float32) + acc
    if bias is not None:
        acc += tl.load(bias + member * bias_member + i_o, mask=m_o, other=0.0).to(tl.float32)[:, None]
    tl.store(y + i_y[None, :] * y_stride + i_o[:, None], acc.to(y.dtype.element_ty), mask=m_out)


def _fits(shape: triton.Config, arguments: dict[str, Any]) -> bool:
    """Whether a configuration can make the noise of a family, and spills no registers on sm_80 and sm_90."""
    family, tile = arguments["FAMILY"], (shape.kwargs["TILE_O"], shape.kwargs["TILE_K"])
    few = arguments["TILE_M"] <= 16
    if family == RADEMACHER.value:
        return tile[1] >= 128 and (few or shape.num_warps >= 4)  # 128 entries a Philox call
    if family == NORMAL4.value:
        return few or shape.num_warps >= 4
    return shape.num_warps >= 4 and (arguments["TILE_M"] <= 32 or tile == (64, 64) or family == NONE.value)


KEY = ["outputs", "inputs", "FAMILY", "TILE_M"]
SIXTEEN_BITS = Tuned(
    linear_kernel,
    [
        config(TILE_O=64, TILE_K=128, warps=4),
        config(TILE_O=64, TILE_K=128, warps=2),
        config(TILE_O=64, TILE_K=64, warps=4),
        config(TILE_O=128, TILE_K=64, warps=4),
        config(TILE_O=128, TILE_K=128, warps=8),
    ],
    key=KEY,
    written=["y"],
    fits=_fits,
)
# IEEE products on the CUDA cores. Three TF32 products on the tensor cores in place of one take 0.6 to 0.8 of
# the instructions for sm_90, but spill registers for sm_80.
FLOAT32 = Tuned(linear_kernel, [config(TILE_O=64, TILE_K=128, warps=8, stages=2)], key=KEY, written=["y"])


def dense_product(
    y: Tensor,
    x: Tensor,
    w: Tensor | None,
    base: Tensor | None,
    bias: Tensor | None,
    members: Members,
    noise: Noise,
    storage: bool = False,
) -> None:
    """y = x W'^T + bias, or without a W: y = base + s (x eps^T) + bias, for dense noise or none.

    y [T, O]; x [T, K], or [M, K] shared by all members; w [O, K] or one per member [N, O, K]; base [T, O] (it
    may be y), or as x [M, O]; bias [O] or [N, O]. All are float32, bfloat16 or float16 with a contiguous last
    dimension. Factors are rounded to `multiplied_in(x, w)`, sums are float32, rounded once to the dtype of y.
    `storage` rounds W' to the dtype of w.
    """
    operand = multiplied_in(x, w)
    total, outputs = y.shape
    each = members.rows if members.offsets is None else total // len(members.seeds)
    shift = noise.col % ALIGNMENT
    arguments: dict[str, Any] = member_arguments(members) | noise_arguments(noise) | result(y, base, bias) | {
        "x": x, "w": w, "row": noise.row, "col": noise.col, "inputs": x.shape[1], "x_stride": x.stride(0),
        "w_stride": 0 if w is None else w.stride(-2),
        "w_member": w.stride(0) if w is not None and w.dim() == 3 else 0,
        "FAMILY": FAMILIES[noise.family].value, "SHIFT": shift, "STORAGE": storage,
        "SHARED": len(x) != total, "OPERAND": DTYPES[operand],
        "TILE_M": min(max(triton.next_power_of_2(each), 16), 32 if operand == torch.float32 else 64),
    }  # fmt: skip

    def grid(meta: dict[str, Any]) -> tuple[int, int]:
        groups = tiles(len(members.seeds), members.rows, total, members.offsets is not None, meta["TILE_M"])
        return groups, triton.cdiv(outputs, meta["TILE_O"])

    kernel = FLOAT32 if operand == torch.float32 else SIXTEEN_BITS
    kernel(grid, **arguments)
