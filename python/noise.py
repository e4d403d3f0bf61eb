"""The noise contract in plain PyTorch: the definition every backend must reproduce (docs/noise.md).

A member n of a thicket has the weights W + s_n * eps(seed_n, parameter, family). This file turns (seed,
parameter name, row, column) into eps; nothing else enters, so any slice generated alone equals the slice of
the whole.
"""

from __future__ import annotations

import hashlib
import math
import re
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from .boxmuller import box_muller, fma32, round32
from .philox import MASK32, philox4x32_10

__all__ = [
    "CONTRACT_VERSION",
    "Family",
    "Stream",
    "entries",
    "family",
    "fma32",
    "hadamard_order",
    "hadamard_transform",
    "parameter_id",
    "philox4x32_10",
]

CONTRACT_VERSION = 1

# Elements per Philox call and the stream number in the low bits of c3 (section 3).
ELEMENTS = {"normal": 4, "normal4": 32, "rademacher": 128, "hadamard": 128}
STREAMS = {"normal": 0, "normal4": 1, "rademacher": 2}
STREAM_A, STREAM_B = 3, 4
STREAM_D1, STREAM_D2, STREAM_D3 = 5, 6, 7

MAGNITUDES = (0.07080078125, 0.21484375, 0.3671875, 0.53515625, 0.71875, 0.9453125, 1.265625, 2.125)
MINIMUM_ORDER = 128  # of a Hadamard transform: the signs of one Philox call

_CHUNK = 1 << 17  # entries generated at a time: temporaries stay near 20 MB


class Family(NamedTuple):
    """A noise family: its kind and, for "lowrank" only, its rank (section 3)."""

    kind: str
    rank: int = 0

    def __str__(self) -> str:
        return f"{self.kind}-{self.rank}" if self.kind == "lowrank" else self.kind

    @property
    def dense(self) -> bool:
        """Whether each entry comes from its own bits (normal, normal4, rademacher)."""
        return self.kind in STREAMS

    def for_vector(self) -> Family:
        """The family that a vector parameter takes: `normal` under hadamard and lowrank, else this one."""
        return self if self.dense else Family("normal")


def family(noise: str | Family) -> Family:
    """The family "normal", "normal4", "rademacher", "hadamard" or "lowrank-R"; ValueError if none of them."""
    if isinstance(noise, (str, Family)):
        text = str(noise)
        if text in STREAMS or text == "hadamard":
            return Family(text)
        if match := re.fullmatch(r"lowrank-([1-9][0-9]{0,8})", text):
            return Family("lowrank", int(match.group(1)))
    raise ValueError(
        "noise must be 'normal', 'normal4', 'rademacher', 'hadamard' or 'lowrank-R' with R >= 1 "
        f"(e.g. 'lowrank-4'), got {noise!r}"
    )


@cache
def parameter_id(name: str) -> int:
    """The unsigned 64-bit id of a canonical name: BLAKE2b with an 8-byte digest, read little-endian."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


class Stream(NamedTuple):
    """What eps depends on besides the seed: the parameter, its family and a place in its matrix view.

    `row`, `col` are the slice's origin, `full_cols` the columns of the whole parameter (default: the slice
    reaches its end); `scale` is the parameter's factor in s_n = float32(sigma_n * scale), no part of eps.
    """

    name: str
    family: Family
    row: int = 0
    col: int = 0
    full_cols: int | None = None
    scale: float = 1.0

    @property
    def id(self) -> int:
        """The parameter's unsigned 64-bit id."""
        return parameter_id(self.name)


def entries(seeds: Tensor, stream: Stream, rows: int, cols: int) -> Tensor:
    """eps of the slice [row : row + rows, col : col + cols] of a parameter's matrix view, for every seed.

    seeds: int64 [N], bit patterns of unsigned 64-bit seeds. Returns float32 [N, rows, cols] on their device,
    bit for bit what the contract says, without a host synchronisation. ValueError on a slice that the
    contract does not cover.
    """
    _check(seeds, stream, rows, cols)
    if seeds.numel() == 0 or rows == 0 or cols == 0:
        return torch.empty(seeds.numel(), rows, cols, device=seeds.device)
    kind = stream.family.kind
    if kind == "hadamard":
        return _hadamard(seeds, stream, rows, cols)
    if kind == "lowrank":
        return _low_rank(seeds, stream, rows, cols)
    return _dense(seeds, stream.id, kind, STREAMS[kind], stream.row, stream.col, rows, cols)


def _check(seeds: Tensor, stream: Stream, rows: int, cols: int) -> None:
    if seeds.dtype != torch.int64 or seeds.ndim != 1:
        raise ValueError(f"seeds must be an int64 tensor [N], got {seeds.dtype} {tuple(seeds.shape)}")
    if min(stream.row, stream.col, rows, cols) < 0:
        got = f"{stream.row}, {stream.col}, {rows}, {cols}"
        raise ValueError(f"row, col, rows and cols must be >= 0, got {got}")
    full_cols = _full_cols(stream, cols)
    if full_cols < stream.col + cols:
        raise ValueError(f"full_cols must be >= col + cols = {stream.col + cols}, got {full_cols}")
    if stream.row + rows > 1 << 32:
        raise ValueError(f"row + rows must be <= 2**32, got {stream.row + rows}")
    limit = ELEMENTS.get(stream.family.kind, 1) << 32
    if full_cols > limit:
        raise ValueError(f"full_cols must be <= {limit} for noise {str(stream.family)!r}, got {full_cols}")


def _full_cols(stream: Stream, cols: int) -> int:
    return stream.col + cols if stream.full_cols is None else stream.full_cols


