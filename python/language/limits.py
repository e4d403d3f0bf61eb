"""What a model can generate: what it refuses, how many members fit in memory, whether to store weights."""

from __future__ import annotations

import os
from typing import Any

import torch

from thickets.perturbed import PerturbedModule
from thickets.perturbed.storing import stored_is_faster
from thickets.randopt.chunks import MEMORY_SHARE, free_memory

from .decoding import Decoding
from .prompts import Prompts


def _text_config(model: Any) -> Any:
    return model.config.get_text_config()


def device_of(pm: PerturbedModule) -> torch.device:
    """Where the model lies."""
    return next(pm.base.parameters()).device


def check(pm: PerturbedModule, prompts: Prompts, decoding: Decoding) -> None:
    """TypeError or ValueError unless the model can generate, and the prompts are its own and short enough."""
    if not isinstance(pm, PerturbedModule):
        raise TypeError(f"pm must be what `perturb` returned, got {type(pm).__name__}")
    model: Any = pm.base
    if not callable(getattr(model, "generate", None)) or not hasattr(model, "generation_config"):
        raise TypeError(f"model must be a causal language model of transformers, got {type(model).__name__}")
    if model.config.is_encoder_decoder:
        raise TypeError(f"model must be no encoder-decoder, got {type(model).__name__}")
    if decoding.stop and prompts.tokenizer is None:
        raise ValueError("stop needs prompts with a tokenizer, got None")
    config = _text_config(model)
    prompts.check_length(getattr(config, "max_position_embeddings", None), decoding.max_new_tokens)
    largest = int((prompts.ids * prompts.mask).max())  # a padding token may be the tokenizer's alone
    if largest >= config.vocab_size:
        raise ValueError(
            f"prompts must hold token ids below {config.vocab_size}, the model's own, got {largest}"
        )


def members_that_fit(
    pm: PerturbedModule, prompts: Prompts, decoding: Decoding, stored: bool, memory: int | str
) -> int:
    """How many members fit in `memory` bytes ("auto": a quarter of what is free), by the model's config.

    MemoryError if one member's prompts alone take more than there is.
    """
    config, device = _text_config(pm.base), device_of(pm)
    size = max(p.element_size() for p in pm.base.parameters())
    hidden, heads = config.hidden_size, getattr(config, "num_attention_heads", 1)
    groups = getattr(config, "num_key_value_heads", None) or heads
    width = groups * (getattr(config, "head_dim", None) or hidden // heads)
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    batch, length = prompts.ids.shape
    weights = _stored_bytes(pm) if stored else 0
    token = 2 * config.num_hidden_layers * width * size  # of the cache
    logits = config.vocab_size * (56 if decoding.sample else 12)  # their copies, and sorted ones in float64
    prefill = batch * (length * (token + (4 * hidden + 3 * inner) * size) + logits) + weights
    total = _total_memory(device)
    if prefill > total:
        raise MemoryError(
            f"one member with {batch} prompts of {length} tokens takes about {prefill / 2**30:.1f} GiB, and "
            f"{device} has {total / 2**30:.1f} GiB: give fewer prompts at once"
        )
    budget = free_memory(device) * MEMORY_SHARE if memory == "auto" else int(memory)
    return max(1, int(budget // (prefill + batch * decoding.max_new_tokens * token)))


def _total_memory(device: torch.device) -> int:
    """All bytes of a device: what is free changes with what the system keeps in its caches."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def worth_storing(pm: PerturbedModule, steps: int) -> bool:
    """Whether to write members' weights once rather than to make their noise in each of `steps` forwards.

    Where that is faster, and one member's weights take no more than a quarter of what is free.
    """
    fit = _stored_bytes(pm) <= MEMORY_SHARE * free_memory(device_of(pm))
    return stored_is_faster(pm.noise, steps) and fit


def _stored_bytes(pm: PerturbedModule) -> int:
    """What the weights of one member take, at most."""
    parameters = list(pm.base.parameters())
    return sum(p.numel() * (4 if pm.precision == "exact" else p.element_size()) for p in parameters)
