"""The native kernels by instruction set, and the definitions that their bits are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from thickets.backends.cpu import backend
from thickets.noise import Stream, family, fma32

ISAS = ("portable", "avx2", "avx512")
DENSE = ("normal", "normal4", "rademacher")
STRUCTURED = ("hadamard", "lowrank-1", "lowrank-7")
STORAGE = (torch.float32, torch.bfloat16, torch.float16)


def _parameter(isa: str) -> object:
    record = backend(isa, isa)
    reason = record.why_not()
    return pytest.param(record, id=isa, marks=pytest.mark.skipif(reason is not None, reason=str(reason)))


every_isa = pytest.mark.parametrize("native", [_parameter(isa) for isa in ISAS])
every_family = pytest.mark.parametrize("noise", [*DENSE, *STRUCTURED])
every_dense_family = pytest.mark.parametrize("noise", DENSE)
every_structured_family = pytest.mark.parametrize("noise", STRUCTURED)
every_precision = pytest.mark.parametrize("precision", ["exact", "storage"])


def dtype_name(dtype: torch.dtype) -> str:
    """The dtype's name, as id of a test."""
    return str(dtype).removeprefix("torch.")


every_dtype = pytest.mark.parametrize("dtype", STORAGE, ids=dtype_name)


def stream(
    noise: str, row: int = 0, col: int = 0, full_cols: int | None = None, scale: float = 1.0, name: str = "w"
) -> Stream:
    """A stream with the family given as text."""
    return Stream(name, family(noise), row, col, full_cols, scale)


def members(count: int, first: int = -2) -> tuple[Tensor, Tensor]:
    """Seeds on both sides of zero (bit patterns) and sigmas of both signs, int64 and float32 [N]."""
    index = torch.arange(count)
    return index * 0x0123456789ABCDEF + first, (0.05 + 0.01 * index) * (1 - 2 * (index % 2))


def normals(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Ordinary random numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def chain(x: Tensor, weight: Tensor, bias: Tensor | None = None, start: Tensor | None = None) -> Tensor:
    """What the kernels promise of x W^T + bias: fma over ascending columns, then the bias, float32 [M, O].

    x: [M, K]; weight: float32 [O, K]; bias: float32 [O]; start: float32 [M, O], zero by default.
    """
    total = torch.zeros(len(x), len(weight)) if start is None else start
    for k in range(x.shape[-1]):
        total = fma32(x[:, k, None].float(), weight[:, k], total)
    return total if bias is None else total + bias


def assert_same_bits(actual: Tensor, expected: Tensor, what: str = "result") -> None:
    """Equal shape, dtype and bits (NaN equals NaN); else name the first place that differs."""
    assert actual.dtype == expected.dtype, f"{what}: {actual.dtype}, expected {expected.dtype}"
    assert actual.shape == expected.shape, f"{what}: {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    integer = torch.int32 if actual.dtype == torch.float32 else torch.int16
    same = actual.contiguous().view(integer) == expected.contiguous().view(integer)
    bad = ~(same | (actual.isnan() & expected.isnan()))
    if bad.any():
        first = tuple(bad.nonzero()[0].tolist())
        raise AssertionError(
            f"{what} {tuple(actual.shape)} {actual.dtype}: {int(bad.sum())} of {bad.numel()} differ, "
            f"first at {first}: got {actual[first].item()!r}, expected {expected[first].item()!r}"
        )


def ragged(sizes: Sequence[int]) -> Tensor:
    """Offsets [N + 1] of groups of these sizes."""
    return torch.tensor([0, *sizes]).cumsum(0)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with that many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
