"""The ratio table of docs/performance.md: one perturbed linear layer against today's loop and the floor.

- `loop`: for each member draw torch.randn, add it to the weight in place, multiply, subtract it: what the
  published RandOpt and evolution-strategies scripts do.
- `floor`: the unperturbed product of all members' rows in one call of the vendor's library.

All contenders of a case run in one process on the same random data, in alternating order, until the time is
up. Before anything is timed, each family's result is compared with a float64 product of materialised weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .functional import perturbed_linear, sample_noise

FAMILIES = ("normal", "normal4", "rademacher", "hadamard", "lowrank-1")
SHAPES = ((512, 512), (768, 3072), (4096, 4096))
ROWS = (1, 8, 64, 512)
SIGMA = 0.01
NAME = "bench.weight"
BASELINES = ("loop", "floor")
CPU = torch.device("cpu")

Contenders = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Case:
    """N members of a linear layer [outputs, inputs], each with `rows` rows of input."""

    outputs: int
    inputs: int
    rows: int
    members: int = 16

    def __str__(self) -> str:
        return f"{self.outputs}x{self.inputs}, {self.rows} rows"

    @property
    def flops(self) -> int:
        """Multiplications and additions of the product alone, per member."""
        return 2 * self.outputs * self.inputs * self.rows


@dataclass(frozen=True)
class Timing:
    """Seconds per member: the median and the 20 % and 80 % quantiles."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Result:
    """What was measured of one case: a timing per contender and the ratios of docs/performance.md."""

    case: Case
    timings: dict[str, Timing]

    def ratio(self, contender: str, baseline: str) -> float:
        """How many times faster than the baseline the contender is."""
        return self.timings[baseline].median / self.timings[contender].median

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        families = [name for name in self.timings if name not in BASELINES]
        ratios = {name: {f"x {base}": self.ratio(name, base) for base in BASELINES} for name in families}
        return {**asdict(self), "ratios": ratios}


def contenders(
    case: Case,
    families: Iterable[str] = FAMILIES,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
) -> Contenders:
    """The loop, the floor and one perturbed product per family, each a call that computes all members."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(case.outputs, case.inputs, generator=generator) / case.inputs**0.5
    x = torch.randn(case.members, case.rows, case.inputs, generator=generator)
    weight, x = weight.to(device, dtype), x.to(device, dtype)
    seeds = torch.arange(case.members, device=device)
    sigmas = torch.full((case.members,), SIGMA, device=device)
    written, all_rows = weight.clone(), x.flatten(0, 1)

    def loop() -> None:
        for rows in x:
            noise = torch.randn_like(written)
            written.add_(noise, alpha=SIGMA)
            F.linear(rows, written)
            written.sub_(noise, alpha=SIGMA)

    def fused(family: str) -> Callable[[], Tensor]:
        return lambda: perturbed_linear(x, weight, seeds=seeds, sigmas=sigmas, name=NAME, noise=family)

    ours: Contenders = {family: fused(family) for family in families}
    for family in ours:
        _check(ours[family](), x, weight, family)
    return {"loop": loop, "floor": lambda: F.linear(all_rows, weight), **ours}


def _check(y: object, x: Tensor, weight: Tensor, family: str) -> None:
    """RuntimeError unless the last member's rows agree with float64 arithmetic."""
    assert isinstance(y, Tensor)
    seed = len(x) - 1
    noise = sample_noise(tuple(weight.shape), seed=seed, name=NAME, noise=family, device=x.device)
    expected = x[-1].double() @ (weight.double() + SIGMA * noise.double()).T
    error = (y[-1] - expected).abs().max() / expected.abs().max()
    limit = 1e-5 if x.dtype == torch.float32 else 1e-2
    if not error < limit:
        raise RuntimeError(
            f"{family}: error {error:.1e} against float64, expected below {limit:.0e}; not timed"
        )


def measure(calls: Contenders, members: int, seconds: float, device: torch.device = CPU) -> dict[str, Timing]:
    """Time all contenders in alternating order, at least three times each, for about `seconds`.

    On a GPU a time ends when it has finished, so a launch is part of it.
    """
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda device: None
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for name in samples:
        if name != "loop":  # the loop is slow and needs no warming up: it writes all it reads
            calls[name]()
    order, begin, rounds = list(calls), time.perf_counter(), 0
    while rounds < 3 or time.perf_counter() - begin < seconds:
        for name in order:
            wait(device)
            start = time.perf_counter()
            calls[name]()
            wait(device)
            samples[name].append((time.perf_counter() - start) / members)
        order.reverse()
        rounds += 1
    return {name: _timing(values) for name, values in samples.items()}


def _timing(values: Sequence[float]) -> Timing:
    quantiles = torch.tensor(values, dtype=torch.float64).quantile(
        torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64)
    )
    return Timing(*quantiles.tolist())


def cases(
    shapes: Iterable[tuple[int, int]] = SHAPES, rows: Iterable[int] = ROWS, members: int = 16
) -> list[Case]:
    """Every shape with every number of rows."""
    return [Case(outputs, inputs, count, members) for outputs, inputs in shapes for count in rows]


def run(
    which: Iterable[Case] | None = None,
    *,
    families: Iterable[str] = FAMILIES,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = CPU,
    seconds: float = 2.0,
    on_result: Callable[[Result], None] | None = None,
) -> list[Result]:
    """Measure every case (default: `cases()`), about `seconds` each; `on_result` hears of each as it is done.

    RuntimeError if a result disagrees with float64 arithmetic: nothing wrong is ever timed.
    """
    families, device, results = list(families), torch.device(device), []
    with torch.no_grad():
        for case in cases() if which is None else which:
            timings = measure(contenders(case, families, dtype, device), case.members, seconds, device)
            results.append(Result(case, timings))
            if on_result is not None:
                on_result(results[-1])
    return results


def geometric_mean(results: Iterable[Result], contender: str, baseline: str) -> float:
    """The mean ratio of several cases, as the targets of docs/performance.md are stated."""
    ratios = torch.tensor([result.ratio(contender, baseline) for result in results], dtype=torch.float64)
    return float(ratios.log().mean().exp())


def table(results: Sequence[Result]) -> str:
    """Markdown: per case and contender microseconds per member, their spread, GFLOP/s and the ratios."""
    header = ("layer, rows per member", "contender", "us", "20-80 %", "GFLOP/s", "x loop", "x floor")
    lines = [header, ("---",) * len(header)]
    for result in results:
        for name, timing in result.timings.items():
            rate = result.case.flops / timing.median / 1e9
            ratios = [f"{result.ratio(name, base):.2f}" for base in BASELINES]
            spread = f"{timing.low * 1e6:.0f}-{timing.high * 1e6:.0f}"
            lines.append(
                (str(result.case), name, f"{timing.median * 1e6:.0f}", spread, f"{rate:.0f}", *ratios)
            )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def summary(results: Sequence[Result]) -> str:
    """Markdown: geometric means over the layers, x loop / x floor, for each number of rows and family."""
    families = [name for name in results[0].timings if name not in BASELINES]
    lines = [("rows per member", *families), ("---",) * (1 + len(families))]
    for rows in sorted({result.case.rows for result in results}):
        chosen = [result for result in results if result.case.rows == rows]
        means = [[geometric_mean(chosen, name, base) for base in BASELINES] for name in families]
        lines.append((str(rows), *(f"{loop:.1f} / {floor:.2f}" for loop, floor in means)))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
