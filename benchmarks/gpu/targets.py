"""The targets of the project for GPUs, and whether what was measured meets them."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .cases import DENSE, FAMILIES, PRECISIONS

LARGE = 4096 * 4096  # weights of a "layer of 4096 and more"
CHEAP = ("normal4", "rademacher")
STRUCTURED = ("hadamard", "lowrank-1")

Facts = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """At least `least` times as fast as `baseline`, for these families in every case that `where` accepts."""

    text: str
    baseline: str
    least: float
    families: tuple[str, ...]
    where: Callable[[Facts], bool]
    precisions: tuple[str, ...] = PRECISIONS


def _decode(case: Facts) -> bool:
    return case["kind"] == "linear" and case["rows"] <= 8 and case["members"] >= 16


def _scoring(case: Facts) -> bool:
    return case["kind"] == "linear" and case["rows"] >= 2048


def _large(case: Facts) -> bool:
    size = case["layer"]["outputs"] * case["layer"]["inputs"]
    return case["kind"] == "linear" and size >= LARGE and (_decode(case) or _scoring(case))


def _update(op: str, least: int, most: int) -> Callable[[Facts], bool]:
    return lambda case: case["kind"] == "update" and case["op"] == op and least <= case["members"] <= most


TARGETS = (
    Target("decode (M <= 8): normal4, rademacher", "floor B", 2.5, CHEAP, _decode),
    Target("decode (M <= 8): normal", "floor B", 0.6, ("normal",), _decode),
    Target(
        "decode and scoring, 4096 x 4096 weights and more", "floor A", 0.8, STRUCTURED, _large, ("exact",)
    ),
    Target("scoring (M >= 2048): dense, storage", "floor A", 0.85, DENSE, _scoring, ("storage",)),
    Target("scoring (M >= 2048): dense, exact", "floor A", 0.45, DENSE, _scoring, ("exact",)),
    Target("any size", "loop", 0.9, FAMILIES, lambda case: case["kind"] == "linear"),
    Target("perturb_: normal4, rademacher", "copy", 0.8, CHEAP, _update("perturb_", 1, 1)),
    Target("accumulate_ of one seed: normal4, rademacher", "copy", 0.8, CHEAP, _update("accumulate_", 1, 1)),
    Target("perturb_: normal4, rademacher", "loop", 10, CHEAP, _update("perturb_", 1, 1)),
    Target(
        "accumulate_ of 16 and more: normal4, rademacher",
        "loop",
        10,
        CHEAP,
        _update("accumulate_", 16, 1 << 30),
    ),
)


@dataclass(frozen=True)
class Verdict:
    """A target against what a backend showed: the ratio of every contender in every case that it covers."""

    target: Target
    backend: str
    ratios: dict[str, float]  # "case, family precision" -> times the speed of the baseline
    failed: tuple[str, ...]  # contenders that it covers and that could not be timed

    @property
    def met(self) -> int:
        return sum(ratio >= self.target.least for ratio in self.ratios.values())

    @property
    def word(self) -> str:
        """met, not met, not measured, or in how many of the cases it was met."""
        total = len(self.ratios) + len(self.failed)
        if total == 0:
            return "not measured"
        if self.met == total:
            return "met"
        return f"met in {self.met} of {total}" if self.met else "not met"

    @property
    def mean(self) -> float:
        """Geometric mean of the ratios; there must be some."""
        return math.exp(sum(map(math.log, self.ratios.values())) / len(self.ratios))


def ratio(contenders: Facts, name: str, baseline: str) -> float | None:
    """How many times faster per member than the baseline; None if either was not timed."""
    if "us" not in contenders.get(name, {}) or "us" not in contenders.get(baseline, {}):
        return None
    return contenders[baseline]["us"] / contenders[name]["us"]


def verdicts(results: Iterable[Facts], backends: Iterable[str]) -> list[Verdict]:
    """Every target for every backend."""
    results = list(results)
    return [_verdict(target, backend, results) for backend in backends for target in TARGETS]


def _verdict(target: Target, backend: str, results: list[Facts]) -> Verdict:
    ratios, failed = {}, []
    for result in filter(lambda one: target.where(one["case"]), results):
        for name in _covered(target, backend, result["case"]["kind"]):
            found = ratio(result["contenders"], name, target.baseline)
            where = f"{result['name']}, {name.removeprefix(backend).strip()}"
            if found is not None:
                ratios[where] = found
            elif name in result["failed"]:
                failed.append(where)
    return Verdict(target, backend, ratios, tuple(failed))


def _covered(target: Target, backend: str, kind: str) -> list[str]:
    if kind == "update":
        return [f"{backend} {family}" for family in target.families]
    return [
        f"{backend} {family} {precision}" for family in target.families for precision in target.precisions
    ]
