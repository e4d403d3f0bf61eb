"""The Triton kernels of thickets.triton_kernels: any GPU that Triton knows, or a CPU by its interpreter.

Under `exact`, 16-bit activations with weights of their dtype take a base product and a noise product, both
summed in float32; eps alone is rounded to that dtype. All other products form W' in registers or in scratch
memory. Noise is the contract's exact form, so materialised weights have the CPU's bits; products agree within
the rounding of their float32 sums.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..noise import Stream
from .record import Backend

if TYPE_CHECKING:  # the kernels are imported at the first call: `import thickets` loads torch alone
    from ..triton_kernels import Members, Noise

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's own switch: its kernels run on the CPU
SIXTEEN_BITS = (torch.bfloat16, torch.float16)

# Rows per member from which one layer's noise or W' goes through scratch memory to the vendor's product; the
# fused kernel makes the noise anew for every 64 rows. Predicted from instructions and bytes, not yet measured
# (docs/performance.md).
SCRATCH_FROM = {"normal": 128, "normal4": 256, "rademacher": 512}
SCRATCH = 1 << 25  # entries of scratch memory, unless one matrix has more


@cache
def why_not() -> str | None:
    """Why these kernels cannot run here."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if not INTERPRETED and not torch.cuda.is_available():
        return "torch sees no GPU (TRITON_INTERPRET=1 runs the kernels on a CPU, slowly)"
    return None


def _noise(stream: Stream, cols: int) -> Noise:
    from ..triton_kernels import Noise

    full_cols = stream.col + cols if stream.full_cols is None else stream.full_cols
    family = stream.family
    return Noise(family.kind, family.rank, stream.id, stream.row, stream.col, full_cols)


def _members(seeds: Tensor, sigmas: Tensor, scale: float, offsets: Tensor | None, x: Tensor) -> Members:
    """x [N, M, K], [M, K] shared by all members, or [T, K] with offsets."""
    from ..triton_kernels import Members

    rows = x.shape[-2]
    return Members(seeds, sigmas, scale, offsets, rows, rows if offsets is not None else len(seeds) * rows)


def _product32(x: Tensor, w: Tensor) -> Tensor:
    """x w^T in float32: [T, K] x [O, K], or [N, M, K] x [N, O, K]."""
    if x.is_cuda and x.dtype == w.dtype and x.dtype in SIXTEEN_BITS:
        multiply = torch.mm if x.dim() == 2 else torch.bmm
        return multiply(x, w.mT, out_dtype=torch.float32)
    return x.float() @ w.float().mT


def _shape(x: Tensor, count: int, offsets: Tensor | None, outputs: int) -> tuple[int, ...]:
    shared = offsets is None and x.dim() == 2
    return (count, len(x), outputs) if shared else (*x.shape[:-1], outputs)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seeds: Tensor,
    sigmas: Tensor,
    offsets: Tensor | None,
    stream: Stream,
    bias_stream: Stream | None,
    precision: str,
) -> Tensor:
    from ..triton_kernels import dense_product, hadamard_product, lowrank_product

    members, noise = _members(seeds, sigmas, stream.scale, offsets, x), _noise(stream, x.shape[-1])
    if bias is not None and bias_stream is not None:
        bias = vector(bias, seeds, sigmas, bias_stream, precision)
    y = x.new_empty(_shape(x, len(seeds), offsets, len(weight)))
    to, rows = y.view(-1, len(weight)), x.reshape(-1, x.shape[-1])
    storage = precision == "storage" and weight.dtype in SIXTEEN_BITS
    sixteen = x.dtype == weight.dtype and x.dtype in SIXTEEN_BITS
    if stream.family.dense and not storage and sixteen:
        _noise_product(to, rows, weight, bias, members, noise)
    elif stream.family.dense and not (x.dtype == weight.dtype and _large(members, noise)):
        dense_product(
            to, rows, weight, None, bias, members, noise, x.dtype if sixteen else torch.float32, storage
        )
    elif stream.family.dense or storage:
        _materialised(to, rows, weight, bias, members, noise)
    else:
        product = hadamard_product if stream.family.kind == "hadamard" else lowrank_product
        product(to, rows, _product32(rows, weight), bias, members, noise)
    return y


def _large(members: Members, noise: Noise) -> bool:
    """Whether groups are equal and large enough for scratch memory."""
    return members.offsets is None and members.rows >= SCRATCH_FROM[noise.family]


