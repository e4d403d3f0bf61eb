"""The ratio tables of docs/performance.md: one perturbed linear layer against today's loop and the floor.

- `loop`: for each member draw torch.randn, add it to the weight in place, multiply, subtract it: what the
  published RandOpt and evolution-strategies scripts do.
- `floor`: the unperturbed product of all members' rows in one call of the vendor's library.
- a family: `perturbed_linear` of all members; `FAMILY, stored`: a few members' weights written once, then
  `grouped_linear`, where a case has several tokens: the loop perturbs once for all of them, too.

All contenders of a case run in one process on the same random data, in alternating order, until the time is
up. Before anything is timed, each family's result is compared with a float64 product of materialised weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from .functional import grouped_linear, perturb_, perturbed_linear, sample_noise
from .perturbed.storing import stored_is_faster

FAMILIES = ("normal", "normal4", "rademacher", "hadamard", "lowrank-1")
SHAPES = ((512, 512), (768, 3072), (4096, 4096))
ROWS = (1, 8, 64, 512)
SIGMA = 0.01
NAME = "bench.weight"
BASELINES = ("loop", "floor")
STORED = 4  # members whose weights are written down at once
CPU = torch.device("cpu")

Contenders = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Case:
    """N members of a linear layer [outputs, inputs], each with `rows` rows of input, `tokens` times over."""

    outputs: int
    inputs: int
    rows: int
    members: int = 16
    tokens: int = 1

    def __str__(self) -> str:
        times = f" x {self.tokens} tokens" if self.tokens > 1 else ""
        return f"{self.outputs}x{self.inputs}, {self.rows} rows{times}"

    @property
    def flops(self) -> int:
        """Multiplications and additions of the products alone, per member."""
        return 2 * self.outputs * self.inputs * self.rows * self.tokens


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
    """The loop, the floor and the perturbed products per family, each a call that computes all members."""
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
            for _ in range(case.tokens):
                F.linear(rows, written)
            written.sub_(noise, alpha=SIGMA)

    def floor() -> None:
        for _ in range(case.tokens):
            F.linear(all_rows, weight)

    def fused(family: str) -> Tensor:
        for _ in range(case.tokens):
            y = perturbed_linear(x, weight, seeds=seeds, sigmas=sigmas, name=NAME, noise=family)
        return y

    few_members = min(STORED, case.members) if case.tokens > 1 else 0
    buffer = torch.empty(few_members, *weight.shape, device=device)

    def stored(family: str) -> Tensor:
        for begin in range(0, case.members, STORED):
            rows = x[begin : begin + STORED]
            few = buffer[: len(rows)]
            for out, seed, sigma in zip(few, seeds[begin:], sigmas[begin:], strict=False):
                perturb_(out, weight, seed=seed, sigma=sigma, name=NAME, noise=family)
            for _ in range(case.tokens):
                y = grouped_linear(rows, few)
        return y

    ours: dict[str, Callable[[], Tensor]] = {}
    for family in families:
        ours[family] = partial(fused, family)
        if case.tokens > 1:
            ours[f"{family}, stored"] = partial(stored, family)
    for name, run in ours.items():
        _check(run()[-1], x, weight, name.partition(",")[0])
    return {"loop": loop, "floor": floor, **ours}


def _check(y: Tensor, x: Tensor, weight: Tensor, family: str) -> None:
    """RuntimeError unless the last member's rows y [M, O] agree with float64 arithmetic."""
    seed = len(x) - 1
    noise = sample_noise(tuple(weight.shape), seed=seed, name=NAME, noise=family, device=x.device)
    expected = x[-1].double() @ (weight.double() + SIGMA * noise.double()).T
    error = (y - expected).abs().max() / expected.abs().max()
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
    shapes: Iterable[tuple[int, int]] = SHAPES,
    rows: Iterable[int] = ROWS,
    members: int = 16,
    tokens: Iterable[int] = (1,),
) -> list[Case]:
    """Every shape with every number of rows and of tokens."""
    return [Case(*shape, count, members, times) for shape, count, times in product(shapes, rows, tokens)]


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
    """Markdown: geometric means over the layers, x loop / x floor, for each count of rows and tokens."""
    common = set.intersection(*(set(result.timings) for result in results)) - set(BASELINES)
    names = [name for name in results[0].timings if name in common]
    lines = [("rows per member", *names), ("---",) * (1 + len(names))]
    for rows, tokens, group in _by_rows(results):
        means = [[geometric_mean(group, name, base) for base in BASELINES] for name in names]
        lines.append((_rows(rows, tokens), *(f"{loop:.1f} / {floor:.2f}" for loop, floor in means)))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def generation(results: Sequence[Result]) -> str:
    """Markdown: x loop of what `stored_is_faster` chooses for several tokens, mean and worst of layers."""
    results = [result for result in results if result.case.tokens > 1]
    families = [name for name in results[0].timings if f"{name}, stored" in results[0].timings]
    lines = [("rows per member", *families), ("---",) * (1 + len(families))]
    for rows, tokens, group in _by_rows(results):
        cells = []
        for family in families:
            stored = stored_is_faster(family, tokens)
            name = f"{family}, stored" if stored else family
            worst = min(result.ratio(name, "loop") for result in group)
            mean = geometric_mean(group, name, "loop")
            cells.append(f"{mean:.2f}, worst {worst:.2f}{', stored' if stored else ''}")
        lines.append((_rows(rows, tokens), *cells))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _by_rows(results: Sequence[Result]) -> Iterator[tuple[int, int, list[Result]]]:
    for key in sorted({(result.case.rows, result.case.tokens) for result in results}):
        yield *key, [result for result in results if (result.case.rows, result.case.tokens) == key]


def _rows(rows: int, tokens: int) -> str:
    return f"{rows} x {tokens} tokens" if tokens > 1 else f"{rows}"
