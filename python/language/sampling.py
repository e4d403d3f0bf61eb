"""Choosing tokens at random, for every sequence from a stream of its own, whatever runs beside it."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from thickets.philox import philox4x32_10

from .decoding import Decoding
from .prompts import Prompts


def stream_keys(sample_seed: int, seeds: Sequence[int], sigmas: Sequence[float]) -> Tensor:
    """Philox keys of N members, int64 [N, 2]: BLAKE2b of sample seed, member seed and float32 sigma."""
    words = []
    for seed, sigma in zip(seeds, sigmas, strict=True):
        state = hashlib.blake2b(digest_size=8, person=b"thickets.sample")
        state.update(struct.pack("<QQf", sample_seed, seed, sigma))
        words.append(struct.unpack("<II", state.digest()))
    return torch.tensor(words, dtype=torch.int64)


def uniforms(keys: Tensor, prompts: Tensor, step: int) -> Tensor:
    """Numbers in [0, 1) of 48 bits, float64 [R], from Philox4x32-10 of counter (step, two words, 0).

    keys: int64 [R, 2], of each row's member; prompts: int64 [R, 2], its prompt's words.
    """
    zero = torch.zeros_like(keys[:, 0])
    counter = (zero + step, *prompts.unbind(1), zero)
    high, low, _, _ = philox4x32_10(*counter, *keys.unbind(1))
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

    keys, prompts: int64 [R, 2], of each sequence; start: how long all were at first.
    """

    def __init__(self, decoding: Decoding, keys: Tensor, prompts: Tensor, start: int) -> None:
        self.decoding, self.keys, self.prompts, self.start = decoding, keys, prompts, start

    @classmethod
    def of_members(cls, decoding: Decoding, seeds: Tensor, sigmas: Tensor, prompts: Prompts) -> Sampler:
        """That of N members x B prompts; seeds int64 [N], sigmas float32 [N]."""
        unsigned = [seed % 2**64 for seed in seeds.tolist()]
        keys = stream_keys(decoding.sample_seed, unsigned, sigmas.tolist()).to(seeds.device)
        words = prompts.words().to(seeds.device)
        rows = keys.repeat_interleave(len(words), 0), words.repeat(len(keys), 1)
        return cls(decoding, *rows, prompts.ids.shape[1])

    def of(self, rows: Tensor) -> Sampler:
        """That of some of the sequences, rows int64 [R']."""
        return Sampler(self.decoding, self.keys[rows], self.prompts[rows], self.start)

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        numbers = uniforms(self.keys, self.prompts, ids.shape[1] - self.start)
        token = choose(logits, numbers, self.decoding)[:, None]
        return torch.full_like(logits, -torch.inf).scatter_(1, token, 0.0)
