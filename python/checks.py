"""What the ops accept, checked once for eager calls and for fake tensors.

A function named after an op checks shapes, dtypes and devices and returns what the op needs to know: the
shape of its result and the noise streams. The `check_*` functions at the end look at values; they do so for
CPU tensors only and belong to eager calls.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .noise import Stream, family

STORAGE = (torch.float32, torch.bfloat16, torch.float16)
FLOAT32_MAX = torch.finfo(torch.float32).max
INDEX_LIMIT = 1 << 32  # rows and columns are counted in 32-bit words

Origin = tuple[int, int]


def _value(ok: Any, name: str, expected: str, got: object) -> None:
    if ok is not True:  # False, or a condition on symbolic sizes, which torch knows to deal with
        torch._check_value(ok, lambda: f"{name} must be {expected}, got {got}")


def _shape(ok: Any, name: str, expected: str, tensor: Tensor) -> None:
    _value(ok, name, expected, tuple(tensor.shape))


def _kind(name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...], device: torch.device) -> None:
    """A tensor of one of `dtypes`, on `device`, strided."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {tensor}")
    if tensor.dtype not in dtypes:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{name} must be {names}, got {tensor.dtype}")
    _value(tensor.device == device, name, f"on {device} as the other tensors are", tensor.device)
    _value(tensor.layout == torch.strided, name, "a strided tensor", tensor.layout)


def _writable(name: str, tensor: Tensor) -> None:
    """No two elements in one place, as an expanded tensor has."""
    ok = all(step != 0 or size <= 1 for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    _value(ok, name, "a tensor without overlapping elements", f"strides {tensor.stride()}")


def members(
    seeds: Tensor, sigmas: Tensor, device: torch.device, names: tuple[str, str] = ("seeds", "sigmas")
) -> int:
    """The member count N."""
    _kind(names[0], seeds, (torch.int64,), device)
    _kind(names[1], sigmas, (torch.float32,), device)
    _shape(seeds.dim() == 1, names[0], "[N]", seeds)
    _shape(sigmas.dim() == 1 and sigmas.shape[0] == seeds.shape[0], names[1], f"[N={seeds.shape[0]}]", sigmas)
    return seeds.shape[0]


def _groups(name: str, rows: Tensor, inner: str, count: int, offsets: Tensor | None) -> tuple[int, ...]:
    """The result's leading shape, (N, M) or (T,); `inner` names the last dimension of `rows`, if any."""
    dims = rows.dim() - (1 if inner else 0)
    if offsets is None:
        _shape(dims in (1, 2), name, f"[N, M{inner}] or [M{inner}] without offsets", rows)
        if dims == 1:
            return (count, rows.shape[0])
        _shape(rows.shape[0] == count, name, f"[N={count}, M{inner}]", rows)
        return (count, rows.shape[1])
    _kind("offsets", offsets, (torch.int64,), rows.device)
    _shape(dims == 1, name, f"[T{inner}] with offsets", rows)
    _shape(offsets.dim() == 1 and offsets.shape[0] == count + 1, "offsets", f"[N + 1 = {count + 1}]", offsets)
    _shape(count > 0 or rows.shape[0] == 0, name, f"[T=0{inner}] without members", rows)
    return (rows.shape[0],)


def _stream(
    name: str,
    noise: str,
    scale: float,
    origin: Origin,
    full_cols: int | None,
    rows: int,
    cols: int,
    vector: bool,
) -> Stream:
    """The noise of a tensor with this matrix view, [1, H] for a vector."""
    kind = family(noise)
    row, col = origin
    origin = (row, col)  # torch hands over a list
    end = col + cols
    _value(abs(scale) <= FLOAT32_MAX, "scale", "a finite float32", scale)
    _value(row >= 0 and col >= 0, "origin", "(row >= 0, column >= 0)", origin)
    if vector:
        _value(row == 0, "origin", "(0, column) for a vector", origin)
    _value(row + rows <= INDEX_LIMIT, "origin", f"(row <= 2**32 - {rows}, column)", origin)
    _value(end <= INDEX_LIMIT, "origin", f"(row, column <= 2**32 - {cols})", origin)
    if full_cols is not None:
        _value(
            end <= full_cols <= INDEX_LIMIT,
            "full_cols",
            f"between origin[1] + columns = {end} and 2**32",
            full_cols,
        )
    elif kind.kind == "hadamard" and not vector:
        torch._check_value(
            col == 0,
            lambda: (
                f"full_cols must be given for noise 'hadamard' with origin {origin}: its noise depends on it"
            ),
        )
    return Stream(name, kind.for_vector() if vector else kind, row, col, full_cols, scale)


def _precision(precision: str) -> None:
    _value(precision in ("exact", "storage"), "precision", "'exact' or 'storage'", repr(precision))


def perturbed_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seeds: Tensor,
    sigmas: Tensor,
    offsets: Tensor | None,
    name: str,
    noise: str,
    scale: float,
    origin: Origin,
    full_cols: int | None,
    bias_name: str | None,
    bias_scale: float,
    precision: str,
) -> tuple[tuple[int, ...], Stream, Stream | None]:
    """Shape of the result, stream of the weight, stream of the bias if it is perturbed."""
    _kind("x", x, STORAGE, x.device)
    _kind("weight", weight, STORAGE, x.device)
    lead = _groups("x", x, ", K", members(seeds, sigmas, x.device), offsets)
    _shape(weight.dim() == 2 and weight.shape[1] == x.shape[-1], "weight", f"[O, K={x.shape[-1]}]", weight)
    outputs, inputs = weight.shape
    stream = _stream(name, noise, scale, origin, full_cols, outputs, inputs, vector=False)
    bias_stream = None
    if bias is not None:
        _kind("bias", bias, (weight.dtype,), x.device)
        _shape(bias.dim() == 1 and bias.shape[0] == outputs, "bias", f"[O={outputs}]", bias)
    if bias_name is not None:
        torch._check_value(
            bias is not None, lambda: f"bias must be given with bias_name {bias_name!r}, got None"
        )
        _value(bias_name != name, "bias_name", "another name than the weight's", repr(bias_name))
        _value(abs(bias_scale) <= FLOAT32_MAX, "bias_scale", "a finite float32", bias_scale)
        bias_stream = _stream(bias_name, noise, bias_scale, (0, origin[0]), None, 1, outputs, vector=True)
    _precision(precision)
    return (*lead, outputs), stream, bias_stream


