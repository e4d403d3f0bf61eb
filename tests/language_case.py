"""A small random causal language model and its tokenizer of characters, for tests of generation."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from thickets.perturbed import PerturbedModule

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789 ?.é漢"
SPECIAL = ["<pad>", "<s>", "</s>"]
EOS = SPECIAL.index("</s>")
VOCABULARY = len(SPECIAL) + len(ALPHABET)
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
SEEDS = [7, 2**64 - 1, 7, 12]
SIGMAS = [0.05, -0.04, -0.05, 0.06]
PROMPTS = [[5, 6, 7], [9], [10, 11, 12, 13, 14], [3, 4]]


def model(kind: Any = LlamaForCausalLM, config: Any = LlamaConfig, **fields: Any) -> Any:
    """Equal models each time, with weights large enough for varied texts, that end at one token in five."""
    torch.manual_seed(0)
    made: nn.Module = kind(config(**{**SMALL, **fields})).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    made.generation_config = GenerationConfig(eos_token_id=list(range(EOS, VOCABULARY, 5)))
    return made


def tokenizer(**options: Any) -> PreTrainedTokenizerFast:
    """One token for each character of ALPHABET."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *ALPHABET])}
    characters = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex(""), "isolated")
    characters.decoder = decoders.Fuse()
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "?", **options}
    return PreTrainedTokenizerFast(tokenizer_object=characters, **names)


def alone(pm: PerturbedModule, fresh: Any, seed: int, sigma: float, prompt: list[int], new: int) -> list[int]:
    """What transformers' own greedy generation makes with one member's weights, for one prompt."""
    state = pm.materialize(seed, sigma)
    fresh.load_state_dict(state)
    made = fresh.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
    )
    return made[0, len(prompt) :].tolist()


def all_alone(
    pm: PerturbedModule, fresh: Any, new: int, prompts: list[list[int]] = PROMPTS
) -> list[list[list[int]]]:
    """The same for all members of this file."""
    return [
        [alone(pm, fresh, seed, sigma, prompt, new) for prompt in prompts]
        for seed, sigma in zip(SEEDS, SIGMAS, strict=True)
    ]


def flat(members: list[list[Any]]) -> list[Any]:
    """N lists of B as one list."""
    return [item for member in members for item in member]
