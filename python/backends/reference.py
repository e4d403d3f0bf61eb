"""Every op in plain PyTorch: the oracle of the tests, and the backend that runs where no kernel does.

Written for reading. It materialises the weights member by member, so it promises values, not speed; products
are torch's float32 products and follow `torch.set_float32_matmul_precision`. It never reads a CUDA tensor on
the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import repeat

import torch
from torch import Tensor
from torch.nn import functional as F

from ..noise import Stream, entries, fma32
from .record import Backend

CHUNK = 1 << 21  # weights materialised at a time: small layers take many members at once


def perturbed(weight: Tensor, seeds: Tensor, sigmas: Tensor, stream: Stream, precision: str) -> Tensor:
    """W' of every member, [N, rows, cols]: float32 for "exact", the dtype of `weight` for "storage"."""
    strengths = sigmas * stream.scale  # one float32 product: torch rounds a Python factor to float32 first
    members = fma32(strengths[:, None, None], entries(seeds, stream, *weight.shape), weight.float())
    return members if precision == "exact" else members.to(weight.dtype)


def one_by_one(generate: Callable[[slice], Tensor], count: int, size: int) -> Iterator[Tensor]:
    """The items of generate(slice(0, count)), made about CHUNK elements at a time, `size` to an item."""
    step = max(1, CHUNK // size)
    for start in range(0, count, step):
        yield from generate(slice(start, start + step))


def by_group(
    apply: Callable[[Tensor, Tensor], Tensor],
    rows: Tensor,
    members: Iterable,
    offsets: Tensor | None,
    out: Tensor,
) -> Tensor:
    """Fill and return `out`: its group n of rows is apply(group n of `rows`, the n-th of `members`)."""
    if offsets is None:
        for n, member in enumerate(members):
            out[n] = apply(rows[n], member)
    elif offsets.device.type == "cpu":
        bounds = offsets.tolist()
        for n, member in enumerate(members):
            group = slice(bounds[n], bounds[n + 1])
            out[group] = apply(rows[group], member)
    else:  # every member takes all rows and keeps its own, so that the offsets stay on their device
        owner = torch.bucketize(torch.arange(len(rows), device=rows.device), offsets[1:], right=True)[:, None]
        for n, member in enumerate(members):
            out.copy_(torch.where(owner == n, apply(rows, member), out))
    return out


def products(x: Tensor, members: Iterable, offsets: Tensor | None, count: int, outputs: int) -> Tensor:
    """Every group of rows of x times its member's (weight, bias), in float32: [N, M, O] or [T, O]."""
    if offsets is None and x.dim() == 2:
        x = x.expand(count, *x.shape)
    out = torch.zeros(*x.shape[:-1], outputs, device=x.device)
    return by_group(
        lambda rows, member: F.linear(
            rows, member[0].float(), None if member[1] is None else member[1].float()
        ),
        x.float(),
        members,
        offsets,
        out,
    )


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
    weights = one_by_one(
        lambda span: perturbed(weight, seeds[span], sigmas[span], stream, precision),
        len(seeds),
        weight.numel(),
    )
    biases: Iterable[Tensor | None] = repeat(bias)
    if bias is not None and bias_stream is not None:
        biases = vector(bias, seeds, sigmas, bias_stream, precision)
    return products(x, zip(weights, biases, strict=False), offsets, len(seeds), len(weight)).to(x.dtype)


def noise_linear_(
    y: Tensor, x: Tensor, seeds: Tensor, sigmas: Tensor, offsets: Tensor | None, stream: Stream
) -> None:
    zero = torch.zeros(y.shape[-1], x.shape[-1], device=x.device)
    y.copy_(y.float() + linear(x.float(), zero, None, seeds, sigmas, offsets, stream, None, "exact"))


def embedding(
    ids: Tensor,
    weight: Tensor,
    seeds: Tensor,
    sigmas: Tensor,
    offsets: Tensor | None,
    stream: Stream,
    precision: str,
) -> Tensor:
    tables = one_by_one(
        lambda span: perturbed(weight, seeds[span], sigmas[span], stream, precision),
        len(seeds),
        weight.numel(),
    )
    if offsets is None and ids.dim() == 1:
        ids = ids.expand(len(seeds), *ids.shape)
    out = torch.zeros(*ids.shape, weight.shape[-1], dtype=weight.dtype, device=weight.device)
    return by_group(lambda rows, table: F.embedding(rows, table).to(out.dtype), ids, tables, offsets, out)


def vector(weight: Tensor, seeds: Tensor, sigmas: Tensor, stream: Stream, precision: str) -> Tensor:
    return perturbed(weight[None], seeds, sigmas, stream, precision)[:, 0]


def perturb_(out: Tensor, weight: Tensor, seed: Tensor, sigma: Tensor, stream: Stream) -> None:
    out.copy_(perturbed(weight, seed, sigma, stream, "exact")[0])


def accumulate_(weight: Tensor, seeds: Tensor, coefficients: Tensor, stream: Stream) -> None:
    total = torch.zeros(weight.shape, device=weight.device)
    for seed, factor in zip(seeds.split(1), (coefficients * stream.scale).split(1), strict=True):
        total = fma32(factor, entries(seed, stream, *weight.shape)[0], total)
    weight.copy_(weight.float() + total)


def noise(out: Tensor, seed: Tensor, stream: Stream) -> None:
    out.copy_(entries(seed, stream, *out.shape)[0])


def grouped_linear(x: Tensor, weights: Tensor, bias: Tensor | None, offsets: Tensor | None) -> Tensor:
    biases = repeat(None) if bias is None else bias
    members = zip(weights, biases, strict=False)
    return products(x, members, offsets, len(weights), weights.shape[1]).to(x.dtype)


BACKEND = Backend(
    name="reference",
    devices=("cpu", "cuda"),
    why_not=lambda: None,
    linear=linear,
    noise_linear_=noise_linear_,
    embedding=embedding,
    vector=vector,
    perturb_=perturb_,
    accumulate_=accumulate_,
    noise=noise,
    grouped_linear=grouped_linear,
)
