"""Noise families side by side on one case: what a family costs, or not, in quality.

Every run has a master seed of its own, so no two share a member: families are compared as independent
samples, never paired. `normal` enters twice; the distance between its two rows is what chance alone does, and
a family within that distance of them is not shown to differ. Pretraining and data are the same for all: the
comparison is conditional on them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thickets.statistics import Interval, mean_interval, wilson
from thickets.tasks.case import Case, in_metric, plain
from thickets.tasks.run import Outcome, run_case

FAMILIES = ("normal", "normal4", "rademacher", "hadamard", "lowrank-1", "lowrank-4")
YARDSTICK = "normal again"
QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)  # of the members, from the worst


@dataclass(frozen=True)
class Row:
    """One family on one case, in the case's metric, over `runs` runs of n members each.

    density: share of all members better than the base on the selection examples (Wilson's interval).
    quantiles: of all members on the selection examples, by QUANTILES (distribution-free intervals). top_1,
    vote: on held-out data. With one run the interval is over the held-out examples and knows nothing of the
    luck of the draw; with several it is Student's t over the runs and covers both selection and draw.
    """

    label: str
    noise: str
    runs: int
    members: int
    density: Interval
    quantiles: tuple[Interval, ...]
    top_1: Interval
    vote: Interval

    def as_dict(self) -> dict[str, Any]:
        """JSON values; intervals as {"value", "low", "high"}."""
        return {
            **{key: getattr(self, key) for key in ("label", "noise", "runs", "members")},
            **{key: plain(getattr(self, key)) for key in ("density", "top_1", "vote")},
            "quantiles": {str(q): plain(i) for q, i in zip(QUANTILES, self.quantiles, strict=True)},
        }


@dataclass(frozen=True)
class Comparison:
    """All families on one case, with the base's metric on held-out and on selection data."""

    case: Case
    base: Interval
    base_selection: float
    rows: tuple[Row, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "task": self.case.task,
            "case": self.case.name,
            "metric": self.case.metric,
            "pairing": "none: every run has its own master seed",
            "base": plain(self.base),
            "base_selection": self.base_selection,
            "rows": [row.as_dict() for row in self.rows],
        }


def compare(
    case: Case,
    *,
    n: int,
    runs: int = 1,
    families: Sequence[str] = FAMILIES,
    seed: int = 1000,
    **options: Any,
) -> Comparison:
    """Run every family `runs` times around the case's base, and normal as often again as the yardstick.

    seed: the first master seed; run r of row f takes seed + f * runs + r. options: as in `run_case`.
    """
    if runs < 1:
        raise ValueError(f"runs must be at least 1, got {runs}")
    labelled = [(family, family) for family in families] + [(YARDSTICK, "normal")]
    rows, outcome = [], None
    for f, (label, noise) in enumerate(labelled):
        outcomes = []
        for r in range(runs):
            outcome = run_case(
                case, n=n, noise=noise, seed=seed + f * runs + r, correlate=0, random=1, **options
            )
            outcomes.append(outcome)
        rows.append(_row(label, noise, outcomes))
    assert outcome is not None  # the yardstick always runs
    return Comparison(case, outcome.interval("base"), case.sign * outcome.result.base.value, tuple(rows))


def _row(label: str, noise: str, outcomes: Sequence[Outcome]) -> Row:
    case = outcomes[0].case
    scores = torch.cat([outcome.result.scores for outcome in outcomes])
    above = sum(int((o.result.scores > o.result.base.value).sum()) for o in outcomes)
    return Row(
        label=label,
        noise=noise,
        runs=len(outcomes),
        members=len(scores),
        density=wilson(above, len(scores)),
        quantiles=tuple(in_metric(quantile_interval(scores, q), case.metric) for q in QUANTILES),
        top_1=_over_runs([outcome.interval("top_1") for outcome in outcomes]),
        vote=_over_runs([outcome.interval("vote") for outcome in outcomes]),
    )


def quantile_interval(values: Tensor, q: float) -> Interval:
    """The q-quantile of values [n] and a distribution-free 95 % interval: two order statistics."""
    ordered = values.sort().values.tolist()
    n = len(ordered)
    if n == 0 or not 0 < q < 1:
        raise ValueError(f"values must hold at least one number and q be in (0, 1), got {n} and {q}")
    # Binomial(n, q) of the values lie below the quantile: that law's central 95 %, by logarithms for any n.
    k = torch.arange(n + 1, dtype=torch.float64)
    log = math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    below = (log + k * math.log(q) + (n - k) * math.log1p(-q)).exp().cumsum(0)
    low = int((below < 0.025).sum()) - 1
    high = int((below < 0.975).sum())
    value = float(values.double().quantile(q))
    return Interval(value, ordered[low] if low >= 0 else -math.inf, ordered[high] if high < n else math.inf)


def _over_runs(intervals: Sequence[Interval]) -> Interval:
    return intervals[0] if len(intervals) == 1 else mean_interval([interval.value for interval in intervals])
