"""The scorer `math`: expressions in LaTeX, compared by math-verify in a process that can be killed."""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from .extraction import Found, last_number, number, plain
from .problems import Answer, Problem
from .scoring import Marked, written
from .worker import Worker, WorkerError

LIMIT = 5.0  # seconds: what takes longer equals nothing but itself
MEMORY = 1 << 30  # bytes of address space: math-verify begins with 64 MB
LENGTH = 300  # characters of an expression that is worth reading
CACHE = 100_000  # members mostly repeat each other

_INLINE = re.compile(  # a dollar before a number may be one of money: "$5 and $7"
    r"(?<!\\)\$\$(.{1,1000}?)\$\$|(?<!\\)\$(?!\d[^$]{0,1000}\s\$)((?:[^$\\]|\\.){1,1000})\$(?!\d)"
    r"|\\\((.{1,1000}?)\\\)|\\\[(.{1,1000}?)\\\]",
    re.DOTALL,
)
_BROKEN = re.compile(r"\\boxed|</?\s*answer|####", re.IGNORECASE)  # a mark with nothing in it
_WORDS = re.compile(r"(?!(?:sin|cos|tan|log|exp|sqrt)\b)[A-Za-z][A-Za-z'-]{2,}(?: [\w'-]+)*")
_BASED = re.compile(r"([0-9A-F]+)_(?:(\d{1,2})|\{(\d{1,2})\})")
_TIME = re.compile(r"\d{1,2}:\d{2}(?!\d)")
_MEMBER = re.compile(r"\s*[A-Za-z]\s*\\in\b")


class Mathematics(Marked):
    r"""An expression, equal to whatever math-verify finds equal; the last $...$ or number without a mark.

    10\% is 10. An expression that math-verify fails on, or for which it takes more than LIMIT seconds, is a
    text that equals itself alone. RuntimeError without math-verify.
    """

    kind = "math"

    def __init__(self, asked: str | None = None) -> None:
        super().__init__(asked)
        if find_spec("math_verify") is None:
            raise RuntimeError("the scorer 'math' needs math-verify: pip install 'thickets[language]'")
        self._worker = Worker(str(Path(__file__).with_name("math_child.py")), LIMIT, MEMORY)
        self._canonical = lru_cache(CACHE)(self._read_expression)
        self._equal = lru_cache(CACHE)(self._compare)

    def read(self, found: Found) -> tuple[str, bool] | None:
        text, alone = found.content, True
        if found.mark in ("said", "text"):
            inline = [next(filter(None, match.groups())).strip() for match in _INLINE.finditer(text)]
            if inline := [formula for formula in inline if formula]:
                text, alone = inline[-1], _INLINE.fullmatch(text) is not None
            elif found.mark == "text" and (len(text.split()) > 1 or _BROKEN.search(text)):
                value = last_number(text)
                return None if value is None else (str(value), False)
        expression = self._canonical(_bare(text))
        return (expression, alone) if expression else None

    def correct(self, answer: Answer, problem: Problem) -> bool:
        gold = self.gold(problem)
        if answer.value == gold:
            return True
        if number(gold) is not None and number(answer.value) is not None:
            return False
        if _BASED.fullmatch(gold) and _BASED.fullmatch(answer.value):  # math-verify does not see the base
            return False
        return self._equal(written(problem), answer.value)

    def gold(self, problem: Problem) -> str:
        gold = self._canonical(_bare(written(problem)))
        if not gold:
            raise ValueError(
                f"answer of problem {problem.id!r} must be an expression, got {problem.answer!r}"
            )
        return gold

    def _read_expression(self, text: str) -> str:
        """One text for equal expressions, as far as they are easily made the same."""
        simple = plain(text).strip()
        value = number(simple)
        if value is not None:
            return str(value)
        if _WORDS.fullmatch(simple):
            return simple.casefold()
        unread = "".join(simple.split())
        based = _BASED.fullmatch(unread)
        if based:
            return f"{based[1]}_{based[2] or based[3]}"
        if _TIME.match(unread):
            return unread.casefold().replace(".", "")
        if len(text) > LENGTH:
            return unread
        try:
            read = self._worker.call("canonical", _unmarked(_MEMBER.sub("", text)))
        except WorkerError:
            return unread
        if read is None:
            return unread
        value = number(read)
        return read if value is None else str(value)

    def _compare(self, gold: str, other: str) -> bool:
        if max(len(gold), len(other)) > LENGTH:
            return False
        try:
            return bool(self._worker.call("equal", _unmarked(gold), other))
        except WorkerError:
            return False


def _unmarked(text: str) -> str:
    """Without per cent, and degrees as math-verify knows them."""
    return text.replace("\\%", "").replace("%", "").replace("\\degree", "^\\circ").replace("°", "^\\circ")


def _bare(text: str) -> str:
    """An expression without the dollars, spaces and the full stop around it."""
    return text.strip().strip("$").strip().removesuffix(".")
