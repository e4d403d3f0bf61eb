"""Rows of hadamard noise too long for a program of a GPU, in plain PyTorch: exact on any device, and slow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from .noise import (
    STREAM_D1,
    STREAM_D2,
    STREAM_D3,
    fma32,
    hadamard_order,
    hadamard_transform,
    philox4x32_10,
)
from .operands import Members, Noise

MASK32 = 0xFFFFFFFF
ENTRIES = 1 << 22  # at a time: temporaries stay near 200 MB


def _signs(seeds: Tensor, blocks: Tensor, noise: Noise, stream: int, n: int) -> Tensor:
    """A diagonal of +-1 for every seed [L] and row block [L], float32 [L, n]."""
    call = torch.arange(n // 128, device=seeds.device)
    c2 = call.new_full((), noise.id & MASK32)
    c3 = call.new_full((), stream + 8 * ((noise.id >> 32) & 0x1FFFFFFF))
    low, high = (seeds & MASK32)[:, None], ((seeds >> 32) & MASK32)[:, None]
    words = torch.stack(philox4x32_10(call, blocks[:, None], c2, c3, low, high), dim=-1)
    bits = (words[..., None] >> torch.arange(32, device=seeds.device)) & 1
    return (1 - 2 * bits).flatten(1).float()


def _entries(seeds: Tensor, rows: Tensor, noise: Noise, cols: int) -> Tensor:
    """eps of global rows int64 [L] under seeds [L], columns from noise.col on: float32 [L, cols]."""
    n = hadamard_order(noise.full_cols)
    blocks = rows // n
    x = ((rows % n)[:, None] == torch.arange(n, device=rows.device)).float()
    for stream, block in ((STREAM_D1, blocks), (STREAM_D2, blocks), (STREAM_D3, blocks * 0)):
        x = _signs(seeds, block, noise, stream, n) * hadamard_transform(x)
    return x[:, noise.col : noise.col + cols] / n


def _spans(lines: int, noise: Noise, entries: int) -> Iterator[slice]:
    """All lines, as many at a time as make `entries`."""
    step = max(1, entries // hadamard_order(noise.full_cols))
    return (slice(start, min(start + step, lines)) for start in range(0, lines, step))


def perturbed_long_rows(
    out: Tensor, weight: Tensor | None, members: Members, noise: Noise, ids: Tensor | None
) -> None:
    """`perturbed_rows`, with the same arguments."""
    count, cols, device = len(members.seeds), out.shape[-1], out.device
    rows = out.shape[-2] if ids is None else members.rows
    line = torch.arange(count * rows if ids is None else len(out), device=device)
    owner = line // rows if ids is None else members.owners(line)
    if ids is None:
        ids = torch.arange(rows, device=device)
    row = ids if len(ids) == len(line) else ids[line % rows]
    strengths = members.strengths()
    for span in _spans(len(line), noise, ENTRIES):
        of, at = owner[span], row[span]
        lines = _entries(members.seeds[of], noise.row + at, noise, cols)
        if weight is not None:
            lines = fma32(strengths[of, None], lines, weight[at].float())
        if out.dim() == 3:
            out[of, at] = lines.to(out.dtype)
        else:
            out[span] = lines.to(out.dtype)


def accumulate_long_rows(weight: Tensor, members: Members, noise: Noise) -> None:
    """`accumulate`, with the same arguments."""
    coefficients = members.strengths()
    for span in _spans(len(weight), noise, ENTRIES):
        part = weight[span]
        row = noise.row + torch.arange(span.start, span.stop, device=weight.device)
        total = torch.zeros(part.shape, device=weight.device)
        for n in range(len(members.seeds)):
            eps = _entries(members.seeds[n].expand(len(row)), row, noise, weight.shape[1])
            total = fma32(coefficients[n], eps, total)
        part.copy_(part.float() + total)


class Multiply(Protocol):
    """u = G D z for rows [lines, n] that begin at line `start` of all rows; u may be z.

    D is the diagonal of a stream number and row block for the member that owns a line.
    """

    def __call__(
        self, u: Tensor, z: Tensor, start: int, members: Members, noise: Noise, stream: int, block: int
    ) -> None: ...


def multiply(
    u: Tensor, z: Tensor, start: int, members: Members, noise: Noise, stream: int, block: int
) -> None:
    """`Multiply` in plain PyTorch."""
    lines, n = z.shape
    owner = members.owners(torch.arange(start, start + lines, device=z.device))
    signs = _signs(members.seeds[owner], torch.full_like(owner, block), noise, stream, n)
    u.copy_(hadamard_transform(signs * z))


def long_hadamard_product(
    y: Tensor,
    x: Tensor,
    base: Tensor | None,
    bias: Tensor | None,
    members: Members,
    noise: Noise,
    multiply: Multiply = multiply,
    entries: int = ENTRIES,
) -> None:
    """`hadamard_product` with the same arguments; `multiply` says how, `entries` how many at a time."""
    n, (total, outputs), device = hadamard_order(noise.full_cols), y.shape, y.device
    line = torch.arange(total, device=device)
    of_x = line % members.rows if len(x) != total else line
    owner = members.owners(line)
    strength = members.strengths()[owner, None] / n
    for span in _spans(total, noise, entries):
        z = torch.zeros(span.stop - span.start, n, device=device)
        u = torch.empty_like(z)
        z[:, noise.col : noise.col + x.shape[1]] = x[of_x[span]]
        multiply(z, z, span.start, members, noise, STREAM_D3, 0)
        for block in range(noise.row // n, (noise.row + outputs - 1) // n + 1):
            multiply(u, z, span.start, members, noise, STREAM_D2, block)
            multiply(u, u, span.start, members, noise, STREAM_D1, block)
            begin, end = max(block * n - noise.row, 0), min((block + 1) * n - noise.row, outputs)
            first = begin + noise.row - block * n
            sums = strength[span] * u[:, first : first + end - begin]
            if base is not None:
                sums += base[of_x[span] if len(base) != total else line[span], begin:end]
            if bias is not None:
                sums += bias[owner[span], begin:end] if bias.dim() == 2 else bias[begin:end]
            y[span, begin:end] = sums.to(y.dtype)
