"""The native CPU kernels of thickets._C, one record per instruction set; the widest this CPU has is "cpu".

Activations travel as float32 and weights in their own dtype. Every output of a dense family is one chain of
fused multiply-adds over ascending columns, so its bits do not depend on the batch of members, the rows of a
member, the threads or the instruction set. Structured families (hadamard, low rank) add their noise product
to the base product.
"""

from __future__ import annotations

from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..noise import Stream
from .native import FAMILIES, NO_MATRIX, matrix
from .record import Backend

WHY_NOT: str | None = None
try:
    from .. import _C
except ImportError as error:  # not built: the reference backend serves instead
    WHY_NOT = f"the native module thickets._C is not built ({error})"

NO_NOISE = (0, 0, 0, 0, 0, 0)

Noise = tuple[int, int, int, int, int, int]


def _noise(stream: Stream, cols: int) -> Noise:
    full_cols = stream.col + cols if stream.full_cols is None else stream.full_cols
    family = stream.family
    return FAMILIES[family.kind], family.rank, stream.id, stream.row, stream.col, full_cols


@lru_cache(maxsize=256)
def _equal_groups(count: int, rows: int) -> Tensor:
    """Offsets [N+1] of `count` groups of `rows` rows; kept, as a layer's are the same in every forward."""
    return torch.arange(count + 1, device="cpu") * rows


class _Rows:
    """Activations as the kernels take them: float32 rows, their groups, and the shape of the result."""

    def __init__(self, x: Tensor, count: int, offsets: Tensor | None) -> None:
        self.shared = offsets is None and x.dim() == 2
        self.x = x.reshape(-1, x.shape[-1]).float()
        self.offsets = _equal_groups(count, x.shape[-2]) if offsets is None else offsets
        self.count = count
        self.shape = (count, *x.shape[:-1]) if self.shared else tuple(x.shape[:-1])

    def members(self, seeds: Tensor | None, scales: Tensor | None) -> tuple[int, int, int, int, bool]:
        """The kernels' view of the members; a plain product has no seeds, and any memory serves."""
        held = self.offsets.data_ptr()
        at = [held if t is None else t.data_ptr() for t in (seeds, scales)]
        return at[0], at[1], held, self.count, self.shared

    def empty(self, outputs: int) -> Tensor:
        return torch.empty(*self.shape, outputs)


def _product(
    isa: str,
    noise: Noise,
    rows: _Rows,
    members: tuple[Tensor | None, Tensor | None],
    weight: Tensor,
    bias: Tensor | None,
    storage: bool = False,
) -> Tensor:
    """rows W'^T + bias, float32 [..., O]; weight [O, K] or one per member [N, O, K], bias [O] or [N, O]."""
    outputs, inputs = weight.shape[-2:]
    y = rows.empty(outputs)
    member_stride = weight.stride(0) if weight.dim() == 3 else 0
    at, stride = (0, 0) if bias is None else (bias.data_ptr(), outputs if bias.dim() == 2 else 0)
    x = rows.x
    _C.linear(isa, noise, rows.members(*members), x.data_ptr(), x.stride(0), matrix(weight), member_stride,
              at, stride, y.data_ptr(), outputs, outputs, inputs, storage)  # fmt: skip
    return y


def _add_noise(isa: str, y: Tensor, rows: _Rows, seeds: Tensor, scales: Tensor, stream: Stream) -> None:
    """y += s_n x eps_n^T in place, y float32 and contiguous."""
    x, inputs, outputs = rows.x, rows.x.shape[-1], y.shape[-1]
    noise, members = _noise(stream, inputs), rows.members(seeds, scales)
    if stream.family.dense:
        _C.linear(isa, noise, members, x.data_ptr(), x.stride(0), NO_MATRIX, 0, 0, 0, y.data_ptr(), outputs,
                  outputs, inputs, False)  # fmt: skip
    else:
        _C.noise_product(
            isa, noise, members, x.data_ptr(), x.stride(0), y.data_ptr(), outputs, outputs, inputs
        )


def _structured(
    isa: str, rows: _Rows, weight: Tensor, bias: Tensor | None, seeds: Tensor, scales: Tensor, stream: Stream
) -> Tensor:
    """Base product of all rows at once, plus the noise product, plus the bias [O] or [N, O]."""
    whole = _Rows(rows.x, 1, None)
    y = _product(
        isa, NO_NOISE, whole, (None, None), weight, bias if bias is not None and bias.dim() == 1 else None
    )
    y = y.expand(*rows.shape, -1).contiguous() if rows.shared else y.view(*rows.shape, -1)
    _add_noise(isa, y, rows, seeds, scales, stream)
    if bias is not None and bias.dim() == 2:
        if y.dim() == 3:
            y += bias[:, None]
        else:
            y += bias.repeat_interleave(rows.offsets.diff(), dim=0)
    return y


def _materialised(
    isa: str, rows: _Rows, weight: Tensor, bias: Tensor | None, seeds: Tensor, sigmas: Tensor, stream: Stream
) -> Tensor:
    """One member's W' at a time in one reused buffer of W's dtype: `storage` for structured families."""
    y, buffer, bounds = rows.empty(weight.shape[0]), torch.empty_like(weight), rows.offsets.tolist()
    flat = y.view(-1, weight.shape[0])
    for n, (begin, end) in enumerate(pairwise(bounds)):
        if begin == end:
            continue
        perturb_(isa, buffer, weight, seeds[n : n + 1], sigmas[n : n + 1], stream)
        group = _Rows(rows.x if rows.shared else rows.x[begin:end], 1, None)
        member_bias = bias if bias is None or bias.dim() == 1 else bias[n]
        flat[begin:end] = _product(isa, NO_NOISE, group, (None, None), buffer, member_bias)
    return y


