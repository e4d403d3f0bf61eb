"""Scorers: what a text answers, and whether that is right, by name or imported.

    exact      a text, up to case, spacing, quotes and a full stop
    number     a number, however written: 1,000 or 1000.0, with units or without
    choice     a letter, such as B of "(B)"
    math       a mathematical expression, compared by math-verify
    contains   any text in which the answer's words stand
    countdown  arithmetic over given numbers that makes a target


"number:boxed" is `number` asked for with the mark `boxed` (extraction.py): only answers so marked are
formatted. Without a mark, one with any mark is, and so is a bare answer. Other scorers are imported into a
process of their own.
"""

from __future__ import annotations

import re
import unicodedata
from abc import ABC, abstractmethod
from importlib import import_module
from typing import Any

from .extraction import MARKS, Found, concluding, is_stated, last_number, marked, number, plain, stated_number
from .problems import Answer, Problem, Scorer
from .worker import Worker, WorkerError

SCORERS = {  # name -> the module with that scorer, and its class
    "exact": ("scoring", "Exact"),
    "number": ("scoring", "Number"),
    "choice": ("scoring", "Choice"),
    "math": ("mathematics", "Mathematics"),
    "contains": ("scoring", "Contains"),
    "countdown": ("countdown", "Countdown"),
}


def open_scorer(spec: str, limit: float = 10.0) -> Scorer:
    """The scorer "name" or "name:mark", or one's own: "package.module:object", "file.py:object".

    One's own object (a module, or a class to be called without arguments, will do) has the functions
    `extract(text, problem)` -> a text, an Answer or None, and `correct(value, problem)` -> bool; `problem`
    has prompt, messages, answer and id. They run in another process and get `limit` seconds each. ValueError
    says what exists, or why an object cannot be imported.
    """
    name, colon, mark = spec.partition(":")
    if name in SCORERS:
        module, made = SCORERS[name]
        kind = getattr(import_module(f"thickets.tasks.{module}"), made)
        if colon and mark not in MARKS:
            raise ValueError(f"scorer {name!r} must have a mark of {', '.join(MARKS)} or none, got {mark!r}")
        scorer: Scorer = kind(mark) if colon else kind()
        return scorer
    if not name or not mark:
        raise ValueError(f"scorer must be {expected()}, got {spec!r}")
    return Imported(spec, limit)


def expected() -> str:
    """What `open_scorer` takes, in words."""
    return f"one of {', '.join(SCORERS)}, or 'package.module:object'"


def check_answer(scorer: Scorer, problem: Problem) -> None:
    """ValueError if the problem's answer is none that the scorer can compare with."""
    if isinstance(scorer, Marked):
        scorer.gold(problem)


class Marked(ABC):
    """A scorer that reads what stands in the marks of a text, best guess first; None without an answer."""

    kind: str

    def __init__(self, asked: str | None = None) -> None:
        self.asked = asked

    @property
    def name(self) -> str:
        return f"{self.kind}:{self.asked}" if self.asked else self.kind

    def extract(self, text: str, problem: Problem) -> Answer | None:
        for found in marked(text, self.asked, problem.chat[-1]["content"]):
            read = self.read(found)
            if read is not None:
                value, alone = read
                return Answer(value, found.asked and alone)
        return None

    def correct(self, answer: Answer, problem: Problem) -> bool:
        return answer.value == self.gold(problem)

    @abstractmethod
    def read(self, found: Found) -> tuple[str, bool] | None:
        """The answer in canonical form, and whether it stands there alone; None where there is none."""

    @abstractmethod
    def gold(self, problem: Problem) -> str:
        """The problem's answer in canonical form; ValueError where it is none."""


class Exact(Marked):
    """A text, up to case, spacing, quotes and a full stop; of several lines without a mark, the last."""

    kind = "exact"

    def read(self, found: Found) -> tuple[str, bool] | None:
        lines = found.content.splitlines()
        text = folded(lines[-1] if found.mark == "text" else found.content)
        return (text, found.mark != "text" or len(lines) == 1) if text else None

    def gold(self, problem: Problem) -> str:
        text = folded(written(problem))
        if not text:
            raise ValueError(
                f"answer of problem {problem.id!r} must be a text with words, got {problem.answer!r}"
            )
        return text