def _words(seeds: Tensor, identity: int, number: int, row: Tensor, block: Tensor) -> tuple[Tensor, ...]:
    """The four words of (seed, parameter, stream number, row, block); tensors broadcast (section 2)."""
    c2 = block.new_full((), identity & MASK32)
    c3 = block.new_full((), number + 8 * ((identity >> 32) & 0x1FFFFFFF))
    return philox4x32_10(block, row, c2, c3, seeds & MASK32, (seeds >> 32) & MASK32)


def _normal(words: tuple[Tensor, ...]) -> Tensor:
    """Words [...] x 4 -> normals [..., 4]."""
    w0, w1, w2, w3 = words
    return torch.stack(box_muller(w0, w1) + box_muller(w2, w3), dim=-1)


def _normal4(words: tuple[Tensor, ...]) -> Tensor:
    """Words [...] x 4 -> 16-level quantised normals [..., 32]."""
    w = torch.stack(words, dim=-1)[..., None]
    element = torch.arange(8, device=w.device)
    sign_bit = 8 * (element % 4) + torch.where(element < 4, 7, 3)
    table = torch.stack([torch.full((), m, device=w.device) for m in MAGNITUDES])
    magnitude = table[(w >> (4 * element)) & 7]
    return torch.where((w >> sign_bit) & 1 == 1, -magnitude, magnitude).flatten(-2)


def _rademacher(words: tuple[Tensor, ...]) -> Tensor:
    """Words [...] x 4 -> signs [..., 128]; bit 1 is -1."""
    w = torch.stack(words, dim=-1)[..., None]
    bit = (w >> torch.arange(32, device=w.device)) & 1
    return (1 - 2 * bit).flatten(-2).float()


_DECODE = {"normal": _normal, "normal4": _normal4, "rademacher": _rademacher}


def _dense(
    seeds: Tensor, identity: int, kind: str, number: int, row: int, col: int, rows: int, cols: int
) -> Tensor:
    """[N, rows, cols] of a dense family: whole Philox calls, in chunks of a flat (member, row, block)."""
    size = ELEMENTS[kind]
    first, last = col // size, (col + cols - 1) // size
    blocks = last - first + 1
    calls = seeds.numel() * rows * blocks
    out = torch.empty(calls, size, device=seeds.device)
    for start in range(0, calls, _CHUNK // size):
        index = torch.arange(start, min(start + _CHUNK // size, calls), device=seeds.device)
        line = index // blocks
        words = _words(seeds[line // rows], identity, number, row + line % rows, first + index % blocks)
        out[start : start + index.numel()] = _DECODE[kind](words)
    begin = col - first * size
    return out.view(seeds.numel(), rows, blocks * size)[:, :, begin : begin + cols].contiguous()


def _low_rank(seeds: Tensor, stream: Stream, rows: int, cols: int) -> Tensor:
    """A B^T / sqrt(R): an fma chain over the rank from 0, then one product (section 3)."""
    rank = stream.family.rank
    a = _dense(seeds, stream.id, "normal", STREAM_A, stream.row, 0, rows, rank)
    b = _dense(seeds, stream.id, "normal", STREAM_B, stream.col, 0, cols, rank)
    out = torch.zeros(seeds.numel(), rows, cols, device=seeds.device)
    step = max(1, _CHUNK // (seeds.numel() * cols))
    for start in range(0, rows, step):
        part = out[:, start : start + step]
        for k in range(rank):
            part.copy_(fma32(a[:, start : start + step, k, None], b[:, None, :, k], part))
    return out.mul_(round32(1 / math.sqrt(rank)))


def hadamard_order(full_cols: int) -> int:
    """n of the transform for a parameter of that many columns: a power of two, at least 128 (section 5)."""
    return max(MINIMUM_ORDER, 1 << (full_cols - 1).bit_length())


def _signs(seeds: Tensor, identity: int, number: int, row_block: int, n: int) -> Tensor:
    """A diagonal of +-1 for every seed, [N, n]."""
    return _dense(seeds, identity, "rademacher", number, row_block, 0, 1, n)[:, 0]


def hadamard_transform(x: Tensor) -> Tensor:
    """Walsh-Hadamard transform over the last dimension, unnormalised: H_2 on each index bit, lowest first."""
    for _ in range(x.shape[-1].bit_length() - 1):
        even, odd = x[..., ::2], x[..., 1::2]
        x = torch.cat((even + odd, even - odd), dim=-1)
    return x


def _hadamard(seeds: Tensor, stream: Stream, rows: int, cols: int) -> Tensor:
    """Row i is D3 H D2 H D1 H e_i / n with unnormalised H: integers until the last step, hence exact."""
    n = hadamard_order(_full_cols(stream, cols))
    out = torch.empty(seeds.numel(), rows, cols, device=seeds.device)
    d3 = _signs(seeds, stream.id, STREAM_D3, 0, n)[:, None]
    step = max(1, _CHUNK // (seeds.numel() * n))
    end = stream.row + rows
    for block in range(stream.row // n, (end - 1) // n + 1):
        d1 = _signs(seeds, stream.id, STREAM_D1, block, n)[:, None]
        d2 = _signs(seeds, stream.id, STREAM_D2, block, n)[:, None]
        block_end = min((block + 1) * n, end)
        for first in range(max(block * n, stream.row), block_end, step):
            row = torch.arange(first, min(first + step, block_end), device=seeds.device)
            unit = ((row % n)[:, None] == torch.arange(n, device=seeds.device)).float()
            lines = d3 * hadamard_transform(d2 * hadamard_transform(d1 * hadamard_transform(unit))) / n
            place = slice(first - stream.row, first - stream.row + row.numel())
            out[:, place] = lines[:, :, stream.col : stream.col + cols]
    return out
