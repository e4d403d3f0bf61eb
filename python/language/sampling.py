"""Choosing tokens at random, for every sequence from a stream of its own, whatever runs beside it."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from thickets.philox import MASK32, philox4x32_10

from .decoding import Decoding


def stream_keys(sample_seed: int, seeds: Sequence[int], sigmas: Sequence[float]) -> Tensor:
    """Philox keys of N members, int64 [N, 2]: BLAKE2b of sample seed, member seed and float32 sigma."""
    words = []
    for seed, sigma in zip(seeds, sigmas, strict=True):
        state = hashlib.blake2b(digest_size=8, person=b"thickets.sample")
        state.update(struct.pack("<QQf", sample_seed, seed, sigma))
        words.append(struct.unpack("<II", state.digest()))
    return torch.tensor(words, dtype=torch.int64)


def uniforms(keys: Tensor, prompts: Tensor, step: int) -> Tensor:
    """Numbers in [0, 1) of 48 bits, float64 [R], from Philox4x32-10 of counter (step, prompt, 0, 0).

    keys: int64 [R, 2], each row's stream; prompts: int64 [R], the index of its prompt.
    """
    zero = torch.zeros_like(prompts)
    high, low, _, _ = philox4x32_10(zero + step, prompts & MASK32, zero, zero, keys[:, 0], keys[:, 1])
    return (high * 2**16 + (low >> 16)).double() * 2.0**-48


def choose(logits: Tensor, numbers: Tensor, decoding: Decoding) -> Tensor:
    """Tokens int64 [R] drawn from logits [R, V] where the cumulative probability passes `numbers` [R]."""
    order = None
    if 0 < decoding.top_k < logits.shape[1]:
        logits, order = logits.topk(decoding.top_k)
    elif decoding.top_p < 1:
        logits, order = logits.sort(descending=True, stable=True)
    shares = torch.softmax(logits.double() / decoding.temperature, dim=-1)
    if decoding.top_p < 1:
        before = shares.cumsum(-1) - shares
        shares = shares.masked_fill(before >= decoding.top_p, 0)
    mass = shares.cumsum(-1)
    place = torch.searchsorted(mass, (numbers * mass[:, -1])[:, None], right=True)
    place = place.clamp(max=logits.shape[1] - 1)  # where logits are not finite
    return (place if order is None else order.gather(1, place))[:, 0]


class Sampler:
    """A logits processor of transformers that leaves each sequence the one token which its own stream draws.

    keys: int64 [R, 2], prompts: int64 [R], of each sequence; start: how long all were at first.
    """

    def __init__(self, decoding: Decoding, keys: Tensor, prompts: Tensor, start: int) -> None:
        self.decoding, self.keys, self.prompts, self.start = decoding, keys, prompts, start

    @classmethod
    def of_members(cls, decoding: Decoding, seeds: Tensor, sigmas: Tensor, batch: int, start: int) -> Sampler:
        """That of N members x B prompts; seeds int64 [N], sigmas float32 [N]."""
        unsigned = [seed % 2**64 for seed in seeds.tolist()]
        keys = stream_keys(decoding.sample_seed, unsigned, sigmas.tolist()).to(seeds.device)
        prompts = torch.arange(batch, device=seeds.device).repeat(len(seeds))
        return cls(decoding, keys.repeat_interleave(batch, 0), prompts, start)

    def of(self, rows: Tensor) -> Sampler:
        """That of some of the sequences, rows int64 [R']."""
        return Sampler(self.decoding, self.keys[rows], self.prompts[rows], self.start)

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        numbers = uniforms(self.keys, self.prompts, ids.shape[1] - self.start)
        token = choose(logits, numbers, self.decoding)[:, None]
        return torch.full_like(logits, -torch.inf).scatter_(1, token, 0.0)