class Contains(Exact):
    """Any text, correct if the answer's words stand in it; a vote is on whole texts."""

    kind = "contains"

    def extract(self, text: str, problem: Problem) -> Answer | None:
        value = folded(concluding(text, problem.chat[-1]["content"]))
        return Answer(value) if value else None

    def correct(self, answer: Answer, problem: Problem) -> bool:
        words = re.escape(self.gold(problem))
        return re.search(rf"(?<!\w){words}(?!\w)", answer.value) is not None


class Number(Marked):
    """A number, the last one of a text without a mark: its value counts, not how it is written."""

    kind = "number"

    def read(self, found: Found) -> tuple[str, bool] | None:
        alone = number(found.content)
        if alone is not None:
            return str(alone), True
        if found.mark == "hashes" and not is_stated(found.content):  # a heading
            return None
        value = (last_number if found.mark == "text" else stated_number)(found.content)
        return None if value is None else (str(value), False)

    def gold(self, problem: Problem) -> str:
        value = number(written(problem))
        if value is None:
            raise ValueError(f"answer of problem {problem.id!r} must be a number, got {problem.answer!r}")
        return str(value)


class Choice(Marked):
    """A letter from A to Z, of "(B)", "B." or "B) because": a text without a mark is searched for it."""

    kind = "choice"
    _ALONE = re.compile(r"[(\[]?([A-Za-z])[)\].:]*")
    _WITHIN = (
        re.compile(r"^[(\[]?([A-Z])[)\].:,]", re.ASCII),
        re.compile(r"[(\[]([A-Z])[)\]]", re.ASCII),
        re.compile(
            r"\b([B-HJ-Z]|A(?!\s(?!is\b)[a-z]))\b(?!['’])", re.ASCII
        ),  # neither "a" nor "I" of a sentence
    )

    def read(self, found: Found) -> tuple[str, bool] | None:
        text = plain(found.content).strip(" \t\n*_`'\"$")
        alone = self._ALONE.fullmatch(text)
        if alone:
            return alone[1].upper(), True
        for pattern in self._WITHIN:
            letters = pattern.findall(text)
            if letters:
                return letters[-1], False
        return None

    def gold(self, problem: Problem) -> str:
        alone = self._ALONE.fullmatch(written(problem).strip())
        if not alone:
            raise ValueError(f"answer of problem {problem.id!r} must be a letter, got {problem.answer!r}")
        return alone[1].upper()


class Imported:
    """A scorer of one's own, in another process: RuntimeError names it if it raises, hangs or crashes."""

    def __init__(self, spec: str, limit: float) -> None:
        self.name = spec
        self._worker = Worker(spec, limit)
        self._worker.start()

    def extract(self, text: str, problem: Problem) -> Answer | None:
        value = self._call("extract", text, vars(problem))
        if isinstance(value, dict) and set(value) == {"value", "formatted"}:  # an Answer
            value, formatted = value["value"], bool(value["formatted"])
        else:
            formatted = True
        if value is None or isinstance(value, str):
            return None if value is None else Answer(value, formatted)
        raise RuntimeError(
            f"scorer {self.name!r}: extract() must return a text, an Answer or None, got {value!r}"
        )

    def correct(self, answer: Answer, problem: Problem) -> bool:
        right = self._call("correct", answer.value, vars(problem))
        if not isinstance(right, bool):
            raise RuntimeError(f"scorer {self.name!r}: correct() must return a bool, got {right!r}")
        return right

    def _call(self, function: str, *arguments: Any) -> Any:
        try:
            return self._worker.call(function, *arguments)
        except WorkerError as error:
            raise RuntimeError(f"scorer {self.name!r}: {error}") from None


def written(problem: Problem) -> str:
    """The answer of a problem as text, from a text or number; ValueError for others."""
    answer = problem.answer
    if isinstance(answer, str | int | float) and not isinstance(answer, bool) and str(answer).strip():
        return str(answer)
    raise ValueError(f"answer of problem {problem.id!r} must be a text or a number, got {answer!r}")


def folded(text: str) -> str:
    """A text without case, quotes and emphasis around it, repeated spaces and a full stop."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return text.strip(" \t*_`'\"“”‘’").rstrip(".。").rstrip()
