"""The float64 oracle of every op: W' = fma(s, eps, W) materialised as the contract says, products in float64.

Every `oracle_*` returns an `Expected` (products) or the exact tensor (embeddings, vectors, perturbed and
accumulated weights: no sum, so backends agree bit for bit). Normals are those of the backend under test,
which `assert_same_noise` compares with the contract's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from thickets.backends import REGISTRY
from thickets.noise import Stream, entries, fma32


class Expected(NamedTuple):
    """A product in float64, and of the same shape the sum of the magnitudes that were added up for it.

    `noise` is the noise's part of that sum, |s| |x| |eps|^T.
    """

    value: Tensor
    magnitude: Tensor
    noise: Tensor | None = None


class Tolerance(NamedTuple):
    """Allowed |actual - value|: rounding * |value| + accumulation * magnitude + absolute."""

    rounding: float
    accumulation: float
    absolute: float


# The one tolerance table. `rounding` is the unit roundoff of the result's dtype: it is rounded once.
# `absolute` is half its smallest subnormal. `accumulation` bounds the float32 sum, whatever its order: K
# terms err by at most K 2^-24 times the magnitude sum |x| |W'|, and in fact, since rounding errors have both
# signs and partial sums lie below the magnitude sum, by 2 to 3 times 2^-24 in tests with K up to 2048 (about
# 11 for a serial sum of 4096 positive terms); 16 are allowed. One wrong noise entry moves the result by
# sigma |x|: at K = 4096 and sigma = 0.1 |W| still 25 times as much.
ACCUMULATION = 16 * 2.0**-24
TOLERANCE: dict[torch.dtype, Tolerance] = {
    torch.float32: Tolerance(2.0**-24, ACCUMULATION, 2.0**-150),
    torch.bfloat16: Tolerance(2.0**-8, ACCUMULATION, 2.0**-134),
    torch.float16: Tolerance(2.0**-11, ACCUMULATION, 2.0**-25),
}


def eps_rounding(
    backend: str,
    noise: str,
    x_dtype: torch.dtype,
    weight_dtype: torch.dtype | None,
    precision: str,
    many: bool = False,
) -> float:
    """The relative error that a backend may make in eps itself: half a unit of 16-bit x on GPUs.

    Only under "exact", where W and x have one dtype or there is no W, if entries do not fit that dtype. For
    many rows a bfloat16 W comes with s eps rounded, which fits in no dense family.
    """
    if backend not in ("triton", "cuda") or precision != "exact":
        return 0.0
    if x_dtype == torch.float32 or weight_dtype not in (None, x_dtype):
        return 0.0
    scaled = many and weight_dtype == torch.bfloat16 and noise in ("normal4", "rademacher")
    return TOLERANCE[x_dtype].rounding if scaled or noise in ("normal", "hadamard") else 0.0


def assert_same_noise(
    actual: Tensor, expected: Tensor, backend: str, noise: str, what: object = "noise"
) -> None:
    """Fail unless noise has the contract's bits, or for normals of "cuda" lies within section 4's bounds."""
    if own_normals(backend, noise):
        error = (actual.double() - expected.double()).abs()
        most, mean = error.max().item(), error.square().mean().sqrt().item()
        assert most <= 1e-3, f"{what} of {backend}: off by {most:.2g}"
        # A mean of few says little: one normal in a thousand may be off by more.
        assert mean <= 1e-6 or actual.numel() < 4096, (
            f"{what} of {backend}: off by {mean:.2g} root mean square"
        )
    else:
        assert torch.equal(actual, expected), f"{what} of {backend}: other bits than the contract's"


def own_normals(backend: str, noise: str) -> bool:
    """Whether a backend's noise may deviate from the contract's bits (docs/noise.md, section 4)."""
    return backend == "cuda" and noise == "normal"


def entries_of(backend: str, seeds: Tensor, stream: Stream, rows: int, cols: int) -> Tensor:
    """eps of the backend under test, [N, rows, cols]: the contract's, or its own normals."""
    if not own_normals(backend, stream.family.kind):
        return entries(seeds, stream, rows, cols)
    out = torch.empty(len(seeds), rows, cols, device=seeds.device)
    for plane, seed in zip(out, seeds.split(1), strict=True):
        REGISTRY[backend].noise(plane, seed, stream)
    return out


