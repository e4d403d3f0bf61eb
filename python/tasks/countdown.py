"""Countdown: make a target of a few numbers by arithmetic, each number used once. Problems are generated."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from .expressions import LENGTH, canonical, numbers, parse, value
from .extraction import Found, plain
from .problems import Answer, Problem, Source
from .records import Record, pools
from .scoring import Marked

COUNTS = (3, 4)  # how many numbers a problem has
LOWEST, HIGHEST = 10, 99  # of the targets; the numbers begin with 1
PROMPT = (
    "Make {target} of the numbers {numbers}. Use each of them exactly once, with +, -, *, / and parentheses."
    " Think step by step, then write the expression alone between <answer> and </answer>."
)
_TIMES = re.compile(r"(?<=[\d)])\s{0,3}[xX]\s{0,3}(?=[\d(])")
_BULLET = re.compile(r"^\s{0,9}(?:[-*•]|\d{1,3}[.)])\s")
_PROSE = re.compile(r"[^0-9.+\-*/()= \t]+|[.](?=\s|$)")
_BRACKETS = str.maketrans("[]", "()")
_AROUND = " \t\n.*_`$"


def problem(record: Record) -> Problem:
    """A line {"numbers": [3, 5, 2], "target": 16}; "nums" will do too."""
    given, target = record.get("numbers", record.get("nums")), record.get("target")
    if not isinstance(given, list) or not _is_game(given, target):
        raise ValueError(
            f'"numbers" (from 0) and "target" must be whole numbers, got {given!r} and {target!r}'
        )
    text = PROMPT.format(target=target, numbers=", ".join(map(str, given)))
    return Problem(prompt=text, answer={"numbers": given, "target": target})


def source(train: int, test: int, seed: int, data: Path | None) -> Source:
    """Problems that have a solution, each set of numbers once; or those of a file or folder `data`."""
    if data is None:
        generated = generate(seed)
        judged: list[Problem] | None = [next(generated) for _ in range(test)]
        selecting = [next(generated) for _ in range(train)]
    else:
        selecting, judged = pools(data, problem)
        judged = None if judged is None else list(_games(judged).values())
        known = _games(judged or ())
        selecting = [p for game, p in _games(selecting).items() if game not in known]
    return Source(selecting, judged, "countdown", 1024, asked_format="<answer>an expression</answer>")


def _is_game(given: Any, target: Any) -> bool:
    """Whether they are whole numbers; of those given none below zero, for a sign is no part of a number."""
    return (
        isinstance(given, list)
        and bool(given)
        and all(type(n) is int for n in [*given, target])
        and min(given) >= 0
    )


def _games(problems: Iterable[Problem]) -> dict[tuple[int, ...], Problem]:
    """The problems by target and numbers, whose order is no matter; the first of each."""
    games: dict[tuple[int, ...], Problem] = {}
    for one in problems:
        games.setdefault((one.answer["target"], *sorted(one.answer["numbers"])), one)
    return games


def generate(seed: int) -> Iterator[Problem]:
    """Endless problems that have a solution, each set of numbers once; the same ones for the same seed."""
    rng = random.Random(f"countdown {seed}")
    seen: set[tuple[int, ...]] = set()
    while True:
        given = tuple(rng.randint(1, HIGHEST) for _ in range(rng.choice(COUNTS)))
        key = tuple(sorted(given))
        targets = [target for target in sorted(solutions(given)) if LOWEST <= target <= HIGHEST]
        if targets and key not in seen:
            seen.add(key)
            yield problem({"numbers": list(given), "target": rng.choice(targets)})


def solutions(given: tuple[int, ...]) -> dict[int, str]:
    """Each target that all the numbers make, and how, by steps that stay with whole numbers above zero."""
    found: dict[int, str] = {}

    def combine(parts: list[tuple[int, str]]) -> None:
        if len(parts) == 1:
            found.setdefault(*parts[0])
        for one, other in combinations(range(len(parts)), 2):
            rest = [part for k, part in enumerate(parts) if k not in (one, other)]
            for step in _steps(*sorted((parts[one], parts[other]))):
                combine([*rest, step])

    combine([(n, str(n)) for n in given])
    return found


def _steps(low: tuple[int, str], high: tuple[int, str]) -> Iterator[tuple[int, str]]:
    (a, small), (b, large) = low, high
    yield a + b, f"({large}+{small})"
    yield a * b, f"({large}*{small})"
    if b > a:
        yield b - a, f"({large}-{small})"
    if b % a == 0:
        yield b // a, f"({large}/{small})"


class Countdown(Marked):
    """An expression, whose canonical form is the answer; without a mark, the last arithmetic of the text.

    It is correct if it uses each number of the problem exactly once and makes the target.
    """

    kind = "countdown"

    def __init__(self, asked: str | None = "tags") -> None:
        super().__init__(asked)

    @property
    def name(self) -> str:
        return self.kind if self.asked == "tags" else super().name

    def read(self, found: Found) -> tuple[str, bool] | None:
        text = _TIMES.sub("*", plain(found.content)).translate(_BRACKETS)
        if found.mark == "text":
            text = _BULLET.sub("", text)
        alone = _expression(text.strip(_AROUND))
        if alone is not None and (found.mark != "text" or _computes(alone)):
            return alone, True
        for line in reversed(text.splitlines()):
            for statement in reversed(_PROSE.split(_BULLET.sub("", line))):
                for side in statement.split("="):
                    expression = _expression(side.strip(_AROUND))
                    if expression is not None and _computes(expression):
                        return expression, False
        return None

    def correct(self, answer: Answer, problem: Problem) -> bool:
        expression = parse(answer.value)
        asked = problem.answer
        return (
            sorted(numbers(expression)) == sorted(asked["numbers"]) and value(expression) == asked["target"]
        )

    def gold(self, problem: Problem) -> str:
        asked = problem.answer
        known = isinstance(asked, dict) and set(asked) == {"numbers", "target"}
        if not known or not _is_game(asked["numbers"], asked["target"]):
            raise ValueError(
                f'answer of problem {problem.id!r} must be {{"numbers": [...], "target": ...}}, got {asked!r}'
            )
        return str(asked["target"])


def _computes(expression: str) -> bool:
    """Whether it is more than a number."""
    return any(op in expression[1:] for op in "+-*/")


def _expression(text: str) -> str | None:
    """The canonical form of an expression that has a value; None for any other text."""
    try:
        expression = parse(text)
        value(expression)
    except (ValueError, ZeroDivisionError):
        return None
    written = canonical(expression)
    return written if len(written) <= LENGTH else None  # .5 is written 0.5
