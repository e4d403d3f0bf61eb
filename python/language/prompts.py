"""Tokenised prompts of unequal lengths as one padded batch: `Prompts`."""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]


@dataclass(frozen=True, repr=False, eq=False)
class Prompts:
    """B prompts, padded on the left.

    ids: int64 [B, L]; mask: int64 [B, L], 0 where padded; tokenizer: what made them and turns tokens into
    text again, if there is one.
    """

    ids: Tensor
    mask: Tensor
    tokenizer: Any = field(default=None)

    @classmethod
    def of(
        cls,
        prompts: Sequence[Prompt],
        tokenizer: Any = None,
        chat: bool = False,
        context: int | None = None,
        max_new_tokens: int = 0,
    ) -> Prompts:
        """Texts, lists of token ids, or lists of messages (with chat=True) as prompts.

        tokenizer: one of transformers; texts and messages need it. chat: put texts, as the user's
        message, and messages into the tokenizer's chat template. context, max_new_tokens: see
        `check_length`. TypeError or ValueError naming the first prompt that is none, and for a tokenizer
        without template.
        """
        if isinstance(prompts, str | Mapping) or not isinstance(prompts, Sequence):
            raise TypeError(f"prompts must be a sequence of prompts, got {type(prompts).__name__}")
        if not prompts:
            raise ValueError("prompts must hold at least one, got none")
        if chat and getattr(tokenizer, "chat_template", None) is None:
            raise ValueError("chat=True needs a tokenizer with a chat template, got one without")
        rows = [_tokens(i, prompt, tokenizer, chat) for i, prompt in enumerate(prompts)]
        length = max(map(len, rows))
        pad = _padding(tokenizer)
        ids = torch.tensor([[pad] * (length - len(row)) + row for row in rows], dtype=torch.int64)
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], dtype=torch.int64)
        made = cls(ids, mask, tokenizer)
        made.check_length(context, max_new_tokens)
        return made

    def __len__(self) -> int:
        return self.ids.shape[0]

    def __repr__(self) -> str:
        content = hashlib.blake2b(repr(self.tokens()).encode(), digest_size=8).hexdigest()
        return f"Prompts({len(self)} of at most {self.ids.shape[1]} tokens, {content})"

    def tokens(self) -> list[list[int]]:
        """The prompts' token ids, without padding."""
        rows = zip(self.ids.tolist(), self.mask.sum(1).tolist(), strict=True)
        return [row[len(row) - length :] for row, length in rows]

    def words(self) -> Tensor:
        """Two 32-bit words a prompt, int64 [B, 2]: BLAKE2b of its tokens and the equal ones before it."""
        seen: Counter[tuple[int, ...]] = Counter()
        words = []
        for tokens in map(tuple, self.tokens()):
            content = struct.pack(f"<{1 + len(tokens)}Q", seen[tokens], *tokens)
            words.append(struct.unpack("<II", hashlib.blake2b(content, digest_size=8).digest()))
            seen[tokens] += 1
        return torch.tensor(words, dtype=torch.int64)

    def check_length(self, context: int | None, max_new_tokens: int) -> None:
        """ValueError naming the first prompt that with its new tokens is longer than the model's context."""
        if context is None:
            return
        for i, length in enumerate(self.mask.sum(1).tolist()):
            if length + max_new_tokens > context:
                raise ValueError(
                    f"prompt {i} and its new tokens must fit in the model's context of {context} tokens, got "
                    f"{length} + max_new_tokens={max_new_tokens}"
                )


def _tokens(index: int, prompt: Prompt, tokenizer: Any, chat: bool) -> list[int]:
    """One prompt's token ids, at least one."""
    if not isinstance(prompt, str | Sequence):
        raise TypeError(f"prompt {index} must be a text, token ids or messages, got {type(prompt).__name__}")
    tokens: list[Any] = list(prompt)
    messages = any(isinstance(item, Mapping) for item in tokens)
    if isinstance(prompt, str) or messages:
        if tokenizer is None:
            raise ValueError(f"prompt {index} is text, which needs a tokenizer, got None")
        if messages and not chat:
            raise ValueError(f"prompt {index} is a list of messages, which needs chat=True")
        tokens = _encoded(index, prompt, tokenizer, chat)
    elif not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in tokens):
        raise TypeError(f"prompt {index} must hold token ids >= 0, got {prompt!r:.80}")
    if not tokens:
        raise ValueError(f"prompt {index} must have at least one token, got {prompt!r:.80}")
    return tokens


def _encoded(index: int, prompt: Any, tokenizer: Any, chat: bool) -> list[int]:
    try:
        if not chat:
            return list(tokenizer(prompt)["input_ids"])
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])  # a template writes its own
    except Exception as error:
        kind = type(error).__name__
        raise ValueError(
            f"prompt {index} cannot be tokenised: {kind}: {error}, got {prompt!r:.80}"
        ) from error


def _padding(tokenizer: Any) -> int:
    """The id to pad with, which the mask hides: the tokenizer's, or that of its ends, or 0."""
    for name in ("pad_token_id", "eos_token_id"):
        token = getattr(tokenizer, name, None)
        if isinstance(token, int):
            return token
    return 0
