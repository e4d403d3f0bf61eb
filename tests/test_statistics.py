"""Intervals, rank correlation and density against values computed by hand or taken from tables."""

import math

import pytest
import torch

from thickets.statistics import (
    mean_interval,
    score_interval,
    solution_density,
    spearman,
    student_quantile,
    wilson,
)


def test_wilson_against_a_worked_example():
    # 8 of 10 at 95 %: (0.8 + z^2/20 +- z sqrt(0.016 + z^2/400)) / (1 + z^2/10), z = 1.959964, z^2 = 3.841459
    interval = wilson(8, 10)
    assert interval.value == 0.8
    assert interval.low == pytest.approx(0.4901625, abs=1e-6)
    assert interval.high == pytest.approx(0.9433178, abs=1e-6)


def test_wilson_at_the_ends():
    assert (wilson(0, 10).low, wilson(10, 10).high) == (0.0, 1.0)
    assert wilson(0, 10).high == pytest.approx(0.2775328, abs=1e-6)  # z^2 / (n + z^2)
    nothing = wilson(0, 0)
    assert math.isnan(nothing.value)
    assert (nothing.low, nothing.high) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("level", "freedom", "quantile"),
    [  # two-sided, from printed tables
        (0.95, 1, 12.7062),
        (0.95, 2, 4.3027),
        (0.95, 3, 3.1824),
        (0.95, 10, 2.2281),
        (0.95, 29, 2.0452),
        (0.99, 4, 4.6041),
        (0.90, 120, 1.6577),
        (0.95, 10**9, 1.9600),
    ],
)
def test_student_quantiles(level, freedom, quantile):
    assert student_quantile(level, freedom) == pytest.approx(quantile, abs=5e-5)


def test_student_quantiles_join_where_the_method_changes():
    assert student_quantile(0.95, 2000) - student_quantile(0.95, 2001) == pytest.approx(6e-7, abs=1e-7)


def test_mean_interval_by_hand():
    # 1, 2, 3, 4: mean 2.5, deviation sqrt(5/3), t(3) = 3.182446: half width 3.182446 * 1.290994 / 2
    interval = mean_interval([1.0, 2.0, 3.0, 4.0])
    assert interval.value == 2.5
    assert interval.high - 2.5 == pytest.approx(2.0542603, abs=1e-5)
    assert 2.5 - interval.low == pytest.approx(2.0542603, abs=1e-5)
    assert mean_interval([3.0]).high == math.inf


def test_scores_of_zero_and_one_take_wilson_and_others_student():
    assert score_interval([1.0, 1.0, 0.0]) == wilson(2, 3)
    assert score_interval([0.5, 1.0, 0.0]) == mean_interval([0.5, 1.0, 0.0])


def test_intervals_cover_as_often_as_they_say():
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(2000, 8, generator=generator, dtype=torch.float64)
    covered = sum(i.low <= 0 <= i.high for i in map(mean_interval, draws)) / 2000
    assert abs(covered - 0.95) < 0.02  # four standard errors
    coins = (torch.rand(2000, 40, generator=generator) < 0.3).sum(1).tolist()
    covered = sum(i.low <= 0.3 <= i.high for i in (wilson(c, 40) for c in coins)) / 2000
    assert 0.92 < covered < 0.98  # Wilson's coverage oscillates around its level


def test_spearman_by_hand():
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1.0)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    # 1 - 6 * (1 + 1 + 0 + 0 + 0) / (5 * 24)
    assert spearman([1, 2, 3, 4, 5], [2, 1, 3, 4, 5]) == pytest.approx(0.9)


def test_spearman_with_ties_takes_mean_ranks():
    # ranks (1, 2.5, 2.5, 4) and (1, 2, 3, 4): covariance 4.5, norms sqrt(4.5) and sqrt(5)
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_spearman_is_undefined_for_constants_and_single_points():
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))
    assert math.isnan(spearman([1], [1]))
    assert math.isnan(spearman([], []))


def test_density_per_sigma_counts_mirrored_pairs_together():
    rows = solution_density([0.6, 0.5, 0.7, 0.4], [0.1, 0.2, -0.1, 0.2], base=0.5)
    assert [(row.sigma, row.above, row.n) for row in rows] == [(0.1, 2, 2), (0.2, 0, 2)]
    assert rows[0].share == wilson(2, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson(3, 2), r"successes must be in \[0, trials=2\]"),
        (lambda: wilson(1, 2, level=1.0), "level must be between 0 and 1"),
        (lambda: mean_interval([]), "values must hold at least one"),
        (lambda: mean_interval(torch.zeros(2, 2)), r"values must be \[n\]"),
        (lambda: spearman([1, 2], [1]), r"y must be \[n=2\]"),
        (lambda: solution_density([1.0], [], 0.0), "one value per score"),
    ],
)
def test_bad_values_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
