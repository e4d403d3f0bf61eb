"""What the Triton device functions promise beyond the bits that test_noise.py holds every backend to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import triton
import triton.language as tl
from triton import knobs

from thickets.triton_kernels.noise import root

DEVICE = "cpu" if knobs.runtime.interpret else "cuda"
SIZE = 1 << 14


@triton.jit
def root_kernel(out, x, inverse, SIZE: tl.constexpr):
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(out + i, root(tl.load(x + i), tl.load(inverse + i)))


@pytest.fixture(scope="module")
def squares() -> Tensor:
    """float32 [2 SIZE]: those whose roots lie nearest to the middle of two float32, and random ones."""
    middles = (2 * np.arange(1 << 23, 1 << 24, dtype=np.int64) + 1) ** 2
    distance = np.abs(middles.astype(np.float32).astype(np.int64) - middles)
    hard = torch.from_numpy(middles[np.argpartition(distance, SIZE)[:SIZE]]).float()
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randint(-12, 4, (SIZE,), generator=generator)
    easy = torch.rand(SIZE, generator=generator) * 4.0**exponents
    easy[:2] = torch.tensor([0.0, -0.0])
    return torch.cat([hard, easy])


@pytest.mark.parametrize("units", range(-5, 6))
def test_the_root_is_right_for_any_approximate_reciprocal_root(squares: Tensor, units: int) -> None:
    inverse = squares.double().rsqrt().float()
    for _ in range(abs(units)):
        inverse = torch.nextafter(inverse, torch.full_like(inverse, np.copysign(np.inf, units)))
    out = torch.full_like(squares, torch.nan, device=DEVICE)
    with np.errstate(invalid="ignore"):  # 0 times infinity, which is not used
        root_kernel[(2,)](out, squares.to(DEVICE), inverse.to(DEVICE), SIZE)
    expected = squares.double().sqrt().float()
    assert torch.equal(out.cpu(), expected)
    assert torch.equal(out.cpu().signbit(), expected.signbit())