def linear(
    isa: str,
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
    rows = _Rows(x, len(seeds), offsets)
    if bias is not None:
        bias = bias if bias_stream is None else vector(isa, bias, seeds, sigmas, bias_stream, precision)
        bias = bias.float()
    storage, scales = precision == "storage", sigmas if stream.scale == 1.0 else sigmas * stream.scale
    if stream.family.dense:
        y = _product(isa, _noise(stream, x.shape[-1]), rows, (seeds, scales), weight, bias, storage)
    elif storage and weight.dtype != torch.float32:
        y = _materialised(isa, rows, weight, bias, seeds, sigmas, stream)
    else:
        y = _structured(isa, rows, weight, bias, seeds, scales, stream)
    return y.to(x.dtype)


def noise_linear_(
    isa: str, y: Tensor, x: Tensor, seeds: Tensor, sigmas: Tensor, offsets: Tensor | None, stream: Stream
) -> None:
    rows = _Rows(x, len(seeds), offsets)
    total = y.float().contiguous()
    _add_noise(isa, total, rows, seeds, sigmas * stream.scale, stream)
    if total.data_ptr() != y.data_ptr():
        y.copy_(total)


def grouped_linear(
    isa: str, x: Tensor, weights: Tensor, bias: Tensor | None, offsets: Tensor | None
) -> Tensor:
    rows = _Rows(x, len(weights), offsets)
    bias = None if bias is None else bias.float()
    return _product(isa, NO_NOISE, rows, (None, None), weights, bias).to(x.dtype)


def _perturbed_rows(
    isa: str, out: Tensor, index: Tensor, weight: Tensor | None, seeds: Tensor, scales: Tensor, stream: Stream
) -> None:
    """out[l] = W[index[l]] + scales[l] eps(seeds[l])[index[l]], or eps alone without a weight."""
    noise, count, cols = _noise(stream, out.shape[-1]), len(index), out.shape[-1]
    _C.rows(isa, noise, seeds.data_ptr(), scales.data_ptr(), index.data_ptr(), count, cols, matrix(weight),
            matrix(out))  # fmt: skip


def embedding(
    isa: str,
    ids: Tensor,
    weight: Tensor,
    seeds: Tensor,
    sigmas: Tensor,
    offsets: Tensor | None,
    stream: Stream,
    precision: str,
) -> Tensor:
    count = len(seeds)
    if offsets is None and ids.dim() == 1:
        ids = ids.expand(count, -1)
    flat = ids.reshape(-1).long().contiguous()  # of one id each, an expanded view is flat
    rows = torch.full((count,), ids.shape[-1]) if offsets is None else offsets.diff()
    out = torch.empty(*ids.shape, weight.shape[-1], dtype=weight.dtype)
    seeds, scales = (t.repeat_interleave(rows) for t in (seeds, sigmas * stream.scale))
    _perturbed_rows(isa, out.view(-1, weight.shape[-1]), flat, weight, seeds, scales, stream)
    return out


def vector(isa: str, weight: Tensor, seeds: Tensor, sigmas: Tensor, stream: Stream, precision: str) -> Tensor:
    out = torch.empty(len(seeds), len(weight), dtype=torch.float32 if precision == "exact" else weight.dtype)
    index = torch.zeros(len(seeds), dtype=torch.int64)
    _perturbed_rows(isa, out, index, weight[None], seeds, sigmas * stream.scale, stream)
    return out


def perturb_(isa: str, out: Tensor, weight: Tensor, seed: Tensor, sigma: Tensor, stream: Stream) -> None:
    count = len(weight)
    seeds, scales = seed.expand(count).contiguous(), (sigma * stream.scale).expand(count).contiguous()
    _perturbed_rows(isa, out, torch.arange(count), weight, seeds, scales, stream)


def accumulate_(isa: str, weight: Tensor, seeds: Tensor, coefficients: Tensor, stream: Stream) -> None:
    (rows, cols), factors = weight.shape, coefficients * stream.scale
    noise = _noise(stream, cols)
    _C.accumulate(isa, noise, seeds.data_ptr(), factors.data_ptr(), len(seeds), rows, cols, matrix(weight))


def noise(isa: str, out: Tensor, seed: Tensor, stream: Stream) -> None:
    count = len(out)
    seeds = seed.expand(count).contiguous()
    _perturbed_rows(isa, out, torch.arange(count), None, seeds, torch.ones(count), stream)


def backend(isa: str, name: str = "cpu") -> Backend:
    """The record of one instruction set of thickets._C: "portable", "avx2" or "avx512"."""
    why_not = WHY_NOT or (None if _C.isas().get(isa) else f"this CPU or this build has no {isa}")
    ops: dict[str, Any] = {f.__name__: partial(f, isa) for f in (
        linear, noise_linear_, embedding, vector, perturb_, accumulate_, noise, grouped_linear)}  # fmt: skip
    return Backend(name=name, devices=("cpu",), why_not=lambda: why_not, **ops)


BACKEND = backend("portable" if WHY_NOT else _C.isa())