def noise_linear_(
    y: Tensor,
    x: Tensor,
    seeds: Tensor,
    sigmas: Tensor,
    offsets: Tensor | None,
    name: str,
    noise: str,
    scale: float,
    origin: Origin,
    full_cols: int | None,
) -> Stream:
    _kind("y", y, STORAGE, x.device)
    _kind("x", x, STORAGE, x.device)
    _writable("y", y)
    lead = _groups("x", x, ", K", members(seeds, sigmas, x.device), offsets)
    expected = ", ".join(
        f"{symbol}={size}" for symbol, size in zip("NM" if len(lead) == 2 else "T", lead, strict=True)
    )
    _shape(y.dim() == len(lead) + 1 and tuple(y.shape[:-1]) == lead, "y", f"[{expected}, O]", y)
    return _stream(name, noise, scale, origin, full_cols, y.shape[-1], x.shape[-1], vector=False)


def perturbed_embedding(
    ids: Tensor,
    weight: Tensor,
    seeds: Tensor,
    sigmas: Tensor,
    offsets: Tensor | None,
    name: str,
    noise: str,
    scale: float,
    origin: Origin,
    full_cols: int | None,
    precision: str,
) -> tuple[tuple[int, ...], Stream]:
    """Shape of the result and stream of the table."""
    _kind("ids", ids, (torch.int64, torch.int32), ids.device)
    _kind("weight", weight, STORAGE, ids.device)
    lead = _groups("ids", ids, "", members(seeds, sigmas, ids.device), offsets)
    _shape(weight.dim() == 2, "weight", "[V, D]", weight)
    _precision(precision)
    rows, cols = weight.shape
    return (*lead, cols), _stream(name, noise, scale, origin, full_cols, rows, cols, vector=False)


def perturbed_vector(
    weight: Tensor,
    seeds: Tensor,
    sigmas: Tensor,
    name: str,
    noise: str,
    scale: float,
    origin: Origin,
    full_cols: int | None,
    precision: str,
) -> tuple[tuple[int, int], torch.dtype, Stream]:
    """Shape and dtype of the result, stream of the vector."""
    _kind("weight", weight, STORAGE, weight.device)
    _shape(weight.dim() == 1, "weight", "[H]", weight)
    count = members(seeds, sigmas, weight.device)
    _precision(precision)
    size = weight.shape[0]
    stream = _stream(name, noise, scale, origin, full_cols, 1, size, vector=True)
    return (count, size), torch.float32 if precision == "exact" else weight.dtype, stream


def _view(
    weight: Tensor, name: str, noise: str, scale: float, origin: Origin, full_cols: int | None
) -> Stream:
    """The stream of a parameter given as its matrix view, or of a vector or scalar."""
    _kind("weight", weight, STORAGE, weight.device)
    _shape(weight.dim() <= 2, "weight", "a matrix view [rows, cols], a vector [H] or a scalar []", weight)
    rows, cols = weight.shape if weight.dim() == 2 else (1, weight.numel())
    return _stream(name, noise, scale, origin, full_cols, rows, cols, vector=weight.dim() < 2)