def scaled(sigmas: Tensor, stream: Stream) -> Tensor:
    """s_n = sigma_n * scale, both float32, rounded once: float32 [N]."""
    return sigmas.float() * torch.tensor(stream.scale, dtype=torch.float32, device=sigmas.device)


def member_weights(
    weight: Tensor, seeds: Tensor, sigmas: Tensor, stream: Stream, precision: str, backend: str = "reference"
) -> Tensor:
    """W' of every member, [N, rows, cols] float32; rounded to the dtype of `weight` under "storage"."""
    eps = entries_of(backend, seeds, stream, *weight.shape)
    perturbed = fma32(scaled(sigmas, stream)[:, None, None], eps, weight.float())
    return perturbed.to(weight.dtype).float() if precision == "storage" else perturbed


def oracle_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seeds: Tensor,
    sigmas: Tensor,
    offsets: Tensor | None,
    stream: Stream,
    bias_stream: Stream | None,
    precision: str,
    backend: str = "reference",
) -> Expected:
    """x W'^T + b' per member: x [N, M, K], [M, K] shared or [T, K] with offsets -> [N, M, O] or [T, O]."""
    weights = member_weights(weight, seeds, sigmas, stream, precision, backend)
    value = _grouped(x, weights, offsets)
    noise = _grouped(x.abs(), _noise_size(seeds, sigmas, stream, *weight.shape), offsets)
    magnitude = noise + _grouped(x.abs(), weight.float().abs().expand_as(weights), offsets)
    if bias is not None:
        if bias_stream is None:
            biases = bias.float().expand(len(seeds), -1)
        else:
            biases = oracle_vector(bias, seeds, sigmas, bias_stream, precision, backend).float()
        added = _spread(biases.double(), x, offsets)
        value, magnitude = value + added, magnitude + added.abs()
    return Expected(value, magnitude, noise)


def oracle_noise_linear(
    y: Tensor,
    x: Tensor,
    seeds: Tensor,
    sigmas: Tensor,
    offsets: Tensor | None,
    stream: Stream,
    backend: str = "reference",
) -> Expected:
    """y + s (x eps^T) per member, y [N, M, O] or [T, O]."""
    rows, cols = y.shape[-1], x.shape[-1]
    eps = entries_of(backend, seeds, stream, rows, cols).double()
    eps = scaled(sigmas, stream).double()[:, None, None] * eps
    noise = _grouped(x.abs(), _noise_size(seeds, sigmas, stream, rows, cols), offsets)
    return Expected(y.double() + _grouped(x, eps, offsets), y.double().abs() + noise, noise)


def oracle_embedding(
    ids: Tensor,
    weight: Tensor,
    seeds: Tensor,
    sigmas: Tensor,
    offsets: Tensor | None,
    stream: Stream,
    precision: str,
    backend: str = "reference",
) -> Tensor:
    """Rows `ids` of each member's W', in W's dtype: ids [N, M], [M] shared or [T] with offsets."""
    weights = member_weights(weight, seeds, sigmas, stream, precision, backend).to(weight.dtype)
    if offsets is not None:
        return weights[_member_of_row(ids, offsets), ids]
    members = torch.arange(len(seeds), device=ids.device)[:, None]
    return weights[members, ids.expand(len(seeds), -1)]


