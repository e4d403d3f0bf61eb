"""The noise and the members as the kernels take them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import noise

FAMILIES = {
    "none": noise.NONE,
    "normal": noise.NORMAL,
    "normal4": noise.NORMAL4,
    "rademacher": noise.RADEMACHER,
    "hadamard": noise.HADAMARD,
    "lowrank": noise.LOWRANK,
}
DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


class Noise(NamedTuple):
    """One parameter's noise: all that eps depends on besides the seed."""

    family: str = "none"
    rank: int = 0
    id: int = 0
    row: int = 0  # global position of entry (0, 0)
    col: int = 0
    full_cols: int = 0

    def arguments(self) -> dict[str, Any]:
        """id_low, id_high: counter word c2, and c3 without its stream number, as int32 bit patterns."""
        low, high = self.id & 0xFFFFFFFF, 8 * ((self.id >> 32) & 0x1FFFFFFF)
        return {"id_low": low - (low >> 31 << 32), "id_high": high - (high >> 31 << 32)}


class Members(NamedTuple):
    """Members and their groups of rows: seeds int64 [N], sigmas float32 [N], offsets int64 [N + 1] if any."""

    seeds: Tensor
    sigmas: Tensor
    scale: float  # of the parameter: s_n = sigmas[n] * scale
    offsets: Tensor | None = None
    rows: int = 1  # of each member, where there are no offsets
    total: int = 1  # of all members

    def arguments(self) -> dict[str, Any]:
        """What kernels take to find a row's member and its seed and strength."""
        count = len(self.seeds)
        return {
            "seeds": self.seeds,
            "sigmas": self.sigmas,
            "scale": self.scale,
            "offsets": self.offsets,
            "count": count,
            "rows": self.rows,
            "total": self.total,
            "MEMBERS": 1 if self.offsets is None else triton.next_power_of_2(count),
        }

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
