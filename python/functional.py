"""The ops as functions: perturbed products, look-ups and updates for N members, each a seed and a sigma.

Sizes: N members, M rows of activations per member or T rows in all, K inputs, O outputs. W, x and their like
are float32, bfloat16 or float16. All functions share these arguments:

- seeds, sigmas: the N members. seeds: Python integers 0 <= s < 2**64, or an int64 tensor [N] of their bit
  patterns; sigmas: finite numbers, or a float32 tensor [N]. Tensors let compiled code and CUDA graphs see new
  members.
- name: the parameter's canonical name, on which its noise depends; noise: the family, "normal", "normal4",
  "rademacher", "hadamard" or "lowrank-R"; scale: the parameter's factor, s_n = float32(sigma_n * scale).
- origin, full_cols: the position (row, column) of weight[0, 0] in the whole parameter's matrix view, and the
  whole column count, for shards.
- offsets: int64 tensor [N + 1], first 0, last T, never decreasing; rows offsets[n] to offsets[n + 1] use
  member n.
- precision: "exact" never rounds W' = W + s eps to the dtype of W, "storage" does.
- backend: "auto" or a registered name.

Errors name the argument, what was expected and what came: TypeError for a dtype, ValueError for a shape, a
device or a value (IndexError for ids), RuntimeError for a backend that cannot run here and for an input that
requires grad under grad mode. Values that lie in CUDA tensors are not looked at. The noise is that of
docs/noise.md, version 1.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from . import checks, ops
from .noise import Family, family

__all__ = [
    "accumulate_",
    "grouped_linear",
    "members_tensors",
    "noise_linear_",
    "perturb_",
    "perturbed_embedding",
    "perturbed_linear",
    "perturbed_vector",
    "sample_noise",
]

Seeds = Sequence[int] | Tensor
Sigmas = Sequence[float] | Tensor
Origin = tuple[int, int]


def _seeds(name: str, seeds: Seeds, device: torch.device) -> Tensor:
    """int64 [N] on `device`; integers become the bit patterns of their unsigned 64-bit values."""
    if isinstance(seeds, Tensor):
        return seeds.to(device)
    try:
        values = [operator.index(seed) for seed in seeds]
    except TypeError:
        raise TypeError(f"{name} must be Python integers or an int64 tensor, got {seeds!r}") from None
    for value in values:
        if not 0 <= value < 1 << 64:
            raise ValueError(f"{name} must be in 0 <= seed < 2**64, got {value}")
    patterns = [value - (1 << 64) if value >= 1 << 63 else value for value in values]
    return torch.tensor(patterns, dtype=torch.int64, device=device)


def _sigmas(name: str, sigmas: Sigmas, device: torch.device) -> Tensor:
    """float32 [N] on `device`; numbers are checked here, where they still are on the host."""
    if isinstance(sigmas, Tensor):
        return sigmas.to(device)
    try:
        values = [float(sigma) for sigma in sigmas]
    except TypeError:
        raise TypeError(f"{name} must be numbers or a float32 tensor, got {sigmas!r}") from None
    for value in values:
        if not abs(value) <= checks.FLOAT32_MAX:
            raise ValueError(f"{name} must be finite in float32, got {value}")
    return torch.tensor(values, dtype=torch.float32, device=device)


def members_tensors(seeds: Seeds, sigmas: Sigmas, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """The members as tensors on `device`: seeds int64 [N] (unsigned bit patterns), sigmas float32 [N].

    ValueError if a Python seed is outside of 0 <= s < 2**64, a sigma that lies on the host is not finite in
    float32, or the counts differ; TypeError if a tensor has another dtype. For CUDA this is the only look at
    the values.
    """
    device = torch.device(device)
    if isinstance(sigmas, Tensor):
        checks.check_finite("sigmas", sigmas)
    members = _seeds("seeds", seeds, device), _sigmas("sigmas", sigmas, device)
    checks.members(*members, members[0].device)
    return members


def perturbed_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    seeds: Seeds,
    sigmas: Sigmas,
    name: str,
    bias_name: str | None = None,
    noise: str | Family = "normal",
    scale: float = 1.0,
    bias_scale: float = 1.0,
    origin: Origin = (0, 0),
    full_cols: int | None = None,
    offsets: Tensor | None = None,
    precision: str = "exact",
    backend: str = "auto",
) -> Tensor:
    """Linear layer of N perturbed members: group n of the rows of x times (W + s_n eps_n)^T, plus the bias.

    x: [N, M, K], or [M, K] shared by all members, or [T, K] with offsets; weight: [O, K]; bias: [O] in the
    dtype of weight, perturbed as the parameter `bias_name` (times `bias_scale`), or as it is without a name.
    Returns [N, M, O] or [T, O] in the dtype of x, accumulated in float32 and rounded once.

    Equivalent, with eps(seed) = sample_noise(weight.shape, seed=seed, ...) (docs/noise.md, section 1)::

        torch.stack([x[n] @ (weight + sigmas[n] * scale * eps(seeds[n])).T for n in range(N)])
    """
    return ops.perturbed_linear(
        x,
        weight,
        bias,
        _seeds("seeds", seeds, x.device),
        _sigmas("sigmas", sigmas, x.device),
        offsets,
        name,
        str(noise),
        scale,
        origin,
        full_cols,
        bias_name,
        bias_scale,
        precision,
        backend,
    )


def noise_linear_(
    y: Tensor,
    x: Tensor,
    *,
    seeds: Seeds,
    sigmas: Sigmas,
    name: str,
    noise: str | Family = "normal",
    scale: float = 1.0,
    origin: Origin = (0, 0),
    full_cols: int | None = None,
    offsets: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Add the noise product alone to what any linear layer made: y += s_n (x eps_n^T) per group; returns y.

    y: [N, M, O] or [T, O]; x: [N, M, K], or [M, K] shared by all members, or [T, K] with offsets, in other
    memory than y. The product is accumulated in float32. It perturbs layers that have no plain weight, such
    as quantised ones.

    Equivalent, with eps(seed) = sample_noise((O, K), seed=seed, ...) (docs/noise.md, section 1)::

        y += torch.stack([sigmas[n] * scale * (x[n] @ eps(seeds[n]).T) for n in range(N)])
    """
    ops.noise_linear_(
        y,
        x,
        _seeds("seeds", seeds, x.device),
        _sigmas("sigmas", sigmas, x.device),
        offsets,
        name,
        str(noise),
        scale,
        origin,
        full_cols,
        backend,
    )
    return y