def oracle_vector(
    weight: Tensor, seeds: Tensor, sigmas: Tensor, stream: Stream, precision: str, backend: str = "reference"
) -> Tensor:
    """W' of a vector for every member, [N, H]: float32, or the dtype of `weight` under "storage"."""
    stream = stream._replace(family=stream.family.for_vector())
    perturbed = member_weights(weight[None], seeds, sigmas, stream, precision, backend)[:, 0]
    return perturbed.to(weight.dtype) if precision == "storage" else perturbed


def oracle_perturb(
    weight: Tensor,
    seed: Tensor,
    sigma: Tensor,
    stream: Stream,
    dtype: torch.dtype | None = None,
    backend: str = "reference",
) -> Tensor:
    """One member's W', float32 rounded to `dtype` (default: that of `weight`); weight [rows, cols]."""
    return member_weights(weight, seed, sigma, stream, "exact", backend)[0].to(dtype or weight.dtype)


def oracle_accumulate(
    weight: Tensor, seeds: Tensor, coefficients: Tensor, stream: Stream, backend: str = "reference"
) -> Tensor:
    """W + sum_i c_i eps_i: a float32 fma chain over ascending i from 0, one sum, rounded to W's dtype."""
    total = torch.zeros(weight.shape, device=weight.device)
    noise = entries_of(backend, seeds, stream, *weight.shape)
    for c, eps in zip(scaled(coefficients, stream), noise, strict=True):
        total = fma32(eps, c, total)
    return (weight.float() + total).to(weight.dtype)


def _noise_size(seeds: Tensor, sigmas: Tensor, stream: Stream, rows: int, cols: int) -> Tensor:
    """|s| |eps|, an entry counting at least 1: fast transforms round relative to that."""
    eps = entries(seeds, stream, rows, cols).abs().clamp(min=1.0)
    return scaled(sigmas, stream).abs()[:, None, None] * eps


def _member_of_row(rows: Tensor, offsets: Tensor) -> Tensor:
    index = torch.arange(rows.shape[0], device=rows.device)
    return torch.searchsorted(offsets[1:].contiguous(), index, right=True)


def _grouped(x: Tensor, weights: Tensor, offsets: Tensor | None) -> Tensor:
    """Each member's rows of x times its own weights [N, O, K], transposed, in float64."""
    if offsets is None:
        return x.double() @ weights.double().mT
    bounds = offsets.tolist()
    parts = [x[a:b].double() @ w.double().T for a, b, w in zip(bounds, bounds[1:], weights, strict=False)]
    return torch.cat(parts)


def _spread(biases: Tensor, x: Tensor, offsets: Tensor | None) -> Tensor:
    """Biases [N, O] laid out to be added to the product of x."""
    return biases[:, None] if offsets is None else biases[_member_of_row(x, offsets)]


def assert_close(
    actual: Tensor, expected: Expected | Tensor, what: str = "result", eps_rounding: float = 0.0
) -> None:
    """Fail, naming shape and first bad coordinate, unless `actual` lies within TOLERANCE of its dtype.

    `eps_rounding` allows for a relative error of the noise's entries, as the function of that name says.
    """
    if isinstance(expected, Tensor):
        expected = Expected(expected.double(), expected.double().abs())
    assert actual.shape == expected.value.shape, (
        f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.value.shape)}"
    )
    tolerance = TOLERANCE[actual.dtype]
    allowed = (
        tolerance.rounding * expected.value.abs()
        + tolerance.accumulation * expected.magnitude
        + tolerance.absolute
    )
    if eps_rounding:
        assert expected.noise is not None
        allowed = allowed + eps_rounding * expected.noise
    bad = ~((actual.double() - expected.value).abs() <= allowed)  # NaN is bad
    if bad.any():
        first = tuple(bad.nonzero()[0].tolist())
        raise AssertionError(
            f"{what} of shape {tuple(actual.shape)} {actual.dtype}: {int(bad.sum())} of {bad.numel()} wrong, "
            f"first at {first}: got {actual[first].item()!r}, expected {expected.value[first].item()!r} "
            f"within {allowed[first].item():.3g}"
        )
