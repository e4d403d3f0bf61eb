"""Transformers' own `generate` in stretches, between which the sequences that are done leave the batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .decoding import Decoding
from .sampling import Sampler
from .stopping import Ends, Leaving


class Made(NamedTuple):
    """A sequence that is done: which it is, its new tokens, and whether it ended by itself."""

    row: int
    tokens: list[int]
    ended: bool


class Running:
    """The sequences that a model is still to continue.

    ids, mask: int64 [R, T], the sequences so far; rows: int64 [R], which of those given at first they
    are. ends says what ends them; sampler draws their tokens, without one the likeliest are taken.
    """

    def __init__(
        self, module: Any, ids: Tensor, mask: Tensor, decoding: Decoding, ends: Ends, sampler: Sampler | None
    ) -> None:
        self.module, self.ids, self.mask, self.ends, self.sampler = module, ids, mask, ends, sampler
        self.rows = torch.arange(len(ids), device=ids.device)
        self.cache: Any = None
        self.start, self.full = ids.shape[1], ids.shape[1] + decoding.max_new_tokens
        # None can leave where a model of several modalities keeps positions of the whole batch to itself, or
        # where its past is states rather than keys and values.
        sees = module.config.get_text_config() is not module.config
        kinds = getattr(module.config, "layer_types", None) or ()
        self.together = sees or getattr(module, "_is_stateful", False) or "conv" in kinds

    def stretch(self) -> list[Made]:
        """Go on until at most half still run or all are at their full length; those that are done leave."""
        leaving = Leaving(self.ends, self.start, len(self.rows), 0 if self.together else len(self.rows) // 2)
        self._generate(leaving)
        length = torch.where(leaving.length > 0, leaving.length, self.ids.shape[1])
        done = leaving.length > 0
        gone = done | (self.ids.shape[1] == self.full)
        facts = (self.rows[gone], self.ids[gone, self.start :], length[gone] - self.start, done[gone])
        rows = zip(*(fact.tolist() for fact in facts), strict=True)
        stay = (~gone).nonzero()[:, 0]
        self.rows, self.ids, self.mask = self.rows[stay], self.ids[stay], self.mask[stay]
        if len(stay):
            self.cache.batch_select_indices(stay)
        return [Made(row, tokens[:length], ended) for row, tokens, length, ended in rows]

    def _generate(self, leaving: Leaving) -> None:
        from transformers import GenerationConfig

        # What the model's own configuration says of penalties, temperatures and ends would be merged into
        # ours.
        before, self.module.generation_config = self.module.generation_config, GenerationConfig()
        try:
            made = self.module.generate(
                self.ids,
                attention_mask=self.mask,
                **({} if self.cache is None else {"past_key_values": self.cache}),
                generation_config=GenerationConfig(
                    max_new_tokens=self.full - self.ids.shape[1],
                    do_sample=False,
                    use_cache=True,
                    return_dict_in_generate=True,
                ),
                logits_processor=[] if self.sampler is None else [self.sampler.of(self.rows)],
                stopping_criteria=[leaving],
            )
        finally:
            self.module.generation_config = before
        new = made.sequences.shape[1] - self.ids.shape[1]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.rows), new)], dim=1)
        self.ids, self.cache = made.sequences, made.past_key_values
