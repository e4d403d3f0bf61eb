"""The emulated CUDA kernels' products in float32 and by low-rank noise: bits, tiles, addresses, groups."""

from __future__ import annotations

from itertools import pairwise

import emulated
import oracle
import pytest
import torch
from torch import Tensor

from thickets.backends import cpu
from thickets.backends.cuda import Kernels
from thickets.noise import Stream, entries, family, fma32
from thickets.operands import Members, Noise

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(emulated.why_not() is not None, reason=str(emulated.why_not())),
    pytest.mark.skipif(cpu.WHY_NOT is not None, reason=str(cpu.WHY_NOT)),
]

SEEDS = torch.tensor([7, -1, 0x123456789ABCDEF0])
SIGMAS = torch.tensor([0.3, -0.1, 0.05])
SCALE = 0.7
RAGGED = torch.tensor([0, 9, 9, 51])
OFFSETS = {"equal": None, "shared": None, "ragged": RAGGED}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

every_group = pytest.mark.parametrize("groups", OFFSETS)
every_rank = pytest.mark.parametrize("rank", [1, 2, 3, 4, 5, 9])
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels(emulated.module())


def randn(*shape: int, dtype: torch.dtype = torch.float32, pad: int = 0) -> Tensor:
    """Rows that lie `pad` columns of NaN apart, the first one `pad` elements into memory."""
    whole = torch.full([*shape[:-1], pad + shape[-1]], torch.nan, dtype=dtype)
    view = whole[..., pad:]
    return view.copy_(torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))))


def members(groups: str, rows: int) -> Members:
    offsets = OFFSETS[groups]
    total = len(SEEDS) * rows if offsets is None else int(offsets[-1])
    return Members(SEEDS, SIGMAS, SCALE, offsets, rows, total)


def member_rows(x: Tensor, of: Members, shared: bool) -> Tensor:
    """x as the ops of a backend take it: [N, M, K], [M, K] shared, or [T, K] with offsets."""
    return x if shared or of.offsets is not None else x.view(len(SEEDS), of.rows, -1)


@every_group
@every_dtype
@pytest.mark.parametrize("rows", [3, 40])
@pytest.mark.parametrize("noise", ["normal4", "rademacher"])
@pytest.mark.parametrize(("outputs", "inputs", "column"), [(130, 160, 0), (257, 131, 97), (3, 31, 1)])
def test_float32_products_have_the_cpu_backends_bits(
    kernels: Kernels,
    noise: str,
    outputs: int,
    inputs: int,
    column: int,
    rows: int,
    dtype: torch.dtype,
    groups: str,
) -> None:
    """Whatever the tiles: each output is one chain of fma over ascending columns."""
    of, shared = members(groups, rows), groups == "shared"
    stream = Stream("w", family(noise), 5, column, column + inputs + 3, SCALE)
    x = randn(rows if shared else of.total, inputs)
    w, bias = randn(outputs, inputs, dtype=dtype), randn(outputs)
    for precision in ("exact", "storage"):
        y = torch.full((of.total, outputs), torch.nan)
        kernels.dense_product(y, x, w, None, bias, of, Noise.of(stream, inputs), precision == "storage")
        expected = cpu.linear("portable", member_rows(x, of, shared), w, bias, SEEDS, SIGMAS, of.offsets,
                              stream, None, precision)  # fmt: skip
        assert torch.equal(y, expected.reshape(y.shape))


@every_group
@pytest.mark.parametrize("pad", [0, 1, 4])
def test_plain_float32_products_of_members_have_the_cpu_backends_bits(
    kernels: Kernels, groups: str, pad: int
) -> None:
    of, shared = members(groups, 17), groups == "shared"
    x, w = randn(17 if shared else of.total, 36, pad=pad), randn(len(SEEDS), 129, 36, pad=pad)
    y, bias = randn(of.total, 129, pad=pad), randn(len(SEEDS), 129, pad=pad)
    kernels.dense_product(y, x, w, None, bias, of, Noise())
    expected = cpu.grouped_linear("portable", member_rows(x.contiguous(), of, shared), w.contiguous(),
                                  bias.contiguous(), of.offsets)  # fmt: skip
    assert torch.equal(y, expected.reshape(y.shape))


@every_group
@every_rank
@pytest.mark.parametrize("pad", [0, 1, 4])
def test_lowrank_products_of_several_spans_and_tiles(
    kernels: Kernels, rank: int, pad: int, groups: str
) -> None:
    """1030 inputs are two spans of sums, 518 outputs two tiles, 70 rows more than one; y is base in place."""
    of, shared = members(groups, 70), groups == "shared"
    stream = Stream("w", family(f"lowrank-{rank}"), 5, 9, 2048, SCALE)
    x, y = randn(70 if shared else of.total, 1030, pad=pad), randn(of.total, 518, pad=pad)
    bias = randn(len(SEEDS), 518, pad=pad)
    whole = y.clone() if of.offsets is not None else y.reshape(len(SEEDS), 70, 518)
    value, magnitude, noise = oracle.oracle_noise_linear(
        whole, member_rows(x.contiguous(), of, shared), SEEDS, SIGMAS, of.offsets, stream
    )
    added = bias[of.owners(torch.arange(of.total))].double()
    expected = oracle.Expected(value.view(y.shape) + added, magnitude.view(y.shape) + added.abs(), noise)
    kernels.lowrank_product(y, x, y, bias, of, Noise.of(stream, 1030))
    oracle.assert_close(y, expected, f"rank {rank}")


@every_rank
@every_dtype
@pytest.mark.parametrize("cols", [3, 516, 700])
def test_lines_of_lowrank_noise_are_exact(kernels: Kernels, rank: int, cols: int, dtype: torch.dtype) -> None:
    """All rows of eps and of W', looked-up rows of ragged groups, and a sum over members."""
    stream = Stream("w", family(f"lowrank-{rank}"), 2**20, 131, 1024, SCALE)
    noise, eps = Noise.of(stream, cols), entries(SEEDS, stream, 70, cols)
    everyone = Members(SEEDS, SIGMAS, SCALE)
    out = torch.full((len(SEEDS), 70, cols), torch.nan)
    kernels.perturbed_rows(out, None, everyone, noise)
    assert torch.equal(out, eps)

    w = randn(70, cols, dtype=dtype, pad=4)
    wide = w.float().expand_as(eps)
    perturbed = fma32((SIGMAS * SCALE)[:, None, None].expand_as(eps), eps, wide).to(dtype)
    of = members("ragged", 1)
    ids = torch.arange(of.total) * 29 % 70
    lines = torch.full((of.total, cols), torch.nan, dtype=dtype)
    kernels.perturbed_rows(lines, w, of, noise, ids)
    for member, (begin, end) in enumerate(pairwise(RAGGED.tolist())):
        assert torch.equal(lines[begin:end], perturbed[member, ids[begin:end]])

    expected = oracle.oracle_accumulate(w, SEEDS, SIGMAS, stream)
    kernels.accumulate(w, everyone, noise)
    assert torch.equal(w, expected)
    kernels.perturbed_rows(w[None], w, Members(SEEDS[:1], SIGMAS[:1], SCALE), noise)
    assert torch.equal(w, oracle.oracle_perturb(expected, SEEDS[:1], SIGMAS[:1], stream))
