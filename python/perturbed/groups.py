"""Groups of rows: whose each row of the folded batch is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor


class FoldError(RuntimeError):
    """An input that a layer cannot split among the members: its rows are not those of the folded batch."""


class Groups:
    """The rows of N members' activations.

    Folded activations are [R, ...], those of member 0 first, or [1, ...] where all rows are equal so far.
    Members have B rows each, R = N * B, or `counts` where they have different ones: then products take row
    offsets, and vectors are gathered by the row's owner.
    """

    count: int  # N
    device: torch.device
    rows: int  # R
    counts: tuple[int, ...] | None  # of rows, None where all members have as many

    def regroup(self, counts: Sequence[int]) -> None:
        """Give member n counts[n] >= 0 rows from now on, [R, ...] in all; equal counts cost nothing."""
        self.rows, self.counts = sum(counts), None
        if len(set(counts)) > 1:
            self.counts = tuple(counts)
            device, ends = self.device, list(accumulate(counts, initial=0))
            owners = [n for n, rows in enumerate(counts) for _ in range(rows)]
            self._offsets = torch.tensor(ends, dtype=torch.int64, device=device)  # [N + 1]
            self._owners = torch.tensor(owners, dtype=torch.int64, device=device)  # [R]

    @property
    def batch(self) -> int:
        """B, the rows of one member, where all have as many."""
        return self.rows // self.count

    def row_counts(self) -> list[int]:
        """How many rows each member has."""
        return [self.batch] * self.count if self.counts is None else list(self.counts)

    def owners(self) -> Tensor:
        """Whose each row is: int64 [R]."""
        if self.counts is not None:
            return self._owners
        return torch.arange(self.count, device=self.device).repeat_interleave(self.batch)

    def check_rows(self, x: Tensor, features: int) -> None:
        """FoldError unless x is [R, ...] or [1, ..., features]."""
        if x.dim() <= features:
            raise FoldError(f"its input {tuple(x.shape)} has no batch dimension")
        if not self.count:
            raise RuntimeError("the members must be given: use it inside of members()")
        shared = x.shape[0] == 1 and x.dim() > 1  # [1] may be a single position
        if x.shape[0] != self.rows and not shared:
            expected = f"N * B = {self.count} * {self.batch}" if self.counts is None else f"{self.rows} rows"
            raise FoldError(
                f"its input {tuple(x.shape)} does not have the leading size {expected} of the batch "
                "(positions, for one, need a leading dimension of 1)"
            )

    def group(self, x: Tensor, features: int) -> tuple[Tensor, Tensor | None]:
        """[R, ..., f] -> [N, M, f], or [T, f] with offsets; [1, ..., f], shared by all members, -> [M, f]."""
        self.check_rows(x, features)
        lead, inner = x.shape[: x.dim() - features], x.shape[x.dim() - features :]
        if lead[0] != self.rows:
            return x.reshape(math.prod(lead), *inner), None
        if self.counts is None:
            return x.reshape(self.count, math.prod(lead) // self.count, *inner), None
        each = math.prod(lead[1:])  # positions in a row
        return x.reshape(self.rows * each, *inner), self._offsets if each == 1 else self._offsets * each

    def ungroup(self, y: Tensor, lead: torch.Size) -> Tensor:
        """What an op made of `group`'s -> [R, ..., f], `lead` being the input's, [R, ...] or [1, ...]."""
        if lead[0] == self.rows:
            return y.reshape(*lead, y.shape[-1])
        return self.spread(y.reshape(self.count, 1, *lead[1:], y.shape[-1]))

    def spread(self, y: Tensor) -> Tensor:
        """One row for each member, [N, 1, ...], or for all, [1, 1, ...] -> [R, ...]."""
        if self.counts is None:
            return y.expand(self.count, self.batch, *y.shape[2:]).flatten(0, 1)
        return y.expand(self.count, *y.shape[1:])[self._owners, 0]

    def split(self, x: Tensor, dim: int = 0) -> Sequence[Tensor]:
        """The members' parts of a tensor with R rows, or with a multiple of them, along a dimension."""
        if self.counts is None:
            return x.tensor_split(self.count, dim)
        each = x.shape[dim] // self.rows if self.rows else 0
        return x.split([rows * each for rows in self.counts], dim)
