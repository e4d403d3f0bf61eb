"""Intervals, rank correlation and solution density, in plain Python and torch; all of it deterministic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor


@dataclass(frozen=True)
class Interval:
    """An estimate with the bounds of its confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True)
class Density:
    """The share of one sigma's members that score above the base: above of n, Wilson's interval."""

    sigma: float
    above: int
    n: int
    share: Interval


def wilson(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion; without trials it is [0, 1] around NaN."""
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must be in [0, trials={trials}], got {successes}")
    _check_level(level)
    if trials == 0:
        return Interval(math.nan, 0.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = successes / trials
    scale = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    # At the ends the bound is the end itself; the formula misses it by a rounding.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return Interval(share, low, high)


def mean_interval(values: Tensor | Sequence[float], level: float = 0.95) -> Interval:
    """Student's t interval of the mean of independent values [n]; infinitely wide for n = 1."""
    _check_level(level)
    numbers = _vector(values, "values").tolist()
    n = len(numbers)
    if n == 0:
        raise ValueError("values must hold at least one number, got none")
    mean = math.fsum(numbers) / n
    if n == 1:
        return Interval(mean, -math.inf, math.inf)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in numbers) / (n - 1))
    half = student_quantile(level, n - 1) * deviation / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def score_interval(scores: Tensor | Sequence[float], level: float = 0.95) -> Interval:
    """Interval of the mean of per-example scores [n]: Wilson's if every score is 0 or 1, else Student's t."""
    values = _vector(scores, "scores")
    if len(values) and bool(((values == 0) | (values == 1)).all()):
        return wilson(int(values.sum()), len(values), level)
    return mean_interval(values, level)


def student_quantile(level: float, freedom: int) -> float:
    """The t with P(|T| <= t) = level for a whole number of degrees of freedom."""
    _check_level(level)
    z = NormalDist().inv_cdf(0.5 + level / 2)
    if freedom > 2000:  # the first terms of the expansion in 1 / freedom are exact to 1e-7 here
        return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    low, high = 0.0, 1.0
    while _student_within(high, freedom) < level:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        if _student_within(middle, freedom) < level:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _student_within(t: float, freedom: int) -> float:
    """P(|T| <= t), by the finite series of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    theta = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    for k in range(2 + odd, freedom + 1, 2):  # terms up to cosine^(freedom - 2)
        total += term
        term *= cosine * cosine * (k - 1) / k
    return 2 / math.pi * (theta + sine * total) if odd else sine * total


def spearman(x: Tensor | Sequence[float], y: Tensor | Sequence[float]) -> float:
    """Spearman's rank correlation of x and y [n], ties at mean rank; NaN for n < 2 or a constant."""
    a, b = _vector(x, "x"), _vector(y, "y")
    if len(a) != len(b):
        raise ValueError(f"y must be [n={len(a)}], got [{len(b)}]")
    if len(a) < 2:
        return math.nan
    a, b = _ranks(a), _ranks(b)
    a, b = a - a.mean(), b - b.mean()
    norm = float((a * a).sum().sqrt() * (b * b).sum().sqrt())
    # The quotient of equal rankings can exceed 1 by a rounding.
    return min(1.0, max(-1.0, float((a * b).sum()) / norm)) if norm > 0 else math.nan


def _ranks(values: Tensor) -> Tensor:
    _, group, counts = values.unique(return_inverse=True, return_counts=True)
    mean_rank = counts.cumsum(0).double() - (counts.double() - 1) / 2
    return mean_rank[group]


def solution_density(
    scores: Sequence[float], sigmas: Sequence[float], base: float, level: float = 0.95
) -> list[Density]:
    """Share of members above the base for each |sigma| (mirrored pairs counted together), ascending."""
    if len(scores) != len(sigmas):
        raise ValueError(f"sigmas must have one value per score, expected {len(scores)}, got {len(sigmas)}")
    groups: dict[float, list[float]] = {}
    for score, sigma in zip(scores, sigmas, strict=True):
        groups.setdefault(abs(sigma), []).append(score)
    rows = []
    for sigma, members in sorted(groups.items()):
        above = sum(score > base for score in members)
        rows.append(Density(sigma, above, len(members), wilson(above, len(members), level)))
    return rows


def _vector(values: Tensor | Sequence[float], name: str) -> Tensor:
    vector = torch.as_tensor(values, dtype=torch.float64).detach().cpu()
    if vector.dim() != 1:
        raise ValueError(f"{name} must be [n], got {tuple(vector.shape)}")
    return vector


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
