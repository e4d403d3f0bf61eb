"""Moments and correlations of the noise, with bounds whose false-alarm probability is known.

Every statistic is computed within each of 1,024 seeds and averaged over them: noise of different seeds is
independent under the hypothesis, so the mean divided by its own standard error is a t statistic, whatever the
dependence within a seed (hadamard and low-rank entries are dependent). |t| > 6 has a probability of about
3e-9 (some ten times that where a low rank skews it), and a family has some 40 statistics: with other seeds a
right generator would fail a few times in a million runs; here the seeds are fixed. The second half of the
file shows that wrong generators do fail, each in the statistic meant for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from noise_sources import Source, bit_patterns, every_compiled_source, stream
from torch import Tensor

from thickets.boxmuller import box_muller
from thickets.noise import MAGNITUDES, entries, parameter_id

LIMIT = 6.0
ROWS, COLS = 6, 160
HALF = 512
# Neighbours in pairs: seeds that differ by one in the low word, then by one in the high word.
SEEDS = [*range(HALF), *(seed << 32 | 7 for seed in range(HALF))]
LAGS = [1, 2, 3, 4, 5, 7, 8, 16, 31, 32, 33, 64, 127, 128, 129]
NAME, NEIGHBOUR = "layers.0.weight", "layers.1.weight"

Generate = Callable[[str, int], Tensor]  # (parameter name, first row) -> [len(SEEDS), ROWS, COLS]


def moment(noise: str, power: int) -> float | None:
    """The exact even moment of an entry; None where the family's tails are too heavy for a t statistic."""
    if power == 2:
        return 1.000005 if noise == "normal4" else 1.0
    if noise == "normal4":
        return sum(m**4 for m in MAGNITUDES) / len(MAGNITUDES)
    order = 256  # of the Hadamard transform of COLS columns
    return {"normal": 3.0, "rademacher": 1.0, "hadamard": 3 - 6 / order + 4 / order**2}.get(noise)


@dataclass
class Report:
    """t statistics by name."""

    t: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, values: Tensor, expected: float = 0.0) -> None:
        """`values` [N, ...] has mean `expected`; members are independent samples."""
        samples = values.double().flatten(1).mean(1) - expected
        error = samples.std() / len(samples) ** 0.5
        if error < 1e-12:  # constant, as the second moment of signs is: only rounding may remain
            self.t[name] = 0.0 if samples.abs().max() < 1e-5 else float("inf")
        else:
            self.t[name] = (samples.mean() / error).item()

    def worst(self) -> str:
        """The name of the largest |t|."""
        return max(self.t, key=lambda name: abs(self.t[name]))


def statistics(generate: Generate, noise: str) -> Report:
    """Every statistic of the file's first paragraph for one generator."""
    report = Report()
    x, other = generate(NAME, 0), generate(NEIGHBOUR, 0)
    report.add("mean", x)
    report.add("second moment", x.square(), moment(noise, 2))
    report.add("third moment", x**3)
    if moment(noise, 4) is not None:
        report.add("fourth moment", x**4, moment(noise, 4))
    for lag in LAGS:
        report.add(f"columns {lag} apart", x[..., lag:] * x[..., :-lag])
    for lag in (1, 2, 3):
        report.add(f"rows {lag} apart", x[:, lag:] * x[:, :-lag])
        report.add(f"rows and columns {lag} apart", x[:, lag:, lag:] * x[:, :-lag, :-lag])
    report.add("rows 2^20 apart", x * generate(NAME, 1 << 20))
    if noise in ("normal", "normal4"):
        square = x.square() - moment(noise, 2)
        for lag in (1, 2, 4):
            report.add(f"squares {lag} columns apart", square[..., lag:] * square[..., :-lag])
    for name, here, there in (("seeds", x[::2], x[1::2]), ("parameters", x, other)):
        report.add(f"neighbouring {name}", here * there)
        report.add(f"neighbouring {name}, a row apart", here[:, 1:] * there[:, :-1])
        for lag in (1, 4, 32, 128):
            report.add(f"neighbouring {name}, {lag} columns apart", here[..., lag:] * there[..., :-lag])
    return report


@every_compiled_source
@pytest.mark.parametrize("noise", ["normal", "normal4", "rademacher", "hadamard", "lowrank-1", "lowrank-8"])
def test_moments_and_correlations(source: Source, noise: str) -> None:
    report = statistics(lambda name, row: source.noise(SEEDS, stream(name, noise, row), ROWS, COLS), noise)
    worst = report.worst()
    assert abs(report.t[worst]) < LIMIT, f"{worst}: t = {report.t[worst]:.1f}"


