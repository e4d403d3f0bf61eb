"""The ops as torch sees them: schemas, fakes and eager implementations in the namespace `thickets`.

`thickets.functional` is the public face; call these through it. The eager implementation checks, deals with
whatever is empty or badly strided, and hands the rest to a backend. Ops that write return nothing (an alias
would fail opcheck).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from . import checks
from .backends import choose

Given = TypeVar("Given", Tensor, Tensor | None)

LIBRARY = torch.library.Library("thickets", "DEF")
PLACE = "str name, str noise, float scale, SymInt[2] origin, SymInt? full_cols"

BELOW_AUTOGRAD = torch._C._after_autograd_keyset


def _refuse_grad(op: torch._ops.OpOverload, keyset: torch._C.DispatchKeySet, *args: Any) -> Any:
    """The autograd kernel of every op: refuse what needs a gradient, note what is written, go on below."""
    if torch.is_grad_enabled():
        for argument, value in zip(op._schema.arguments, args, strict=True):
            if isinstance(value, Tensor) and value.requires_grad:
                raise RuntimeError(
                    f"{op.name()} has no gradient, but {argument.name} requires grad: use torch.no_grad()"
                )
    if op._schema.is_mutable:
        torch.autograd.graph.increment_version(args[0])
    with torch._C._AutoDispatchBelowAutograd():
        return op.redispatch(keyset & BELOW_AUTOGRAD, *args)


def _as_written(eager: Callable) -> Callable:
    """The implementation outside of any autocast, which would run its float32 products in 16 bits."""

    @wraps(eager)
    def run(*args: Any) -> Any:
        with torch._C._DisableAutocast():
            return eager(*args)

    return run


def _op(schema: str, fake: Callable) -> Callable[[Callable], torch._ops.OpOverload]:
    """Register an op by schema and fake; decorates the eager implementation and puts the op in its place."""

    def register(eager: Callable) -> torch._ops.OpOverload:
        name = LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        op = getattr(torch.ops.thickets, name).default
        LIBRARY.impl(name, _as_written(eager), "CompositeExplicitAutograd")
        LIBRARY.impl(name, partial(_refuse_grad, op), "Autograd", with_keyset=True)
        torch.library.register_fake(f"thickets::{name}", fake, lib=LIBRARY)
        return op

    return register


def _rows(tensor: Given) -> Given:
    """The tensor itself if its last dimension is contiguous, else a contiguous copy; None if not given."""
    return tensor if tensor is None or tensor.stride(-1) == 1 else tensor.contiguous()


def _matrix(tensor: Tensor) -> Tensor:
    """The matrix view of a matrix, vector or scalar."""
    return tensor if tensor.dim() == 2 else tensor.reshape(1, tensor.numel())


def _write(tensor: Tensor, run: Callable[[Tensor], None]) -> None:
    """Run a writing function on `tensor`, through a copy where its last dimension is not contiguous."""
    target = _rows(tensor)
    run(target)
    if target is not tensor:
        tensor.copy_(target)


def _one_zero_column(tensor: Tensor) -> Tensor:
    """[..., 0] -> zeros [..., 1]: a sum over no columns equals one over a column of zeros."""
    return tensor.new_zeros(*tensor.shape[:-1], 1)


def _fake_perturbed_linear(x: Tensor, *args: Any) -> Tensor:
    return x.new_empty(checks.perturbed_linear(x, *args[:-1])[0])


@_op(
    "perturbed_linear(Tensor x, Tensor weight, Tensor? bias, Tensor seeds, Tensor sigmas, Tensor? offsets, "
    f"{PLACE}, str? bias_name, float bias_scale, str precision, str backend) -> Tensor",
    _fake_perturbed_linear,
)
def perturbed_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seeds: Tensor,
    sigmas: Tensor,
    offsets: Tensor | None,
    *rest: Any,
) -> Tensor:
    precision, backend = rest[-2:]
    shape, stream, bias_stream = checks.perturbed_linear(x, weight, bias, seeds, sigmas, offsets, *rest[:-1])
    checks.check_finite("sigmas", sigmas, stream, bias_stream)
    checks.check_offsets(offsets, x.shape[0])
    chosen = choose(backend, x.device)
    if 0 in shape:
        return x.new_empty(shape)
    if weight.shape[1] == 0:
        x, weight = _one_zero_column(x), _one_zero_column(weight)
        stream = stream._replace(col=0, full_cols=None)
    return chosen.linear(
        _rows(x),
        _rows(weight),
        _rows(bias),
        _rows(seeds),
        _rows(sigmas),
        _rows(offsets),
        stream,
        bias_stream,
        precision,
    )


def _fake_noise_linear_(*args: Any) -> None:
    checks.noise_linear_(*args[:-1])


@_op(
    "noise_linear_(Tensor(a!) y, Tensor x, Tensor seeds, Tensor sigmas, Tensor? offsets, "
    f"{PLACE}, str backend) -> ()",
    _fake_noise_linear_,
)
def noise_linear_(
    y: Tensor, x: Tensor, seeds: Tensor, sigmas: Tensor, offsets: Tensor | None, *rest: Any
) -> None:
    stream = checks.noise_linear_(y, x, seeds, sigmas, offsets, *rest[:-1])
    checks.check_finite("sigmas", sigmas, stream)
    checks.check_offsets(offsets, x.shape[0])
    checks.check_apart("y", y, "x", x)
    chosen = choose(rest[-1], x.device)
    if y.numel() == 0 or x.shape[-1] == 0:
        return
    product = _rows(x), _rows(seeds), _rows(sigmas), _rows(offsets), stream
    _write(y, lambda target: chosen.noise_linear_(target, *product))


def _fake_perturbed_embedding(ids: Tensor, weight: Tensor, *args: Any) -> Tensor:
    return weight.new_empty(checks.perturbed_embedding(ids, weight, *args[:-1])[0])


@_op(
    "perturbed_embedding(Tensor ids, Tensor weight, Tensor seeds, Tensor sigmas, Tensor? offsets, "
    f"{PLACE}, str precision, str backend) -> Tensor",
    _fake_perturbed_embedding,
)
def perturbed_embedding(
    ids: Tensor, weight: Tensor, seeds: Tensor, sigmas: Tensor, offsets: Tensor | None, *rest: Any
) -> Tensor:
    precision, backend = rest[-2:]
    shape, stream = checks.perturbed_embedding(ids, weight, seeds, sigmas, offsets, *rest[:-1])
    checks.check_finite("sigmas", sigmas, stream)
    checks.check_offsets(offsets, ids.shape[0])
    checks.check_ids(ids, weight.shape[0])
    chosen = choose(backend, ids.device)
    if 0 in shape:
        return weight.new_empty(shape)
    return chosen.embedding(
        _rows(ids), _rows(weight), _rows(seeds), _rows(sigmas), _rows(offsets), stream, precision
    )


def _fake_perturbed_vector(weight: Tensor, *args: Any) -> Tensor:
    shape, dtype, _ = checks.perturbed_vector(weight, *args[:-1])
    return weight.new_empty(shape, dtype=dtype)


@_op(
    "perturbed_vector(Tensor weight, Tensor seeds, Tensor sigmas, "
    f"{PLACE}, str precision, str backend) -> Tensor",
    _fake_perturbed_vector,
)
def perturbed_vector(weight: Tensor, seeds: Tensor, sigmas: Tensor, *rest: Any) -> Tensor:
    precision, backend = rest[-2:]
    shape, dtype, stream = checks.perturbed_vector(weight, seeds, sigmas, *rest[:-1])
    checks.check_finite("sigmas", sigmas, stream)
    chosen = choose(backend, weight.device)
    if 0 in shape:
        return weight.new_empty(shape, dtype=dtype)
    return chosen.vector(_rows(weight), _rows(seeds), _rows(sigmas), stream, precision)


def _fake_perturb_(*args: Any) -> None:
    checks.perturb_(*args[:-1])


@_op(
    f"perturb_(Tensor(a!) out, Tensor weight, Tensor seed, Tensor sigma, {PLACE}, str backend) -> ()",
    _fake_perturb_,
)
def perturb_(out: Tensor, weight: Tensor, seed: Tensor, sigma: Tensor, *rest: Any) -> None:
    stream = checks.perturb_(out, weight, seed, sigma, *rest[:-1])
    checks.check_finite("sigma", sigma, stream)
    same = out.data_ptr() == weight.data_ptr() and out.dtype == weight.dtype
    if not (same and out.stride() == weight.stride()):
        checks.check_apart("out", out, "weight", weight)
    chosen = choose(rest[-1], weight.device)
    if out.numel() == 0:
        return
    source = _rows(_matrix(weight))
    _write(_matrix(out), lambda target: chosen.perturb_(target, source, seed, sigma, stream))


def _fake_accumulate_(*args: Any) -> None:
    checks.accumulate_(*args[:-1])


@_op(
    f"accumulate_(Tensor(a!) weight, Tensor seeds, Tensor coefficients, {PLACE}, str backend) -> ()",
    _fake_accumulate_,
)
def accumulate_(weight: Tensor, seeds: Tensor, coefficients: Tensor, *rest: Any) -> None:
    stream = checks.accumulate_(weight, seeds, coefficients, *rest[:-1])
    checks.check_finite("coefficients", coefficients, stream)
    chosen = choose(rest[-1], weight.device)
    if weight.numel() == 0 or seeds.numel() == 0:
        return
    terms = _rows(seeds), _rows(coefficients), stream
    _write(_matrix(weight), lambda target: chosen.accumulate_(target, *terms))


def _fake_sample_noise(seed: Tensor, rows: int, cols: int, *args: Any) -> Tensor:
    checks.sample_noise(seed, rows, cols, *args[:-1])
    return seed.new_empty((rows, cols), dtype=torch.float32)


@_op(
    "sample_noise(Tensor seed, SymInt rows, SymInt cols, "
    "str name, str noise, SymInt[2] origin, SymInt? full_cols, str backend) -> Tensor",
    _fake_sample_noise,
)
def sample_noise(seed: Tensor, rows: int, cols: int, *rest: Any) -> Tensor:
    stream = checks.sample_noise(seed, rows, cols, *rest[:-1])
    chosen = choose(rest[-1], seed.device)
    out = seed.new_empty((rows, cols), dtype=torch.float32)
    if out.numel():
        chosen.noise(out, seed, stream)
    return out


def _fake_grouped_linear(x: Tensor, *args: Any) -> Tensor:
    return x.new_empty(checks.grouped_linear(x, *args[:-1]))


@_op(
    "grouped_linear(Tensor x, Tensor weights, Tensor? bias, Tensor? offsets, str backend) -> Tensor",
    _fake_grouped_linear,
)
def grouped_linear(
    x: Tensor, weights: Tensor, bias: Tensor | None, offsets: Tensor | None, backend: str
) -> Tensor:
    shape = checks.grouped_linear(x, weights, bias, offsets)
    checks.check_offsets(offsets, x.shape[0])
    chosen = choose(backend, x.device)
    if 0 in shape:
        return x.new_empty(shape)
    if x.shape[-1] == 0:
        x, weights = _one_zero_column(x), _one_zero_column(weights)
    bias = None if bias is None else bias.contiguous()
    return chosen.grouped_linear(_rows(x), _rows(weights), bias, _rows(offsets))
