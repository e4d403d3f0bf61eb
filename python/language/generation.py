"""Generation of N members x B prompts at once, through transformers' own `generate` on folded batches.

As soon as half of the running sequences are done, they leave the batch and the others go on
(stretches.py), so that stragglers hold none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from thickets.functional import Seeds, Sigmas, members_tensors
from thickets.perturbed import PerturbedModule
from thickets.randopt.chunks import ChunkSize, run_in_chunks
from thickets.randopt.evaluation import check_chunking

from .decoding import Decoding
from .limits import check, device_of, members_that_fit, worth_storing
from .prompts import Prompt, Prompts
from .sampling import Sampler
from .stopping import Ends
from .stretches import Running

CHECKED = 8  # tokens of the forward that finds modules which run member by member


@dataclass(frozen=True)
class Generations:
    """What N members made of B prompts.

    tokens: N lists of B lists of new token ids, with the token that ended them, without padding; texts:
    the same as N lists of B texts, which end with the stop text that ended them, or None without a
    tokenizer; finished: whether a sequence ended by itself, rather than by max_new_tokens.
    """

    tokens: list[list[list[int]]]
    texts: list[list[str]] | None
    finished: list[list[bool]]

    @property
    def count(self) -> int:
        """How many tokens were made."""
        return sum(len(tokens) for member in self.tokens for tokens in member)

    @classmethod
    def join(cls, parts: Iterable[Generations]) -> Generations:
        """Those of several groups of members as one."""
        parts = list(parts)
        texts = [member for part in parts for member in part.texts or ()]
        return cls(
            [member for part in parts for member in part.tokens],
            None if any(part.texts is None for part in parts) else texts,
            [member for part in parts for member in part.finished],
        )


def generate(
    pm: PerturbedModule,
    prompts: Prompts | Sequence[Prompt],
    seeds: Seeds,
    sigmas: Sigmas,
    *,
    tokenizer: Any = None,
    chat: bool = False,
    decoding: Decoding | None = None,
    chunk: int | None = None,
    memory: int | str = "auto",
    stored: bool | str = "auto",
    **fields: Any,
) -> Generations:
    """What N members of a causal language model of transformers generate for B prompts.

    prompts, tokenizer, chat: as in `Prompts.of`, or Prompts. seeds, sigmas: as in `pm.members`. decoding, and
    `fields` in place of some of its: see `Decoding`. chunk: members at once (default: what is fastest within
    `memory`, bytes or "auto"). stored: write the members' weights once ("auto": where that is faster).

    Equals `generate` of a model with `pm.materialize(seed, sigma)`, up to rounding of the logits; neither
    chunks nor the other members and prompts change more than that. Sampled tokens are drawn from a stream of
    sample seed, member and prompt. ValueError or TypeError names the argument at fault; RuntimeError for a
    model that cannot generate so; MemoryError where not even one member fits.
    """
    if not isinstance(prompts, Prompts):
        prompts = Prompts.of(prompts, tokenizer, chat)
    elif tokenizer is not None or chat:
        raise ValueError("tokenizer and chat must be left out for Prompts, which are tokenised already")
    decoding = replace(Decoding() if decoding is None else decoding, **fields)
    check_chunking(chunk, memory)
    if stored not in (True, False, "auto"):
        raise ValueError(f"stored must be True, False or 'auto', got {stored!r}")
    check(pm, prompts, decoding)
    device = device_of(pm)
    if stored == "auto":
        stored = worth_storing(pm, decoding.max_new_tokens)
    seeds, sigmas = members_tensors(seeds, sigmas, device)
    if not len(seeds):
        raise ValueError("seeds must be at least one, got none")

    def of_some(indices: list[int]) -> Generations:
        with pm.members(seeds[indices], sigmas[indices], fold=False, stored=bool(stored)):
            return decode(pm, prompts, decoding)

    size = ChunkSize(chunk, members_that_fit(pm, prompts, decoding, bool(stored), memory))
    parts = []
    for outcome in run_in_chunks(range(len(seeds)), of_some, size):
        if outcome.result is None:
            raise outcome.error or RuntimeError("nothing was generated")
        parts.append(outcome.result)
    return Generations.join(parts)


@torch.no_grad()
def decode(pm: PerturbedModule, prompts: Prompts, decoding: Decoding) -> Generations:
    """What the members of `with pm.members(seeds, sigmas, fold=False):` generate; errors as `generate`'s."""
    check(pm, prompts, decoding)
    (seeds, sigmas), device = pm.active, device_of(pm)
    count, batch = len(seeds), len(prompts)
    pm.regroup([batch] * count)
    model: Any = pm.base
    known = prompts.ids.clamp(max=model.config.get_text_config().vocab_size - 1)  # padding too
    ids, mask = known.to(device).repeat(count, 1), prompts.mask.to(device).repeat(count, 1)
    if not pm.checked:
        pm(input_ids=ids[:, -CHECKED:], attention_mask=mask[:, -CHECKED:], use_cache=False)
    ends = Ends(model, prompts.tokenizer, decoding.stop, device)
    sampler = Sampler.of_members(decoding, seeds, sigmas, prompts) if decoding.sample else None
    running = Running(pm.module, ids, mask, decoding, ends, sampler)
    tokens: list[list[int]] = [[] for _ in range(count * batch)]
    finished = [False] * len(tokens)
    while len(running.rows):
        for made in running.stretch():
            tokens[made.row], finished[made.row] = made.tokens, made.ended
        pm.regroup(torch.bincount(running.rows // batch, minlength=count).tolist())
    pm.regroup([batch] * count)
    texts, groups = ends.texts(tokens), [slice(n * batch, (n + 1) * batch) for n in range(count)]
    return Generations(
        [tokens[group] for group in groups],
        None if texts is None else [texts[group] for group in groups],
        [finished[group] for group in groups],
    )
