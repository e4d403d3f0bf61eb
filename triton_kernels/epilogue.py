"""What ends a product: base and bias are added in float32, and the sum is rounded once."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def add_and_store(
    y,  # [T, O]
    base,  # [T, O], or [M, O] shared by all members, or None
    bias,  # [O], or [N, O] one per member, or None
    b_u,  # float32 [lines, columns]: some lines of one member, some columns
    first,  # output of the first column; columns outside of the outputs are left alone
    i_y,  # int64 [lines], rows of y
    m_y,
    member,  # int64
    rows,
    outputs,
    y_stride,
    base_stride,
    bias_member,
    BASE_SHARED: tl.constexpr,
):
    """y = base + u + bias in these lines and columns."""
    i_o = first + tl.arange(0, b_u.shape[1])
    m_o = (i_o >= 0) & (i_o < outputs)
    m_u = m_y[:, None] & m_o[None, :]
    if base is not None:
        i_base = (i_y - member * rows if BASE_SHARED else i_y) * base_stride
        b_base = tl.load(base + i_base[:, None] + i_o[None, :], mask=m_u, other=0.0)
        b_u = b_base.to(tl.float32) + b_u
    if bias is not None:
        b_bias = tl.load(bias + member * bias_member + i_o, mask=m_o, other=0.0)
        b_u += b_bias.to(tl.float32)[None, :]
    tl.store(y + i_y[:, None] * y_stride + i_o[None, :], b_u.to(y.dtype.element_ty), mask=m_u)


def result(y: Tensor, base: Tensor | None, bias: Tensor | None) -> dict[str, Any]:
    """What kernels take to write y [T, O]: base [T, O] or [M, O] or None, bias [O] or [N, O] or None."""
    outputs = y.shape[1]
    return {
        "y": y,
        "base": base,
        "bias": bias,
        "outputs": outputs,
        "y_stride": y.stride(0),
        "base_stride": 0 if base is None else base.stride(0),
        "bias_member": bias.stride(0) if bias is not None and bias.dim() == 2 else 0,
        "BASE_SHARED": base is not None and len(base) != len(y),
    }