def perturbed_embedding(
    ids: Tensor,
    weight: Tensor,
    *,
    seeds: Seeds,
    sigmas: Sigmas,
    name: str,
    noise: str | Family = "normal",
    scale: float = 1.0,
    origin: Origin = (0, 0),
    full_cols: int | None = None,
    offsets: Tensor | None = None,
    precision: str = "exact",
    backend: str = "auto",
) -> Tensor:
    """Look up rows of N perturbed embedding tables.

    ids: int64 or int32 [N, M], or [M] shared by all members, or [T] with offsets, in 0 <= id < V; weight:
    [V, D]. Returns [N, M, D] or [T, D] in the dtype of weight, rounded once.

    Equivalent, with eps(seed) = sample_noise(weight.shape, seed=seed, ...) (docs/noise.md, section 1)::

        torch.stack([(weight + sigmas[n] * scale * eps(seeds[n]))[ids[n]] for n in range(N)])
    """
    return ops.perturbed_embedding(
        ids,
        weight,
        _seeds("seeds", seeds, weight.device),
        _sigmas("sigmas", sigmas, weight.device),
        offsets,
        name,
        str(noise),
        scale,
        origin,
        full_cols,
        precision,
        backend,
    )


def perturbed_vector(
    weight: Tensor,
    *,
    seeds: Seeds,
    sigmas: Sigmas,
    name: str,
    noise: str | Family = "normal",
    scale: float = 1.0,
    origin: Origin = (0, 0),
    full_cols: int | None = None,
    precision: str = "exact",
    backend: str = "auto",
) -> Tensor:
    """All N perturbed copies of a vector parameter, such as a bias or the gain of a norm.

    weight: [H]; its matrix view is [1, H], so origin is (0, column); under hadamard and lowrank it takes
    normal noise. Returns [N, H], float32 for precision "exact", the dtype of weight for "storage".

    Equivalent, with eps(seed) = sample_noise((H,), seed=seed, ...) (docs/noise.md, sections 1 and 3)::

        torch.stack([weight + sigmas[n] * scale * eps(seeds[n]) for n in range(N)])
    """
    return ops.perturbed_vector(
        weight,
        _seeds("seeds", seeds, weight.device),
        _sigmas("sigmas", sigmas, weight.device),
        name,
        str(noise),
        scale,
        origin,
        full_cols,
        precision,
        backend,
    )