def perturb_(
    out: Tensor,
    weight: Tensor,
    seed: Tensor,
    sigma: Tensor,
    name: str,
    noise: str,
    scale: float,
    origin: Origin,
    full_cols: int | None,
) -> Stream:
    stream = _view(weight, name, noise, scale, origin, full_cols)
    _kind("out", out, STORAGE, weight.device)
    _shape(out.shape == weight.shape, "out", f"{list(weight.shape)} as weight is", out)
    _writable("out", out)
    count = members(seed, sigma, weight.device, ("seed", "sigma"))
    _shape(count == 1, "seed", "one seed [1]", seed)
    return stream


def accumulate_(
    weight: Tensor,
    seeds: Tensor,
    coefficients: Tensor,
    name: str,
    noise: str,
    scale: float,
    origin: Origin,
    full_cols: int | None,
) -> Stream:
    stream = _view(weight, name, noise, scale, origin, full_cols)
    _writable("weight", weight)
    members(seeds, coefficients, weight.device, ("seeds", "coefficients"))
    return stream


def sample_noise(
    seed: Tensor, rows: int, cols: int, name: str, noise: str, origin: Origin, full_cols: int | None
) -> Stream:
    _kind("seed", seed, (torch.int64,), seed.device)
    _shape(seed.dim() == 1 and seed.shape[0] == 1, "seed", "one seed [1]", seed)
    _value(rows >= 0 and cols >= 0, "rows and cols", ">= 0", (rows, cols))
    return _stream(name, noise, 1.0, origin, full_cols, rows, cols, vector=False)


def grouped_linear(
    x: Tensor, weights: Tensor, bias: Tensor | None, offsets: Tensor | None
) -> tuple[int, ...]:
    """Shape of the result."""
    _kind("x", x, STORAGE, x.device)
    _kind("weights", weights, STORAGE, x.device)
    _shape(weights.dim() == 3, "weights", "[N, O, K]", weights)
    count, outputs, inputs = weights.shape
    lead = _groups("x", x, ", K", count, offsets)
    _shape(x.shape[-1] == inputs, "weights", f"[N, O, K={x.shape[-1]}]", weights)
    if bias is not None:
        _kind("bias", bias, (weights.dtype,), x.device)
        _shape(tuple(bias.shape) == (count, outputs), "bias", f"[N={count}, O={outputs}]", bias)
    return (*lead, outputs)


def check_finite(name: str, sigmas: Tensor, *streams: Stream | None) -> None:
    """Every sigma is finite, and so is s = float32(sigma * scale) in every stream."""
    if sigmas.device.type == "cpu":
        for scale in {stream.scale for stream in streams if stream} or {1.0}:
            scaled = sigmas if scale == 1.0 else sigmas * scale
            if not all(map(math.isfinite, scaled.tolist())):  # a tenth of what torch's ops take for so few
                times = "" if scale == 1.0 else f", times scale {scale} too"
                raise ValueError(f"{name} must be finite{times}, got {sigmas.tolist()}")


def check_offsets(offsets: Tensor | None, rows: int) -> None:
    """First 0, last T, never decreasing."""
    if offsets is not None and offsets.device.type == "cpu":
        bounds = offsets.tolist()
        if bounds[0] != 0 or bounds[-1] != rows or bounds != sorted(bounds):
            raise ValueError(f"offsets must begin with 0, never decrease and end with T={rows}, got {bounds}")


def check_ids(ids: Tensor, rows: int) -> None:
    """Every id is a row of the table."""
    if ids.device.type == "cpu" and ids.numel():
        low, high = (int(bound) for bound in ids.aminmax())
        if low < 0 or high >= rows:
            raise IndexError(f"ids must be in [0, V={rows}), got {low if low < 0 else high}")


def check_apart(name: str, written: Tensor, other_name: str, other: Tensor) -> None:
    """`written` shares no memory with `other`."""
    if _overlap(written, other):
        raise ValueError(f"{name} must not share memory with {other_name}")


def _span(tensor: Tensor) -> tuple[int, int]:
    """The addresses of the first byte and past the last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors share bytes; views whose rows interleave do not."""
    if a.numel() == 0 or b.numel() == 0:
        return False
    (begin, end), (other_begin, other_end) = _span(a), _span(b)
    if end <= other_begin or other_end <= begin:
        return False
    pitch = a.stride(-2) * a.element_size() if a.dim() == b.dim() == 2 else 0
    if pitch > 0 and pitch == b.stride(-2) * b.element_size() and a.stride(-1) == b.stride(-1) == 1:
        between = (other_begin - begin) % pitch  # from a's columns to b's, in a row of their common storage
        return between < a.shape[1] * a.element_size() or between + b.shape[1] * b.element_size() > pitch
    return True
