"""What the Triton device functions promise beyond the bits that test_noise.py holds every backend to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from triton_place import DEVICE

pytest.importorskip("triton")

import triton
import triton.language as tl

from thickets.noise import MAGNITUDES
from thickets.triton_kernels.noise import NORMAL4_PTX, root

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


def evaluated(ptx: str, word: int) -> list[int]:
    """The 16-bit patterns that the PTX of normal4 makes of a word, by the PTX ISA's word on instructions."""
    registers: dict[str, int] = {"$8": word}
    out = [0] * 8

    def value(operand: str) -> int:
        return registers[operand] if operand in registers else int(operand, 0)

    def permuted(a: int, b: int, picks: int) -> int:
        source = (a | b << 32).to_bytes(8, "little")
        nibbles = [picks >> 4 * i & 15 for i in range(4)]
        assert max(nibbles) < 8, "the sign mode of prmt is not meant"
        return int.from_bytes(bytes(source[nibble] for nibble in nibbles), "little")

    operations = {
        "and.b32": lambda a, b: a & b,
        "or.b32": lambda a, b: a | b,
        "shl.b32": lambda a, b: a << b & 0xFFFFFFFF,
        "shr.u32": lambda a, b: a >> b,
        "prmt.b32": permuted,
    }
    for line in ptx.strip("{}\n").splitlines():
        name, _, rest = line.rstrip(";").partition(" ")
        if name == ".reg":
            continue
        if name == "mov.b32":  # {$i, $j}, pair
            low, high, pair = (part.strip(" {}") for part in rest.split(","))
            out[int(low[1:])], out[int(high[1:])] = value(pair) & 0xFFFF, value(pair) >> 16
            continue
        to, *operands = (part.strip() for part in rest.split(","))
        registers[to] = operations[name](*map(value, operands))
    return out


def test_the_bytes_of_normal4_are_those_of_the_contract() -> None:
    """The interpreter cannot run assembly, so its text is evaluated here against section 3."""
    words = [0, 0xFFFFFFFF, *torch.randint(0, 1 << 32, (500,)).tolist()]
    for word in words:
        entries = []
        for i in range(8):
            sign = word >> (8 * i + 7 if i < 4 else 8 * (i - 4) + 3) & 1
            entries.append(-MAGNITUDES[word >> 4 * i & 7] if sign else MAGNITUDES[word >> 4 * i & 7])
        patterns = torch.tensor(evaluated(NORMAL4_PTX.value, word), dtype=torch.int32).to(torch.uint16)
        assert patterns.view(torch.bfloat16).tolist() == entries