def chi_square(counts: Tensor) -> float:
    """Pearson's statistic against equal counts, as a normal deviate (Wilson and Hilferty 1931)."""
    expected, df = counts.sum() / len(counts), len(counts) - 1
    ratio = ((counts - expected).square() / expected).sum().item() / df
    return (ratio ** (1 / 3) - (1 - 2 / (9 * df))) / (2 / (9 * df)) ** 0.5


@every_compiled_source
def test_normals_have_the_normal_distribution(source: Source) -> None:
    """256 cells of equal probability over 983,040 entries: beyond 6 deviates once in 1e9."""
    x = source.noise(SEEDS, stream(NAME, "normal"), ROWS, COLS).double()
    cell = (torch.special.ndtr(x) * 256).long().flatten()
    assert abs(chi_square(cell.bincount(minlength=256).double())) < LIMIT


@every_compiled_source
def test_normal4_levels_are_equally_likely(source: Source) -> None:
    x = source.noise(SEEDS, stream(NAME, "normal4"), ROWS, COLS).flatten()
    levels, counts = x.unique(return_counts=True)
    assert len(levels) == 16
    assert abs(chi_square(counts.double())) < LIMIT


def right(name: str, row: int, noise: str = "normal") -> Tensor:
    return entries(bit_patterns(SEEDS), stream(name, noise, row), ROWS, COLS)


def one_stream_for_all_parameters(name: str, row: int) -> Tensor:
    return right(NAME, row)


def row_left_out_of_the_counter(name: str, row: int) -> Tensor:
    return right(name, row)[:, :1].expand(-1, ROWS, -1)


def low_bits_of_the_row_only(name: str, row: int) -> Tensor:
    return right(name, row % 65536)


def one_block_for_all_columns(name: str, row: int) -> Tensor:
    return right(name, row)[..., :4].repeat(1, 1, COLS // 4)


def seed_added_to_the_row(name: str, row: int) -> Tensor:
    whole = entries(torch.tensor([5]), stream(name, "normal", row), ROWS + len(SEEDS), COLS)[0]
    return torch.stack([whole[n : n + ROWS] for n in range(len(SEEDS))])


def low_word_of_the_seed_only(name: str, row: int) -> Tensor:
    return entries(
        bit_patterns([seed & 0xFFFFFFFF for seed in SEEDS]), stream(name, "normal", row), ROWS, COLS
    )


def one_percent_too_wide(name: str, row: int) -> Tensor:
    return right(name, row) * 1.01


def shifted_by_a_hundredth(name: str, row: int) -> Tensor:
    return right(name, row) + 0.01


def uniform_of_the_same_variance(name: str, row: int) -> Tensor:
    return (torch.special.ndtr(right(name, row)) - 0.5) * 12**0.5


def cosine_twice(name: str, row: int) -> Tensor:
    """Box-Muller with one angle for both members of a pair."""
    return right(name, row)[..., ::2].repeat_interleave(2, dim=-1)


def one_radius_for_two_pairs(name: str, row: int) -> Tensor:
    """Uncorrelated, but |z| of a pair tells |z| of the next."""
    generator = torch.Generator().manual_seed(parameter_id(name) % 1000 + row)
    angles = torch.randint(0, 2**32, (len(SEEDS), ROWS, COLS), generator=generator)
    words = angles.flip(0)[..., ::4].repeat_interleave(2, dim=-1)
    return torch.stack(box_muller(words, angles[..., ::2]), dim=-1).flatten(-2)


BROKEN = {
    one_stream_for_all_parameters: "neighbouring parameters",
    row_left_out_of_the_counter: "rows",
    low_bits_of_the_row_only: "rows 2^20 apart",
    one_block_for_all_columns: "columns",
    seed_added_to_the_row: "neighbouring seeds, a row apart",
    low_word_of_the_seed_only: "neighbouring seeds",
    one_percent_too_wide: "second moment",
    shifted_by_a_hundredth: "mean",
    uniform_of_the_same_variance: "fourth moment",
    cosine_twice: "columns 1 apart",
    one_radius_for_two_pairs: "squares 2 columns apart",
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_a_wrong_generator_is_caught(broken: Generate) -> None:
    report = statistics(broken, "normal")
    caught = {name for name, t in report.t.items() if abs(t) > LIMIT}
    assert any(name.startswith(BROKEN[broken]) for name in caught), report.t


def test_the_distribution_test_catches_a_wrong_normal() -> None:
    """Sums of twelve uniforms, the old shortcut, and the levels of normal4 are both far from normal."""
    uniforms = torch.rand(len(SEEDS) * ROWS * COLS, 12, generator=torch.Generator().manual_seed(3)).double()
    for wrong in (uniforms.sum(1) - 6, right(NAME, 0, "normal4").double()):
        cell = (torch.special.ndtr(wrong) * 256).long().flatten()
        assert chi_square(cell.bincount(minlength=256).double()) > LIMIT
