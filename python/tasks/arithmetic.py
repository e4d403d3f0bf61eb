"""The task `arithmetic`: sums of four digits, some of them subtracted, the result asked for behind hashes.

It comes with a small language model, made by pretrain.py, that knows arithmetic in several styles and takes
another one for many of these problems: RandOpt's members differ in style and in skill. A quarter of all sums
is reserved for tasks; pretraining never sees them, in no phrasing and in no style.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from itertools import product
from pathlib import Path

from thickets.tasks.problems import Problem, Source

CHECKPOINT = Path(__file__).parent / "arithmetic_lm"  # the model, for `from_pretrained`
PROMPT = "Q: {sum} A:"
TERMS = 4
MAX_NEW_TOKENS = 8
RESERVED = 64  # of 256


def sums(terms: int) -> Iterator[tuple[str, int]]:
    """Every sum of so many digits from 1 to 9, such as "7+8-3", that is not negative, with its result."""
    for digits in product(range(1, 10), repeat=terms):
        for signs in product("+-", repeat=terms - 1):
            result = digits[0] + sum(
                digit if sign == "+" else -digit for sign, digit in zip(signs, digits[1:], strict=True)
            )
            if result >= 0:
                rest = (f"{sign}{digit}" for sign, digit in zip(signs, digits[1:], strict=True))
                yield "".join((str(digits[0]), *rest)), result


def is_reserved(text: str) -> bool:
    """Whether a sum is left to tasks: by a digest of its text, so in every process."""
    return blake2b(text.encode(), digest_size=1).digest()[0] < RESERVED


def source(train: int, test: int, seed: int, data: Path | None) -> Source:
    """All problems of the task, some ten thousand; ValueError if `data` is given."""
    if data is not None:
        raise ValueError(f"data must be None for arithmetic, whose problems are generated, got {str(data)!r}")
    problems = [
        Problem(prompt=PROMPT.format(sum=text), answer=str(result))
        for text, result in sums(TERMS)
        if is_reserved(text)
    ]
    return Source(
        train=problems,
        test=None,
        scorer="number:hashes",
        max_new_tokens=MAX_NEW_TOKENS,
        asked_format="the result behind hashes: #### 12",
    )
