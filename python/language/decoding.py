"""How tokens are made: `Decoding`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Decoding:
    """How tokens are made: greedily, or sampled with a stream of random numbers for every sequence.

    max_new_tokens: tokens of a sequence at most. sample: draw from softmax(logits / temperature), of its
    top_k likeliest tokens (0: all) and of the fewest of these that hold the share top_p; else the
    likeliest token is taken and these three count for nothing. sample_seed: another one draws other
    tokens. stop: texts that end a sequence, which keeps them. ValueError or TypeError on bad values.
    """

    max_new_tokens: int = 256
    sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    sample_seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_integer("max_new_tokens", self.max_new_tokens, 1, 2**32)
        if not isinstance(self.sample, bool):
            raise TypeError(f"sample must be True or False, got {self.sample!r}")
        _check_number("temperature", self.temperature, math.inf)
        _check_number("top_p", self.top_p, 1.0)
        _check_integer("top_k", self.top_k, 0, 2**32)
        _check_integer("sample_seed", self.sample_seed, 0, 2**64)
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise ValueError(f"stop must be a sequence of non-empty texts, got {self.stop!r}")
        object.__setattr__(self, "stop", tuple(self.stop))


def _check_integer(name: str, value: Any, low: int, stop: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < stop:
        raise ValueError(f"{name} must be an integer in [{low}, {stop}), got {value!r}")


def _check_number(name: str, value: Any, most: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (0 < value <= most and math.isfinite(value)):
        raise ValueError(
            f"{name} must be a number > 0{f' and <= {most}' if most < math.inf else ''}, got {value!r}"
        )
