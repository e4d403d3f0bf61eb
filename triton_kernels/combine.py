"""What follows a product from scratch memory: scale, base and bias in one pass, rounded once."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

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
    base_member,
    bias_member,
    TILE_M: tl.constexpr,
    TILE_O: tl.constexpr,
):
    member = tl.program_id(2).to(tl.int64)
    i_m = tl.program_id(0) * TILE_M + tl.arange(0, TILE_M)
    i_o = tl.program_id(1) * TILE_O + tl.arange(0, TILE_O)
    mask = (i_m < rows)[:, None] & (i_o < outputs)[None, :]
    i_row = member * rows + i_m
    acc = tl.load(product + i_row[:, None] * outputs + i_o[None, :], mask=mask, other=0.0)
    acc = acc * (tl.load(sigmas + member) * scale)
    i_base = member * base_member + i_m.to(tl.int64) * base_stride
    acc = tl.load(base + i_base[:, None] + i_o[None, :], mask=mask, other=0.0).to(tl.float32) + acc
    if bias is not None:
        acc += tl.load(bias + member * bias_member + i_o, mask=i_o < outputs, other=0.0).to(tl.float32)[
            None, :
        ]
    tl.store(y + i_row[:, None] * y_stride + i_o[None, :], acc.to(y.dtype.element_ty), mask=mask)


TUNED = Tuned(combine_kernel, [config(TILE_M=16, TILE_O=256, warps=8)], key=["outputs"], written=["y"])


def combine(
    y: Tensor, product: Tensor, base: Tensor, bias: Tensor | None, sigmas: Tensor, scale: float
) -> None:
    """y = base + sigma_n scale product + bias for equal groups, in float32, rounded once.

    y [N * M, O]; product float32 [N, M, O], contiguous; base [N * M, O], or [M, O] for all members, or y
    itself; bias [O] or [N, O]; sigmas float32 [N]. Last dimensions are contiguous.
    """
    count, rows, outputs = product.shape
    arguments = {
        "y": y, "product": product, "base": base, "bias": bias, "sigmas": sigmas, "scale": scale,
        "rows": rows, "outputs": outputs, "y_stride": y.stride(0), "base_stride": base.stride(0),
        "base_member": 0 if len(base) != len(y) else rows * base.stride(0),
        "bias_member": outputs if bias is not None and bias.dim() == 2 else 0,
    }  # fmt: skip
    TUNED(
        lambda meta: (triton.cdiv(rows, meta["TILE_M"]), triton.cdiv(outputs, meta["TILE_O"]), count),
        **arguments,
    )