def _noise_product(
    y: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, members: Members, noise: Noise
) -> None:
    """y = x W^T + s (x eps^T) + bias for a dense family, or y += s (x eps^T); eps in the dtype of x."""
    from ..triton_kernels import combine, dense_product, perturbed_rows

    if x.dtype not in SIXTEEN_BITS or not _large(members, noise):
        base = y if weight is None else _product32(x, weight)
        dense_product(y, x, None, base, bias, members, noise, x.dtype)
        return
    outputs, inputs, rows, shared = y.shape[1], x.shape[1], members.rows, len(x) != len(y)
    for part, span in members.chunks(SCRATCH // (outputs * inputs)):
        eps = torch.empty(len(part.seeds), outputs, inputs, dtype=x.dtype, device=x.device)
        perturbed_rows(eps, None, part, noise)
        of = slice(span.start * rows, span.stop * rows)
        own_x, own_y = x if shared else x[of], y[of]
        base = own_y if weight is None else _product32(own_x, weight)
        product = _product32(own_x.view(-1, rows, inputs).expand(len(eps), -1, -1), eps)
        own_bias = bias[span] if bias is not None and bias.dim() == 2 else bias
        combine(own_y, product, base, own_bias, part.sigmas, part.scale)


def _materialised(
    y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, members: Members, noise: Noise
) -> None:
    """y = x W'^T + bias with W' in scratch memory, in its own dtype, for a few members at a time."""
    from ..triton_kernels import perturbed_rows

    rows, shared = members.rows, members.offsets is None and len(x) != len(y)
    for part, span in members.chunks(SCRATCH // weight.numel()):
        weights = weight.new_empty(len(part.seeds), *weight.shape)
        perturbed_rows(weights, weight, part, noise)
        of = slice(span.start * rows, span.stop * rows) if members.offsets is None else slice(None)
        own_bias = bias[span] if bias is not None and bias.dim() == 2 else bias
        _grouped(y[of], x if shared else x[of], weights, own_bias, part)


def _grouped(y: Tensor, x: Tensor, weights: Tensor, bias: Tensor | None, members: Members) -> None:
    """y = x weights_n^T + bias: the vendor's product for large equal groups of one dtype, else ours."""
    from ..triton_kernels import Noise, dense_product

    one_dtype = x.dtype == weights.dtype and (bias is None or bias.dtype == x.dtype)
    if members.offsets is None and one_dtype and members.rows >= min(SCRATCH_FROM.values()):
        count, outputs = weights.shape[:2]
        out = y.view(count, members.rows, outputs)
        group = (x if len(x) != len(y) else x.view(count, members.rows, -1)).expand(count, -1, -1)
        if bias is None:
            torch.bmm(group, weights.mT, out=out)
        else:
            torch.baddbmm(bias.expand(count, -1)[:, None], group, weights.mT, out=out)
        return
    sixteen = x.dtype == weights.dtype and x.dtype in SIXTEEN_BITS
    dense_product(y, x, weights, None, bias, members, Noise(), x.dtype if sixteen else torch.float32)


def noise_linear_(
    y: Tensor, x: Tensor, seeds: Tensor, sigmas: Tensor, offsets: Tensor | None, stream: Stream
) -> None:
    from ..triton_kernels import hadamard_product, lowrank_product

    members, noise = _members(seeds, sigmas, stream.scale, offsets, x), _noise(stream, x.shape[-1])
    rows, sums = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    if stream.family.dense:
        _noise_product(sums, rows, None, None, members, noise)
    else:
        product = hadamard_product if stream.family.kind == "hadamard" else lowrank_product
        product(sums, rows, sums, None, members, noise)
    if sums.data_ptr() != y.data_ptr():
        y.copy_(sums.view(y.shape))


def grouped_linear(x: Tensor, weights: Tensor, bias: Tensor | None, offsets: Tensor | None) -> Tensor:
    count, outputs = weights.shape[:2]
    y = x.new_empty(_shape(x, count, offsets, outputs))
    unused = torch.empty(count, device=x.device)  # a plain product reads neither seeds nor sigmas
    members = _members(unused, unused, 1.0, offsets, x)
    _grouped(y.view(-1, outputs), x.reshape(-1, x.shape[-1]), weights, bias, members)
    return y


def embedding(
    ids: Tensor,
    weight: Tensor,
    seeds: Tensor,
    sigmas: Tensor,
    offsets: Tensor | None,
    stream: Stream,
    precision: str,
) -> Tensor:
    from ..triton_kernels import perturbed_rows

    members = _members(seeds, sigmas, stream.scale, offsets, ids[..., None])
    out = weight.new_empty(_shape(ids[..., None], len(seeds), offsets, weight.shape[1]))
    perturbed_rows(
        out.view(-1, weight.shape[1]), weight, members, _noise(stream, weight.shape[1]), ids.reshape(-1)
    )
    return out


def vector(weight: Tensor, seeds: Tensor, sigmas: Tensor, stream: Stream, precision: str) -> Tensor:
    from ..triton_kernels import Members, perturbed_rows

    dtype = torch.float32 if precision == "exact" else weight.dtype
    out = torch.empty(len(seeds), 1, len(weight), dtype=dtype, device=weight.device)
    perturbed_rows(out, weight[None], Members(seeds, sigmas, stream.scale), _noise(stream, len(weight)))
    return out[:, 0]


def perturb_(out: Tensor, weight: Tensor, seed: Tensor, sigma: Tensor, stream: Stream) -> None:
    from ..triton_kernels import Members, perturbed_rows

    perturbed_rows(out[None], weight, Members(seed, sigma, stream.scale), _noise(stream, weight.shape[1]))


def accumulate_(weight: Tensor, seeds: Tensor, coefficients: Tensor, stream: Stream) -> None:
    from ..triton_kernels import Members, accumulate

    accumulate(weight, Members(seeds, coefficients, stream.scale), _noise(stream, weight.shape[1]))


def noise(out: Tensor, seed: Tensor, stream: Stream) -> None:
    from ..triton_kernels import Members, perturbed_rows

    perturbed_rows(out[None], None, Members(seed, seed, 1.0), _noise(stream, out.shape[1]))


BACKEND = Backend(
    name="triton",
    devices=("cpu",) if INTERPRETED else ("cuda",),
    why_not=why_not,
    linear=linear,
    noise_linear_=noise_linear_,
    embedding=embedding,
    vector=vector,
    perturb_=perturb_,
    accumulate_=accumulate_,
    noise=noise,
    grouped_linear=grouped_linear,
)
