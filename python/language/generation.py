"""Generation of N members x B prompts at once, through transformers' own `generate` on folded batches.

`generate` runs in stretches: as soon as half of the running sequences are done, they leave the batch and
the cache, and the others go on. So a straggler does not hold the rest, and there are few stretches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from thickets.functional import Seeds, Sigmas, members_tensors
from thickets.perturbed import PerturbedModule
from thickets.randopt.chunks import MEMORY_SHARE, ChunkSize, free_memory, run_in_chunks
from thickets.randopt.evaluation import check_chunking

from .decoding import Decoding
from .prompts import Prompt, Prompts
from .sampling import choose, stream_keys, uniforms

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
    chunks nor the other members change more than that. ValueError or TypeError names the argument at
    fault; RuntimeError for a model that cannot generate so; MemoryError where not even one member fits.
    """
    if not isinstance(prompts, Prompts):
        prompts = Prompts.of(prompts, tokenizer, chat)
    decoding = replace(Decoding() if decoding is None else decoding, **fields)
    check_chunking(chunk, memory)
    if stored not in (True, False, "auto"):
        raise ValueError(f"stored must be True, False or 'auto', got {stored!r}")
    _check(pm, prompts, decoding)
    device = _device(pm)
    if stored == "auto":
        stored = worth_storing(pm, len(prompts), decoding.max_new_tokens)
    seeds, sigmas = members_tensors(seeds, sigmas, device)

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
    _check(pm, prompts, decoding)
    (seeds, sigmas), device = pm.active, _device(pm)
    count, batch, start = len(seeds), len(prompts), prompts.ids.shape[1]
    keys = None
    if decoding.sample:
        unsigned = [seed % 2**64 for seed in seeds.tolist()]
        keys = stream_keys(decoding.sample_seed, unsigned, sigmas.tolist()).to(device)
    pm.regroup([batch] * count)
    ids, mask = prompts.ids.to(device).repeat(count, 1), prompts.mask.to(device).repeat(count, 1)
    if not pm.checked:
        pm(input_ids=ids[:, -CHECKED:], attention_mask=mask[:, -CHECKED:], use_cache=False)
    ends = _ends(pm.base, prompts.tokenizer)
    tokens: list[list[int]] = [[] for _ in range(count * batch)]
    finished = [False] * len(tokens)
    rows = torch.arange(len(tokens), device=device)  # of the sequences that run, n * B + b each
    cache = None
    while len(rows):
        sampler = _Sampler(decoding, keys[rows // batch], rows % batch, start) if keys is not None else None
        leaving = _Leaving(ends.to(device), decoding.stop, prompts.tokenizer, start, len(rows))
        made = _stretch(
            pm.module, ids, mask, cache, decoding.max_new_tokens + start - ids.shape[1], sampler, leaving
        )
        ids, cache = made.sequences, made.past_key_values
        mask = torch.cat([mask, mask.new_ones(len(ids), ids.shape[1] - mask.shape[1])], dim=1)
        full = ids.shape[1] - start == decoding.max_new_tokens
        gone = torch.ones_like(leaving.length, dtype=torch.bool) if full else leaving.length > 0
        for row, length, new in zip(
            rows[gone].tolist(), leaving.length[gone].tolist(), ids[gone, start:].tolist(), strict=True
        ):
            tokens[row], finished[row] = new[: length - start] if length else new, length > 0
        stay = (~gone).nonzero()[:, 0]
        rows, ids, mask = rows[stay], ids[stay], mask[stay]
        if len(rows):
            cache.batch_select_indices(stay)
            pm.regroup(torch.bincount(rows // batch, minlength=count).tolist())
    pm.regroup([batch] * count)
    texts = None if prompts.tokenizer is None else _texts(tokens, decoding.stop, prompts.tokenizer)
    groups = range(0, len(tokens), batch)
    return Generations(
        [tokens[at : at + batch] for at in groups],
        None if texts is None else [texts[at : at + batch] for at in groups],
        [finished[at : at + batch] for at in groups],
    )


def _stretch(
    module: Any, ids: Tensor, mask: Tensor, cache: Any, new: int, sampler: Any, leaving: _Leaving
) -> Any:
    """Go on with sequences ids [R, T] until enough of them are done, or each has `new` tokens more."""
    from transformers import GenerationConfig

    # The model's own configuration would be merged into ours: its penalties and temperatures, and its
    # ends, which `leaving` sees to.
    before, module.generation_config = module.generation_config, GenerationConfig()
    try:
        return module.generate(
            ids,
            attention_mask=mask,
            **({} if cache is None else {"past_key_values": cache}),
            generation_config=GenerationConfig(
                max_new_tokens=new, do_sample=False, use_cache=True, return_dict_in_generate=True
            ),
            logits_processor=[] if sampler is None else [sampler],
            stopping_criteria=[leaving],
        )
    finally:
        module.generation_config = before


class _Sampler:
    """A logits processor that leaves each sequence the one token which its own stream of numbers draws."""

    def __init__(self, decoding: Decoding, keys: Tensor, prompts: Tensor, start: int) -> None:
        self.decoding, self.keys, self.prompts, self.start = decoding, keys, prompts, start

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        numbers = uniforms(self.keys, self.prompts, ids.shape[1] - self.start)
        token = choose(logits, numbers, self.decoding)[:, None]
        return torch.full_like(logits, -torch.inf).scatter_(1, token, 0.0)


class _Leaving:
    """A stopping criterion: notes where sequences end, and stops all once at most half of them still run.

    length: int64 [R], how long each sequence is that has ended, else 0.
    """

    def __init__(self, ends: Tensor, stop: tuple[str, ...], tokenizer: Any, start: int, rows: int) -> None:
        self.ends, self.stop, self.tokenizer, self.start = ends, stop, tokenizer, start
        # A text of n bytes spans n tokens at most; some more, since the first ones may be decoded otherwise.
        self.window = max((len(text.encode()) for text in stop), default=0) + 4
        self.length = torch.zeros(rows, dtype=torch.int64, device=ends.device)

    def __call__(self, ids: Tensor, scores: Any, **_: Any) -> Tensor:
        running = self.length == 0
        done = torch.isin(ids[:, -1], self.ends)
        if self.stop:
            tails = ids[running, max(self.start, ids.shape[1] - self.window) :]
            texts = _decoded(self.tokenizer, tails.tolist())
            stopped = [any(stop in text for stop in self.stop) for text in texts]
            done[running] |= torch.tensor(stopped, device=done.device)
        self.length[running & done] = ids.shape[1]
        left = int((self.length == 0).sum())
        return torch.full_like(done, 2 * left <= len(done))


def _texts(tokens: list[list[int]], stop: tuple[str, ...], tokenizer: Any) -> list[str]:
    """Tokens as texts without special tokens, up to the first stop text."""
    texts = []
    for text in _decoded(tokenizer, tokens):
        ends = [at + len(word) for word in stop if (at := text.find(word)) >= 0]
        texts.append(text[: min(ends)] if ends else text)
    return texts


def _decoded(tokenizer: Any, tokens: list[list[int]]) -> list[str]:
    return list(tokenizer.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _ends(model: Any, tokenizer: Any) -> Tensor:
    """The tokens that end a sequence: the model's, or else its tokenizer's."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    if ends is None:
        ends = getattr(tokenizer, "eos_token_id", None)
    return torch.tensor([] if ends is None else ends, dtype=torch.int64).reshape(-1)


def _text_config(model: Any) -> Any:
    return model.config.get_text_config()


def _device(pm: PerturbedModule) -> torch.device:
    return next(pm.base.parameters()).device


def _check(pm: PerturbedModule, prompts: Prompts, decoding: Decoding) -> None:
    """TypeError or ValueError unless the model can generate, and the prompts are its own and short enough."""
    model: Any = pm.base
    if not callable(getattr(model, "generate", None)) or not hasattr(model, "generation_config"):
        raise TypeError(f"model must be a causal language model of transformers, got {type(model).__name__}")
    if model.config.is_encoder_decoder:
        raise TypeError(f"model must be no encoder-decoder, got {type(model).__name__}")
    if decoding.stop and prompts.tokenizer is None:
        raise ValueError("stop needs prompts with a tokenizer, got None")
    config = _text_config(model)
    prompts.check_length(getattr(config, "max_position_embeddings", None), decoding.max_new_tokens)
    largest = int(prompts.ids.max())
    if largest >= config.vocab_size:
        raise ValueError(
            f"prompts must hold token ids below {config.vocab_size}, the model's own, got {largest}"
        )


def members_that_fit(
    pm: PerturbedModule, prompts: Prompts, decoding: Decoding, stored: bool, memory: int | str
) -> int:
    """How many members fit in `memory` bytes ("auto": a quarter of what is free), by the model's config.

    MemoryError if one member's prompts alone take more than is free.
    """
    config, device = _text_config(pm.base), _device(pm)
    size = max(p.element_size() for p in pm.base.parameters())
    hidden, heads = config.hidden_size, config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    width = groups * (getattr(config, "head_dim", None) or hidden // heads)
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    batch, length = prompts.ids.shape
    weights = sum(p.nbytes for p in pm.base.parameters()) if stored else 0
    token = 2 * config.num_hidden_layers * width * size  # of the cache
    prefill = batch * (length * (token + (4 * hidden + 3 * inner) * size) + 12 * config.vocab_size) + weights
    free = free_memory(device)
    if prefill > free:
        raise MemoryError(
            f"one member with {batch} prompts of {length} tokens takes about {prefill / 2**30:.1f} GiB, and "
            f"{free / 2**30:.1f} GiB are free: give fewer prompts at once"
        )
    budget = free * MEMORY_SHARE if memory == "auto" else int(memory)
    return max(1, int(budget // (prefill + batch * decoding.max_new_tokens * token)))


def worth_storing(pm: PerturbedModule, rows: int, steps: int) -> bool:
    """Whether writing the members' weights once is faster than making noise in each of `steps` forwards."""
    return pm.noise == "normal" and steps >= 8
