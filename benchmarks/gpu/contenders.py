"""The contenders of a case: what a user does today, the two floors, and every family of every backend.

Linear layers, all on the same random inputs, times per member:

- `loop`: draw torch.randn, add it to the weight in place, multiply, subtract it (a few members per call).
- `floor A`: the unperturbed product of all members' rows.
- `floor B`: one materialised copy of the weight per member already in memory, as a batched product over as
  many members as fit a budget.
- `BACKEND FAMILY exact` and `storage`: `thickets.perturbed_linear`.
- `BACKEND FAMILY scratch`: `thickets.perturb_` into one reused buffer, then torch.mm (a few members per
  call).

Updates: the loop in place with torch.randn, a copy of the weight, and `thickets.perturb_` or `accumulate_`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

import thickets
from thickets.noise import Stream, entries
from thickets.noise import family as parse

from .cases import FAMILIES, PRECISIONS, Case, Linear, Update

SIGMA = 0.01
NAME = "bench.weight"
FEW = 8  # members of one call of a contender that takes them one by one
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 1e-3}  # relative error of the norm


@dataclass(frozen=True)
class Contender:
    """A call that computes `members` members; the fewest bytes it can move; its error against float64."""

    run: Callable[[], object]
    members: int
    bytes: int
    flops: int
    error: Callable[[], float] | None = None  # runs the call; None: a baseline


def contenders(
    case: Case, backends: Iterable[str], device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> dict[str, Contender]:
    """Baselines first, then every family of every backend; weights and activations in `dtype`."""
    if isinstance(case, Update):
        return _update(case, backends, device)
    return _linear(case, backends, device, dtype)


def _budget(device: torch.device) -> int:
    """Bytes for the materialised copies of floor B: far more than any cache, a small part of the memory."""
    if device.type == "cpu":
        return 1 << 28
    return min(4 << 30, torch.cuda.get_device_properties(device).total_memory // 16)


def _generator(device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(0)


def _weight(outputs: int, inputs: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    random = torch.randn(outputs, inputs, generator=_generator(device), device=device)
    return (random / inputs**0.5).to(dtype)


def _linear(
    case: Linear, backends: Iterable[str], device: torch.device, dtype: torch.dtype
) -> dict[str, Contender]:
    layer, count, rows = case.layer, case.members, case.rows
    w = _weight(layer.outputs, layer.inputs, device, dtype)
    x = torch.randn(count, rows, layer.inputs, generator=_generator(device), device=device, dtype=dtype)
    seeds = torch.arange(1, count + 1, device=device)
    sigmas = torch.full((count,), SIGMA, device=device)
    scratch, few, all_rows = w.clone(), min(count, FEW), x.flatten(0, 1)
    out, spans = x.new_empty(few, rows, layer.outputs), _spans(layer.outputs)
    each = case.flops // count
    one, activations = w.nbytes, rows * (layer.inputs + layer.outputs) * x.element_size()

    def loop() -> Tensor:
        for n in range(few):
            noise = torch.randn_like(scratch)
            scratch.add_(noise, alpha=SIGMA)
            torch.mm(x[n], scratch.T, out=out[n])
            scratch.sub_(noise, alpha=SIGMA)
        return out

    def perturbed(family: str, precision: str, backend: str) -> Callable[[], Tensor]:
        return lambda: thickets.perturbed_linear(
            x, w, seeds=seeds, sigmas=sigmas, name=NAME, noise=family, precision=precision, backend=backend
        )

    def through_scratch(family: str, backend: str) -> Callable[[], Tensor]:
        tail = {"name": NAME, "noise": family, "backend": backend}

        def run() -> Tensor:
            for n in range(few):
                thickets.perturb_(scratch, w, seed=seeds[n], sigma=sigmas[n], **tail)
                torch.mm(x[n], scratch.T, out=out[n])
            return out

        return run

    @cache
    def expected_weights(family: str, member: int) -> list[Tensor]:
        return [_perturbed(w, family, seeds[member : member + 1], span) for span in spans]

    def against_float64(run: Callable[[], Tensor], family: str, precision: str, member: int) -> float:
        poison = x.new_full((count, rows, layer.outputs), float("nan"))  # memory that `run` may well get
        out.fill_(float("nan"))
        del poison
        y = run()
        if not y.isfinite().all():
            return float("nan")
        chosen = torch.linspace(0, rows - 1, min(rows, 8), device=device).long()
        actual, expected = [], []
        for span, weights in zip(spans, expected_weights(family, member), strict=True):
            weights = weights.to(dtype).double() if precision == "storage" else weights
            actual.append(y[member][chosen, span].double())
            expected.append(x[member, chosen].double() @ weights.T)
        return _distance(torch.cat(actual, dim=1), torch.cat(expected, dim=1))

    def checked(
        run: Callable[[], Tensor], family: str, precision: str, members: int, moved: int
    ) -> Contender:
        def error() -> float:
            return against_float64(run, family, precision, members - 1)

        return Contender(run, members, moved, each * members, error)

    copies = max(1, min(count, _budget(device) // one))
    materialised = torch.randn(
        copies, layer.outputs, layer.inputs, generator=_generator(device), device=device, dtype=dtype
    )
    found = {
        "loop": Contender(loop, few, few * (8 * one + activations), few * each),
        "floor A": Contender(lambda: torch.mm(all_rows, w.T), count, one + count * activations, case.flops),
        "floor B": Contender(
            lambda: torch.bmm(x[:copies], materialised.mT),
            copies,
            copies * (one + activations),
            copies * each,
        ),
    }
    moved = {"fused": one + count * activations, "scratch": few * (3 * one + activations)}
    for backend in backends:
        for family in FAMILIES:
            for precision in PRECISIONS:
                run = perturbed(family, precision, backend)
                name = f"{backend} {family} {precision}"
                found[name] = checked(run, family, precision, count, moved["fused"])
        for family in FAMILIES:
            run = through_scratch(family, backend)
            found[f"{backend} {family} scratch"] = checked(run, family, "storage", few, moved["scratch"])
    return found


def _update(case: Update, backends: Iterable[str], device: torch.device) -> dict[str, Contender]:
    layer, count, dtype = case.layer, case.members, getattr(torch, case.dtype)
    w = _weight(layer.outputs, layer.inputs, device, dtype)
    out = w.clone()
    seeds = torch.arange(1, count + 1, device=device)
    factors = torch.full((count,), SIGMA, device=device)
    few, one = min(count, FEW), w.nbytes
    perturbs = case.op == "perturb_"

    def loop() -> None:
        for _ in range(few):
            out.add_(torch.randn_like(out), alpha=SIGMA)

    def ours(family: str, backend: str) -> Callable[[], object]:
        tail = {"name": NAME, "noise": family, "backend": backend}
        if perturbs:
            return lambda: thickets.perturb_(out, w, seed=seeds, sigma=factors, **tail)
        return lambda: thickets.accumulate_(out, seeds=seeds, coefficients=factors, **tail)

    def against_float64(run: Callable[[], object], family: str) -> float:
        out.fill_(float("nan")) if perturbs else out.copy_(w)
        run()
        if not out.isfinite().all():
            return float("nan")
        actual, expected = [], []
        for span in _spans(layer.outputs, 8):
            actual.append(out[span].double())
            expected.append(_perturbed(w, family, seeds, span))
        return _distance(torch.cat(actual), torch.cat(expected))

    def checked(run: Callable[[], object], family: str) -> Contender:
        return Contender(run, count, 2 * one, case.flops, lambda: against_float64(run, family))

    found = {
        "loop": Contender(loop, few, few * 5 * one, 2 * layer.size * few),
        "copy": Contender(lambda: out.copy_(w), count, 2 * one, 0),
    }
    for backend in backends:
        for family in FAMILIES:
            found[f"{backend} {family}"] = checked(ours(family, backend), family)
    return found


def _spans(outputs: int, width: int = 32) -> list[slice]:
    """The first, some middle and the last outputs, `width` of each."""
    width = min(width, outputs)
    starts = sorted({0, (outputs - width) // 2, outputs - width})
    return [slice(start, start + width) for start in starts]


def _perturbed(w: Tensor, family: str, seeds: Tensor, span: slice) -> Tensor:
    """Rows `span` of W + sigma times the sum of eps over `seeds`, float64; eps by the definition."""
    stream = Stream(NAME, parse(family), row=span.start)
    eps = entries(seeds, stream, span.stop - span.start, w.shape[1])
    return w[span].double() + SIGMA * eps.sum(dim=0, dtype=torch.float64)


def _distance(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()
