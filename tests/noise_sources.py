"""Every backend that generates noise here, on every device it can use here, for the tests of the contract."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from thickets.backends import REGISTRY, refusal
from thickets.noise import Stream, entries, family

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
FAMILIES = ["normal", "normal4", "rademacher", "hadamard", "lowrank-1", "lowrank-2", "lowrank-7"]


class Source(NamedTuple):
    """A backend on a device."""

    backend: str
    device: str

    def __str__(self) -> str:
        return f"{self.backend}-{self.device}"

    def noise(self, seeds: list[int] | range, stream: Stream, rows: int, cols: int) -> Tensor:
        """eps of unsigned 64-bit seeds, [N, rows, cols], on the CPU."""
        patterns = bit_patterns(seeds).to(self.device)
        if self.backend == "reference":  # what its op calls for one seed takes them all at once
            return entries(patterns, stream, rows, cols).cpu()
        out = torch.full((len(seeds), rows, cols), torch.nan, device=self.device)
        for plane, seed in zip(out, patterns.split(1), strict=True):
            REGISTRY[self.backend].noise(plane, seed, stream)
        return out.cpu()


def bit_patterns(seeds: list[int] | range) -> Tensor:
    """Unsigned 64-bit seeds as int64 tensor."""
    return torch.tensor([seed - (seed >> 63 << 64) for seed in seeds])


def stream(name: str, noise: str, row: int = 0, col: int = 0, full_cols: int | None = None) -> Stream:
    """A stream with the family given as text."""
    return Stream(name, family(noise), row, col, full_cols)


SOURCES = [
    Source(name, device)
    for name, backend in REGISTRY.items()
    for device in DEVICES
    if refusal(backend, torch.device(device)) is None
]
every_source = pytest.mark.parametrize("source", SOURCES, ids=str)
# GPU kernels on a CPU would take minutes for a thousand seeds; they are held to the definition anyway.
every_compiled_source = pytest.mark.parametrize(
    "source", [s for s in SOURCES if s not in (Source("triton", "cpu"), Source("cuda", "cpu"))], ids=str
)
every_family = pytest.mark.parametrize("noise", FAMILIES)
