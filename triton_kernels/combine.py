"""What follows a product from scratch memory: scale, base and bias in one pass, rounded once."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .epilogue import add_and_store, result
from .tuning import Tuned, config


@triton.jit(do_not_specialize=["rows"])
def combine_kernel(
    y,  # [N, M, O]
    product,  # float32 [N, M, O]
    base,  # float32 [N, M, O], or [M, O] for all members
    bias,  # [O], or [N, O] one per member, or None
    sigmas,
    scale,
    rows,
    outputs,
    y_stride,
    base_stride,
    bias_member,
    BASE_SHARED: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_O: tl.constexpr,
):
    member = tl.program_id(2).to(tl.int64)
    i_m = tl.program_id(0) * TILE_M + tl.arange(0, TILE_M)
    i_o = tl.program_id(1) * TILE_O + tl.arange(0, TILE_O)
    mask = (i_m < rows)[:, None] & (i_o < outputs)[None, :]
    i_row = member * rows + i_m
    acc = tl.load(product + i_row[:, None] * outputs + i_o[None, :], mask=mask, other=0.0)
    add_and_store(
        y, base, bias, acc * (tl.load(sigmas + member) * scale), tl.program_id(1) * TILE_O, i_row, i_m < rows,
        member, rows, outputs, y_stride, base_stride, bias_member, BASE_SHARED,
    )  # fmt: skip


TUNED = Tuned(combine_kernel, [config(TILE_M=16, TILE_O=256, warps=8)], key=["outputs"], written=["y"])


def combine(
    y: Tensor, product: Tensor, base: Tensor, bias: Tensor | None, sigmas: Tensor, scale: float
) -> None:
    """y = base + sigma_n scale product + bias for equal groups, in float32, rounded once.

    y [N * M, O]; product float32 [N, M, O], contiguous; base [N * M, O], or [M, O] for all members, or y
    itself; bias [O] or [N, O]; sigmas float32 [N]. Last dimensions are contiguous.
    """
    count, rows, outputs = product.shape
    arguments = result(y, base, bias) | {
        "product": product, "sigmas": sigmas, "scale": scale, "rows": rows,
    }  # fmt: skip
    TUNED(
        lambda meta: (triton.cdiv(rows, meta["TILE_M"]), triton.cdiv(outputs, meta["TILE_O"]), count),
        **arguments,
    )
