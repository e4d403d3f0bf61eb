"""Products with hadamard and low-rank noise from the Triton kernels: shapes the common tests do not reach."""

from __future__ import annotations

from collections.abc import Callable

import oracle
import pytest
import torch
from torch import Tensor
from triton_place import DEVICE

from thickets.noise import Stream, family
from thickets.operands import Members, Noise
from thickets.triton_kernels import hadamard, long_products
from thickets.triton_kernels.hadamard import hadamard_product
from thickets.triton_kernels.lowrank import lowrank_product

SEEDS = [7, -1, 7, 0x123456789ABCDEF0, -(2**63)]  # one twice, mirrored
SIGMAS = [0.3, -0.1, -0.3, 0.0, 1.5]
SCALE = 0.7
PRODUCTS: dict[str, Callable[..., None]] = {"hadamard": hadamard_product, "lowrank": lowrank_product}
NOISES = ["hadamard", "lowrank-3"]

pytestmark = pytest.mark.usefixtures("one_thread")


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE, dtype)


def check(
    noise: str,
    form: str,
    outputs: int,
    inputs: int,
    place: tuple[int, int, int] = (0, 0, 0),
    dtype: torch.dtype = torch.float32,
    bias: str = "none",
    offsets: tuple[int, ...] = (0, 3, 3, 4, 9),
    count: int = 3,
    rows: int = 3,
) -> None:
    """Compare with the float64 oracle; `place` is the slice's first row and column and the columns after it.

    Operands are strided, the result lies in a tensor full of NaN, and nothing around it may be written.
    """
    kind = family(noise)
    row, col, rest = place
    stream = Stream("w", kind, row, col, col + inputs + rest, SCALE)
    count = len(offsets) - 1 if form == "ragged" else count
    seeds, sigmas = (torch.tensor(values[:count], device=DEVICE) for values in (SEEDS, SIGMAS))
    ends = torch.tensor(offsets, device=DEVICE) if form == "ragged" else None
    total = offsets[-1] if form == "ragged" else count * rows
    lines = rows if form == "shared" else total
    x = randn(lines, inputs + 5, dtype=dtype)[:, 2:-3]
    base = randn(lines, outputs + 2)[:, 1:-1]
    b = {"none": None, "one": randn(outputs), "each": randn(count, outputs, dtype=dtype)}[bias]
    whole = torch.full((total + 2, outputs + 5), torch.nan, dtype=dtype, device=DEVICE)
    y = whole[1:-1, 2:-3]
    PRODUCTS[kind.kind](
        y,
        x,
        base,
        b,
        Members(seeds, sigmas, SCALE, ends, total if form == "ragged" else rows, total),
        Noise(kind.kind, kind.rank, stream.id, row, col, stream.full_cols or 0),
    )
    groups = (lambda t: t) if form != "members" else (lambda t: t.view(count, rows, -1))
    start = base.expand(count, -1, -1) if form == "shared" else groups(base.contiguous())
    expected = oracle.oracle_noise_linear(start, groups(x.contiguous()), seeds, sigmas, ends, stream)
    if b is not None:
        added = b.double().expand(count, -1)
        added = added.repeat_interleave(ends.diff(), dim=0) if ends is not None else added[:, None]
        expected = oracle.Expected(expected.value + added, expected.magnitude + added.abs())
    oracle.assert_close(y.reshape(expected.value.shape), expected, f"{noise} {form}")
    assert int(whole.isnan().sum()) == whole.numel() - y.numel()


# Rows, columns and the place of the slice: within a row block, across several, and of columns in the middle.
SHAPES = [
    (5, 3, (0, 0, 0)),
    (130, 100, (0, 0, 0)),
    (300, 70, (100, 0, 0)),
    (257, 129, (2**32 - 257, 0, 0)),
    (40, 33, (130, 77, 200)),
    (7, 1000, (5, 1, 0)),
]


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("form", ["members", "shared", "ragged"])
@pytest.mark.parametrize(("outputs", "inputs", "place"), SHAPES, ids=str)
def test_against_the_oracle(
    noise: str, form: str, outputs: int, inputs: int, place: tuple[int, int, int]
) -> None:
    check(noise, form, outputs, inputs, place)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("form", ["members", "shared", "ragged"])
@pytest.mark.parametrize(("dtype", "bias"), [(torch.bfloat16, "each"), (torch.float16, "one")], ids=str)
def test_dtypes_and_biases(noise: str, bias: str, form: str, dtype: torch.dtype) -> None:
    check(noise, form, 33, 150, dtype=dtype, bias=bias)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("offsets", [(0, 20), (0, 0, 1), (0, 17, 17, 34, 34)], ids=str)
def test_groups_of_many_rows_and_of_none(noise: str, offsets: tuple[int, ...]) -> None:
    check(noise, "ragged", 20, 130, offsets=offsets)


@pytest.mark.parametrize("noise", NOISES)
def test_groups_beyond_one_tile(noise: str) -> None:
    check(noise, "members", 20, 130, rows=37, count=2)


@pytest.mark.parametrize("rank", [1, 4, 6])
def test_ranks_and_spans_of_columns(rank: int) -> None:
    check(f"lowrank-{rank}", "members", 9, 1100, rows=2, count=1)


@pytest.mark.parametrize("inputs", [2048, 4097, 20000])
def test_hadamard_of_many_columns(inputs: int) -> None:
    check("hadamard", "members", 3, inputs, (5, 0, 0), rows=1, count=2)


@pytest.mark.parametrize("rows", [1, 3])
def test_few_rows_share_out_the_row_blocks(rows: int) -> None:
    check("hadamard", "members", 300, 100, (100, 0, 0), rows=rows, count=1)


@pytest.mark.parametrize("form", ["members", "shared", "ragged"])
def test_hadamard_through_memory(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows too long for one program, a few lines at a time."""
    monkeypatch.setattr(hadamard, "longest", lambda device: 4096)
    monkeypatch.setattr(long_products, "ELEMENTS", 3 << 13)
    check("hadamard", form, 5, 5000, (8190, 7, 0), count=2, rows=2, bias="each", offsets=(0, 0, 3, 4))


@pytest.mark.parametrize("noise", NOISES)
def test_in_place(noise: str) -> None:
    kind = family(noise)
    stream = Stream("w", kind, full_cols=130, scale=SCALE)
    seeds, sigmas = torch.tensor(SEEDS[:2], device=DEVICE), torch.tensor(SIGMAS[:2], device=DEVICE)
    x, y = randn(8, 130), randn(8, 40)
    expected = oracle.oracle_noise_linear(
        y.view(2, 4, 40).clone(), x.view(2, 4, 130), seeds, sigmas, None, stream
    )
    noise_of = Noise(kind.kind, kind.rank, stream.id, 0, 0, 130)
    PRODUCTS[kind.kind](y, x, y, None, Members(seeds, sigmas, SCALE, None, 4, 8), noise_of)
    oracle.assert_close(y.view(2, 4, 40), expected, noise)