def perturb_(
    out: Tensor,
    weight: Tensor,
    *,
    seed: int | Tensor,
    sigma: float | Tensor,
    name: str,
    noise: str | Family = "normal",
    scale: float = 1.0,
    origin: Origin = (0, 0),
    full_cols: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """Write one materialised member over `out` and return it: fma(s, eps, W), rounded once to its dtype.

    weight: the matrix view [rows, cols] of a parameter, a vector [H] or a scalar []; out: the same shape in
    any storage dtype, either weight itself or other memory. seed and sigma may be tensors of one element.

    Equivalent, with eps(seed) = sample_noise(weight.shape, seed=seed, ...) (docs/noise.md, section 1)::

        out.copy_(weight + sigma * scale * eps(seed))
    """
    ops.perturb_(
        out,
        weight,
        _seeds("seed", seed.reshape(-1) if isinstance(seed, Tensor) else [seed], weight.device),
        _sigmas("sigma", sigma.reshape(-1) if isinstance(sigma, Tensor) else [sigma], weight.device),
        name,
        str(noise),
        scale,
        origin,
        full_cols,
        backend,
    )
    return out


def accumulate_(
    weight: Tensor,
    *,
    seeds: Seeds,
    coefficients: Sigmas,
    name: str,
    noise: str | Family = "normal",
    scale: float = 1.0,
    origin: Origin = (0, 0),
    full_cols: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """Add a combination of N members' noise to a weight in place and return it: W += sum_i c_i scale eps_i.

    weight: the matrix view [rows, cols] of a parameter, a vector [H] or a scalar []; coefficients: N finite
    numbers or float32 [N]. The sum runs in float32 over i ascending, one fma per term, and W is rounded once:
    averaged experts and the update of evolution strategies, without storing noise.

    Equivalent, with eps(seed) = sample_noise(weight.shape, seed=seed, ...) (docs/noise.md, section 1)::

        weight += sum(coefficients[i] * scale * eps(seeds[i]) for i in range(N))
    """
    ops.accumulate_(
        weight,
        _seeds("seeds", seeds, weight.device),
        _sigmas("coefficients", coefficients, weight.device),
        name,
        str(noise),
        scale,
        origin,
        full_cols,
        backend,
    )
    return weight


def sample_noise(
    shape: Sequence[int],
    *,
    seed: int | Tensor,
    name: str,
    noise: str | Family = "normal",
    rows: slice = slice(None),
    cols: slice = slice(None),
    device: torch.device | str = "cpu",
    backend: str = "auto",
) -> Tensor:
    """The noise itself: eps of one member and parameter, or the slice [rows, cols] of it, in float32.

    shape: the parameter's matrix view (rows, cols), or (H,) for a vector, which `cols` slices and which takes
    normal noise under hadamard and lowrank. Slices have step 1. Equivalent (docs/noise.md, sections 2 to 5)::

        sample_noise(shape, seed=seed, name=name)[rows, cols]
    """
    if len(shape) not in (1, 2) or min(shape) < 0:
        raise ValueError(f"shape must be (rows, cols) or (H,), got {tuple(shape)}")
    vector = len(shape) == 1
    if vector and rows != slice(None):
        raise ValueError(f"rows must be left out for a vector, which cols slices, got {rows}")
    row, row_end, row_step = rows.indices(1 if vector else shape[0])
    col, col_end, col_step = cols.indices(shape[-1])
    if row_step != 1 or col_step != 1:
        raise ValueError(f"rows and cols must be slices of step 1, got {rows} and {cols}")
    kind = family(noise)
    eps = ops.sample_noise(
        _seeds("seed", seed.reshape(-1) if isinstance(seed, Tensor) else [seed], torch.device(device)),
        max(0, row_end - row),
        max(0, col_end - col),
        name,
        str(kind.for_vector() if vector else kind),
        (row, col),
        shape[-1],
        backend,
    )
    return eps[0] if vector else eps


def grouped_linear(
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None = None,
    *,
    offsets: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Linear layer of N members whose weights are stored: perturbed_linear once they are written down.

    x: [N, M, K], or [M, K] shared by all members, or [T, K] with offsets; weights: [N, O, K]; bias: [N, O] in
    the dtype of weights. Returns [N, M, O] or [T, O] in the dtype of x, accumulated in float32 and rounded
    once.

    Equivalent::

        torch.stack([x[n] @ weights[n].T + bias[n] for n in range(N)])
    """
    return ops.grouped_linear(x, weights, bias, offsets, backend)
