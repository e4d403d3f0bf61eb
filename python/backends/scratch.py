"""Products of many rows per member: noise or W' goes through scratch memory to the vendor's product.

Scratch memory holds a tile of W's rows for a few members at a time. Arguments are those of kernels.py, for
equal groups of rows unless a function says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

import torch
from torch import Tensor

from ..operands import SIXTEEN_BITS, Members, Noise
from .kernels import Kernels

SCRATCH = 1 << 25  # entries at a time, unless eight rows of W or one member's activations have more
FLAGS = RLock()  # torch's are those of all threads


@contextmanager
def float32_sums() -> Iterator[None]:
    """Within it the vendor's 16-bit products keep partial sums in float32; torch lets them be rounded."""
    matmul = torch.backends.cuda.matmul
    names = [f"allow_{dtype}_reduced_precision_reduction" for dtype in ("bf16", "fp16")]
    with FLAGS:
        before = {name: (getattr(matmul, name), getattr(matmul, f"{name}_split_k")) for name in names}
        for name, (_, split_k) in before.items():
            setattr(matmul, name, (False, split_k))
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(matmul, name, value)


def product32(x: Tensor, w: Tensor) -> Tensor:
    """x w^T in float32: [T, K] x [O, K], or [N, M, K] x [N, O, K]."""
    if x.is_cuda and x.dtype == w.dtype and x.dtype in SIXTEEN_BITS:
        multiply = torch.mm if x.dim() == 2 else torch.bmm
        return multiply(x, w.mT, out_dtype=torch.float32)
    return x.float() @ w.float().mT


