"""What ends a sequence: the model's end tokens and stop texts; and when those that ended leave the batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Ends:
    """What ends a sequence: an end token of the model, or else of its tokenizer, or a text of `stop`."""

    def __init__(self, model: Any, tokenizer: Any, stop: tuple[str, ...], device: torch.device) -> None:
        tokens = getattr(model.generation_config, "eos_token_id", None)
        if tokens is None:
            tokens = getattr(tokenizer, "eos_token_id", None)
        tokens = [] if tokens is None else tokens
        self.tokens = torch.tensor(tokens, dtype=torch.int64, device=device).reshape(-1)
        self.stop, self.tokenizer = stop, tokenizer
        # A text of n bytes spans n tokens at most; some more, since the first ones may be decoded otherwise.
        self._window = max((len(text.encode()) for text in stop), default=0) + 4

    def reached(self, ids: Tensor) -> Tensor:
        """Whether the last of the new tokens ids [R, T] ended each sequence: bool [R]."""
        ended = torch.isin(ids[:, -1], self.tokens)
        if self.stop:
            tails = decoded(self.tokenizer, ids[:, -self._window :].tolist())
            stopped = [any(stop in tail for stop in self.stop) for tail in tails]
            ended |= torch.tensor(stopped, dtype=torch.bool, device=ended.device)
        return ended

    def texts(self, tokens: list[list[int]]) -> list[str] | None:
        """Tokens as texts up to and with the first stop text; None without a tokenizer."""
        if self.tokenizer is None:
            return None
        return [self._cut(text) for text in decoded(self.tokenizer, tokens)]

    def _cut(self, text: str) -> str:
        ends = [at + len(stop) for stop in self.stop if (at := text.find(stop)) >= 0]
        return text[: min(ends, default=len(text))]


def decoded(tokenizer: Any, tokens: list[list[int]]) -> list[str]:
    """Lists of tokens as texts without special tokens."""
    return list(tokenizer.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class Leaving:
    """A stopping criterion of transformers: notes which sequences end, stops all when at most `left` run on.

    length: int64 [R], how long each sequence is that has ended, else 0; start: how long all were at first.
    """

    def __init__(self, ends: Ends, start: int, rows: int, left: int) -> None:
        self.ends, self.start, self.left = ends, start, left
        self.length = torch.zeros(rows, dtype=torch.int64, device=ends.tokens.device)

    def __call__(self, ids: Tensor, scores: Any, **_: Any) -> Tensor:
        running = (self.length == 0).nonzero()[:, 0]
        ended = self.ends.reached(ids[running, self.start :])
        self.length[running[ended]] = ids.shape[1]
        stop = len(running) - int(ended.sum()) <= self.left
        return torch.full_like(self.length, stop, dtype=torch.bool)
