"""Rows of hadamard noise too long for one program, in plain PyTorch: exact on any device, and slow."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from thickets.noise import fma32, hadamard_order, hadamard_transform, philox4x32_10

from .launch import Members, Noise
from .noise import STREAM_D1, STREAM_D2, STREAM_D3

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
        x = _signs(seeds, block, noise, stream.value, n) * hadamard_transform(x)
    return x[:, noise.col : noise.col + cols] / n


def _spans(lines: int, noise: Noise) -> Iterator[slice]:
    """All lines, a few at a time."""
    step = max(1, ENTRIES // hadamard_order(noise.full_cols))
    return (slice(start, min(start + step, lines)) for start in range(0, lines, step))


def perturbed_long_rows(
    out: Tensor, weight: Tensor | None, members: Members, noise: Noise, ids: Tensor | None
) -> None:
    """`perturbed_rows`, with the same arguments."""
    count, cols, device = len(members.seeds), out.shape[-1], out.device
    rows = out.shape[-2] if ids is None else members.rows
    line = torch.arange(count * rows if ids is None else len(out), device=device)
    if ids is None or members.offsets is None:
        owner = line // rows
    else:
        owner = torch.bucketize(line, members.offsets[1:], right=True).clamp(max=count - 1)
    if ids is None:
        ids = torch.arange(rows, device=device)
    row = ids if len(ids) == len(line) else ids[line % rows]
    strengths = members.sigmas * members.scale
    for span in _spans(len(line), noise):
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
    coefficients = members.sigmas * members.scale
    for span in _spans(len(weight), noise):
        part = weight[span]
        row = noise.row + torch.arange(span.start, span.stop, device=weight.device)
        total = torch.zeros(part.shape, device=weight.device)
        for n in range(len(members.seeds)):
            eps = _entries(members.seeds[n].expand(len(row)), row, noise, weight.shape[1])
            total = fma32(coefficients[n], eps, total)
        part.copy_(part.float() + total)
