"""What the kernels of a GPU take: one parameter's noise, and the members with their groups of rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .noise import Stream

SIXTEEN_BITS = (torch.bfloat16, torch.float16)


class Noise(NamedTuple):
    """One parameter's noise: all that eps depends on besides the seed."""

    family: str = "none"
    rank: int = 0
    id: int = 0
    row: int = 0  # global position of entry (0, 0)
    col: int = 0
    full_cols: int = 0

    @classmethod
    def of(cls, stream: Stream, cols: int) -> Noise:
        """The noise of a slice of `cols` columns that begins at the stream's origin."""
        full_cols = stream.col + cols if stream.full_cols is None else stream.full_cols
        family = stream.family
        return cls(family.kind, family.rank, stream.id, stream.row, stream.col, full_cols)

    def below(self, rows: int) -> Noise:
        """The noise of the slice that begins `rows` rows further down."""
        return self._replace(row=self.row + rows)


class Members(NamedTuple):
    """Members and their groups of rows: seeds int64 [N], sigmas float32 [N], offsets int64 [N + 1] if any."""

    seeds: Tensor
    sigmas: Tensor
    scale: float  # of the parameter: s_n = sigmas[n] * scale
    offsets: Tensor | None = None
    rows: int = 1  # of each member, where there are no offsets
    total: int = 1  # of all members

    def strengths(self) -> Tensor:
        """s_n, float32 [N]."""
        return self.sigmas * self.scale

    def owners(self, lines: Tensor) -> Tensor:
        """The member of each of the rows int64 [L]; one of them for any offsets."""
        if self.offsets is None:
            return lines // self.rows
        return torch.bucketize(lines, self.offsets[1:], right=True).clamp(max=len(self.seeds) - 1)

    def chunks(self, size: int) -> Iterator[tuple[Members, slice]]:
        """The members `size` at a time, at least one, each with its place among all of them."""
        count, size = len(self.seeds), max(1, size)
        for start in range(0, count, size):
            span = slice(start, min(start + size, count))
            offsets = None if self.offsets is None else self.offsets[span.start : span.stop + 1]
            total = self.total if offsets is not None else self.rows * (span.stop - span.start)
            yield (
                self._replace(seeds=self.seeds[span], sigmas=self.sigmas[span], offsets=offsets, total=total),
                span,
            )


def multiplied_in(x: Tensor, w: Tensor | None) -> torch.dtype:
    """The dtype of both factors of a product: that of x and W if they share one of 16 bits, else float32."""
    same = x.dtype in SIXTEEN_BITS and (w is None or w.dtype == x.dtype)
    return x.dtype if same else torch.float32