def exact_product(
    kernels: Kernels,
    y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    members: Members,
    noise: Noise,
) -> None:
    """y = x W^T + x (s eps)^T + bias in bfloat16, as one product [x | x | 1] [W | s eps | bias]^T.

    So s eps is rounded to bfloat16, and the sum once. The bias is three columns, whose parts add up to it.
    """
    (outputs, inputs), count, rows = weight.shape, len(members.seeds), members.rows
    half = _whole(inputs)
    at_w, at_eps, at_bias = slice(inputs), slice(half, half + inputs), slice(2 * half, 2 * half + 3)
    width = 2 * half if bias is None else _whole(at_bias.stop)
    height, each = _tile(outputs, width)
    factor = weight.new_zeros(min(each, count), height, width)  # zeros fill columns up to multiples of 8
    zeros, groups = weight.new_zeros(1, inputs), y.view(count, rows, outputs)
    shared, held = len(x) != len(y), -1
    for part, span in members.chunks(count if shared else SCRATCH // (rows * width)):
        own = x if shared else x[span.start * rows : span.stop * rows]
        twice = x.new_zeros(len(own), width)
        twice[:, at_w] = twice[:, at_eps] = own
        if bias is not None:
            twice[:, at_bias] = 1
        twice = twice.view(-1, rows, width).expand(len(part.seeds), -1, -1)
        of_span, own_bias = groups[span], _of(bias, span)
        for start in range(0, outputs, height):
            tile = slice(start, min(start + height, outputs))
            lines = factor[:, : tile.stop - start]
            if held != start:  # a single tile keeps its W
                lines[..., at_w] = weight[tile]
                held = start
            for few, here in part.chunks(each):
                w = lines[: len(few.seeds)]
                perturbed = zeros.expand(w.shape[1], -1)
                kernels.perturbed_rows(w[..., at_eps], perturbed, few, noise.below(start))
                if (added := _of(own_bias, here, tile)) is not None:
                    w[..., at_bias] = _in_three(added)
                with float32_sums():
                    torch.bmm(twice[here], w.mT, out=of_span[here, :, tile])


def sum_of_products(
    kernels: Kernels,
    y: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    members: Members,
    noise: Noise,
) -> None:
    """y = x W^T + s (x eps^T) + bias, or y += s (x eps^T), of float32 products; eps in the dtype of x."""
    inputs, rows, shared = x.shape[1], members.rows, len(x) != len(y)
    height, each = _tile(y.shape[1], max(inputs, rows))
    groups, strengths = y.view(-1, rows, y.shape[1]), members.strengths()[:, None, None]
    for start in range(0, y.shape[1], height):
        tile = slice(start, min(start + height, y.shape[1]))
        for part, span in members.chunks(each):
            eps = x.new_empty(len(part.seeds), tile.stop - start, inputs)
            kernels.perturbed_rows(eps, None, part, noise.below(start))
            own = x if shared else x[span.start * rows : span.stop * rows]
            out = groups[span, :, tile]
            base = out if weight is None else product32(own, weight[tile]).view(-1, *out.shape[1:])
            product = product32(own.view(-1, rows, inputs).expand(len(eps), -1, -1), eps)
            if (added := _of(bias, span, tile)) is None:
                torch.addcmul(base, product, strengths[span], out=out)
            else:
                sums = torch.addcmul(base, product, strengths[span])
                torch.add(sums, added.unsqueeze(-2), out=out)


def materialised(
    kernels: Kernels,
    y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    members: Members,
    noise: Noise,
    vendor: bool,
) -> None:
    """y = x W'^T + bias for any groups, W' in its own dtype in scratch memory; `vendor` as in `grouped`."""
    (outputs, inputs), rows = weight.shape, members.rows
    shared = members.offsets is None and len(x) != len(y)
    height, each = _tile(outputs, inputs)
    for start in range(0, outputs, height):
        tile = slice(start, min(start + height, outputs))
        for part, span in members.chunks(each):
            weights = weight.new_empty(len(part.seeds), tile.stop - start, inputs)
            kernels.perturbed_rows(weights, weight[tile], part, noise.below(start))
            of = slice(span.start * rows, span.stop * rows) if members.offsets is None else slice(None)
            own = x if shared else x[of]
            grouped(kernels, y[of, tile], own, weights, _of(bias, span, tile), part, vendor)


def grouped(
    kernels: Kernels,
    y: Tensor,
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    members: Members,
    vendor: bool,
) -> None:
    """y = x weights_n^T + bias for any groups: by the vendor's product if they are equal and of one dtype.

    `vendor` allows that; else it is the kernels' product.
    """
    one_dtype = x.dtype == weights.dtype and (bias is None or bias.dtype == x.dtype)
    if not (vendor and members.offsets is None and one_dtype):
        kernels.dense_product(y, x, weights, None, bias, members, Noise())
        return
    count, outputs, inputs = weights.shape
    out = y.view(count, members.rows, outputs)
    group = x.view(-1, members.rows, inputs).expand(count, -1, -1)
    with float32_sums():
        if bias is None:
            torch.bmm(group, weights.mT, out=out)
        else:
            torch.baddbmm(bias.expand(count, -1)[:, None], group, weights.mT, out=out)


def _whole(columns: int) -> int:
    """Columns up to a multiple of 8: 16 bytes."""
    return -(-columns // 8) * 8


def _tile(outputs: int, width: int) -> tuple[int, int]:
    """Rows of a tile and members at a time, of `width` entries each: equal tiles, as large as may be."""
    most = max(8, SCRATCH // width // 8 * 8)
    height = min(outputs, _whole(-(-outputs // -(-outputs // most))))
    return height, max(1, SCRATCH // (height * width))


def _of(bias: Tensor | None, span: slice, tile: slice = slice(None)) -> Tensor | None:
    """The biases [N, O] of some members, or the bias [O] of all, for some outputs."""
    if bias is None:
        return None
    return bias[span, tile] if bias.dim() == 2 else bias[tile]


def _in_three(bias: Tensor) -> Tensor:
    """Three bfloat16 parts whose sum is the float32 bias: [n, O] -> [n, O, 3]."""
    parts, rest = [], bias.float()
    for _ in range(3):
        parts.append(rest.bfloat16())
        rest = (rest - parts[-1]).nan_to_num(0.0, 0.0, 0.0)  # nothing remains of an infinity
    return torch.stack(parts, dim=-1)
