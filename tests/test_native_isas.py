"""Every instruction set of thickets._C against the reference: bits where the contract promises them."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from native_cases import (
    STORAGE,
    assert_same_bits,
    chain,
    dtype_name,
    every_dense_family,
    every_dtype,
    every_family,
    every_isa,
    every_precision,
    every_structured_family,
    members,
    normals,
    ragged,
    stream,
)
from oracle import assert_close, member_weights, oracle_linear, oracle_noise_linear, oracle_vector
from torch import Tensor

from thickets.backends import Backend
from thickets.backends.cpu import backend
from thickets.backends.reference import BACKEND as REFERENCE
from thickets.noise import entries

PORTABLE = backend("portable")
OBJECTS = Path(__file__).parents[1] / "build"
pytestmark = pytest.mark.usefixtures("one_thread", "poisoned_empty")


class Slice(NamedTuple):
    """A part of a parameter."""

    rows: int
    cols: int
    row: int = 0
    col: int = 0
    full_cols: int | None = None

    def __str__(self) -> str:
        return f"{self.rows}x{self.cols}@{self.row},{self.col}"


SLICES = (Slice(1, 1), Slice(17, 63), Slice(33, 140, 300, 126, 300), Slice(3, 515, 1021, 1, 520))
LAST = Slice(3, 70, (1 << 32) - 3, (1 << 32) - 70)  # of all that the contract can address
SEEDS = torch.tensor([0, -1, 0x123456789ABCDEF0])


@cache
def expected_noise(noise: str, part: Slice) -> Tensor:
    return entries(SEEDS, stream(noise, *part[2:]), part.rows, part.cols)


@every_isa
@every_family
def test_noise(native: Backend, noise: str) -> None:
    for part in SLICES if noise == "hadamard" else (*SLICES, LAST):
        for seed, expected in zip(SEEDS.split(1), expected_noise(noise, part), strict=True):
            out = torch.full((part.rows, part.cols + 3), torch.nan)[:, :-3]
            native.noise(out, seed, stream(noise, *part[2:]))
            assert_same_bits(out, expected, f"noise {noise} {part}")


@every_isa
@every_family
@every_dtype
def test_perturb_(native: Backend, noise: str, dtype: torch.dtype) -> None:
    """Into every dtype and over the weight itself, out of and into columns of wider matrices."""
    seeds, sigmas = members(1)
    where = stream(noise, 5, 2, 200, scale=0.7)
    for rows, cols in ((1, 1), (19, 47)):
        weight = normals(rows, cols + 2, dtype=dtype)[:, 1:-1]
        for out_dtype in STORAGE:
            expected, wide = (
                torch.empty(rows, cols, dtype=out_dtype),
                torch.ones(rows, cols + 4).to(out_dtype),
            )
            REFERENCE.perturb_(expected, weight, seeds, sigmas, where)
            native.perturb_(wide[:, 3:-1], weight, seeds, sigmas, where)
            assert_same_bits(wide[:, 3:-1], expected)
            assert (wide[:, :3] == 1).all()
            assert (wide[:, -1] == 1).all()
            if out_dtype == dtype:
                native.perturb_(weight, weight, seeds, sigmas, where)
                assert_same_bits(weight, expected, "in place")


@every_isa
@every_family
@every_dtype
def test_embedding(native: Backend, noise: str, dtype: torch.dtype) -> None:
    """Repeated ids, rows that are not whole packs of lanes, and all three forms of groups."""
    seeds, sigmas = members(4)
    where = stream(noise, 130, 3, 64)
    weight = normals(21, 37, dtype=dtype)
    ids = torch.tensor([[20, 0, 3, 3, 7], [1, 1, 1, 1, 1], [5, 9, 20, 19, 18], [0, 2, 4, 6, 8]])
    weights, each = member_weights(weight, seeds, sigmas, where, "exact").to(dtype), torch.arange(4)[:, None]
    some, owners = ids.flatten()[:9], torch.tensor([0, 0, 2, 2, 2, 2, 2, 2, 3])
    for rows, offsets, owner in (
        (ids, None, each),
        (ids[0], None, each),
        (some, ragged([2, 0, 6, 1]), owners),
    ):
        actual = native.embedding(rows, weight, seeds, sigmas, offsets, where, "exact")
        assert_same_bits(actual, weights[owner, rows])


@every_isa
@every_dense_family
@every_dtype
@every_precision
def test_vector(native: Backend, noise: str, dtype: torch.dtype, precision: str) -> None:
    seeds, sigmas = members(19)
    for size, col in ((1, 0), (131, 126)):
        weight, where = normals(size, dtype=dtype), stream(noise, 0, col)
        actual = native.vector(weight, seeds, sigmas, where, precision)
        assert_same_bits(actual, oracle_vector(weight, seeds, sigmas, where, precision))


@every_isa
@every_family
@every_dtype
def test_accumulate_(native: Backend, noise: str, dtype: torch.dtype) -> None:
    """Several tiles of rows and columns, columns of a wider matrix, coefficients of both signs."""
    where = stream(noise, 120, 7, 300, scale=1.7)
    for count, rows, cols in ((1, 1, 1), (3, 18, 150)):
        seeds, coefficients = members(count)
        wide = normals(rows, cols + 2, dtype=dtype)
        actual, expected = wide.clone(), wide.clone()
        native.accumulate_(actual[:, 1:-1], seeds, coefficients, where)
        REFERENCE.accumulate_(expected[:, 1:-1], seeds, coefficients, where)
        assert_same_bits(actual, expected)


@every_isa
@every_dense_family
@every_dtype
@every_precision
def test_dense_linear(native: Backend, noise: str, dtype: torch.dtype, precision: str) -> None:
    """One chain of fused multiply-adds over ascending columns of W', then the bias, to the bit."""
    seeds, sigmas = members(3)
    corner = Slice(5, 6, (1 << 32) - 5, (1 << 32) - 6)
    for rows, part in ((1, Slice(1, 1)), (7, Slice(83, 37, 9, 101)), (2, corner)):
        outputs, inputs = part[:2]
        where = stream(noise, *part[2:], scale=1.3)
        x, weight = normals(3, rows, inputs, dtype=dtype), normals(outputs, inputs, dtype=dtype, seed=1)
        bias = normals(outputs, dtype=dtype, seed=2)
        weights = member_weights(weight, seeds, sigmas, where, precision)
        expected = torch.stack([chain(a, w, bias.float()) for a, w in zip(x, weights, strict=True)])
        actual = native.linear(x, weight, bias, seeds, sigmas, None, where, None, precision)
        assert_same_bits(actual, expected.to(dtype))


@every_isa
@every_dense_family
def test_dense_noise_linear(native: Backend, noise: str) -> None:
    """The same chain on s eps, begun at y."""
    seeds, sigmas = members(3)
    where = stream(noise, 3, 120)
    x, y = normals(3, 5, 21), normals(3, 5, 35, seed=1)
    weights = member_weights(torch.zeros(35, 21), seeds, sigmas, where, "exact")
    expected = torch.stack([chain(*case) for case in zip(x, weights, [None] * 3, y, strict=True)])
    native.noise_linear_(y, x, seeds, sigmas, None, where)
    assert_same_bits(y, expected)


@every_isa
@every_structured_family
@every_dtype
@every_precision
def test_structured_linear(native: Backend, noise: str, dtype: torch.dtype, precision: str) -> None:
    """The bits of the portable kernels, which lie within tolerance of the oracle."""
    seeds, sigmas = members(4)
    where, bias_where = stream(noise, 100, 3, 150), stream("normal", 0, 100, name="b")
    weight, bias = normals(81, 45, dtype=dtype), normals(81, dtype=dtype, seed=1)
    for x, offsets in (
        (normals(4, 3, 45, dtype=dtype), None),
        (normals(9, 45, dtype=dtype), ragged([5, 0, 3, 1])),
    ):
        for stream_of_bias in (None, bias_where):
            case = (x, weight, bias, seeds, sigmas, offsets, where, stream_of_bias, precision)
            actual = native.linear(*case)
            if native.name == "portable":
                assert_close(actual, oracle_linear(*case))
            else:
                assert_same_bits(actual, PORTABLE.linear(*case))


@every_isa
@every_structured_family
def test_structured_noise_linear(native: Backend, noise: str) -> None:
    """Slices that cut row blocks of a Hadamard transform, several blocks, rows in and beyond fours."""
    seeds, sigmas = members(2)
    for outputs, inputs, row, col, full_cols in (
        (300, 20, 100, 30, 100),
        (1, 1, 0, 0, None),
        (40, 130, 250, 0, 130),
        (140, 5, (1 << 32) - 140, 100, 120),
    ):
        where = stream(noise, row, col, full_cols)
        x, y = normals(2, 6, inputs), normals(2, 6, outputs, seed=1)
        expected, portable = oracle_noise_linear(y, x, seeds, sigmas, None, where), y.clone()
        native.noise_linear_(y, x, seeds, sigmas, None, where)
        PORTABLE.noise_linear_(portable, x, seeds, sigmas, None, where)
        assert_same_bits(y, portable)
        assert_close(y, expected)


@every_isa
@pytest.mark.parametrize("rank", [63, 64, 65, 130])
def test_ranks_go_by_chunks(native: Backend, rank: int) -> None:
    """Low-rank factors are drawn 64 ranks at a time: none is left out or counted twice."""
    where, (seeds, sigmas) = stream(f"lowrank-{rank}", 3, 2), members(1)
    out, x, y = torch.empty(5, 19), normals(1, 6, 19), normals(1, 6, 5, seed=1)
    expected = oracle_noise_linear(y, x, seeds, sigmas, None, where)
    native.noise(out, seeds, where)
    assert_same_bits(out, entries(seeds, where, 5, 19)[0])
    native.noise_linear_(y, x, seeds, sigmas, None, where)
    assert_close(y, expected)


def every_boundary(dtype: torch.dtype) -> Tensor:
    """All float32 numbers next to a rounding boundary of a 16-bit dtype, its own values, and strange NaN."""
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    values = bits.view(dtype).float()
    values = values[values.isfinite()].sort().values
    largest, step = values[-1], values[-1] - values[-2]
    edges = torch.cat((values, torch.stack((-largest - step, largest + step))))  # past them: infinity
    ordered = edges.sort().values
    ties = ((ordered[1:].double() + ordered[:-1].double()) / 2).float()
    near = torch.cat((ordered, ties))
    infinity = torch.tensor(torch.inf)
    tiny = torch.tensor(
        [2.0**-149, 2.0**-25, 2.0**-24 * 1.5, 2.0**-133, torch.finfo(torch.float32).max, torch.inf]
    )
    nan = torch.tensor([0x7F800001, 0x7FC00000, 0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    parts = (near, near.nextafter(infinity), near.nextafter(-infinity), tiny, -tiny, nan, -nan)
    return torch.cat(parts)


@every_isa
@pytest.mark.parametrize("dtype", STORAGE[1:], ids=dtype_name)
def test_every_rounding_is_torch_s(native: Backend, dtype: torch.dtype) -> None:
    """Stores of float32 weights without noise: every tie, subnormal, overflow, infinity and NaN."""
    weight = every_boundary(dtype)[None]
    out = torch.empty_like(weight, dtype=dtype)
    native.perturb_(out, weight, torch.tensor([5]), torch.zeros(1), stream("rademacher"))
    torch.testing.assert_close(out, weight.to(dtype), rtol=0, atol=0, equal_nan=True)
    assert_same_bits(out[weight != 0], weight.to(dtype)[weight != 0])


@every_isa
@pytest.mark.parametrize("dtype", STORAGE[1:], ids=dtype_name)
def test_every_value_is_read_as_torch_reads_it(native: Backend, dtype: torch.dtype) -> None:
    weight = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)[None]
    out = torch.empty(1, 1 << 16)
    native.perturb_(out, weight, torch.tensor([5]), torch.zeros(1), stream("rademacher"))
    assert_same_bits(out[weight != 0], weight[weight != 0].float())


@every_isa
@pytest.mark.parametrize("dtype", STORAGE[1:], ids=dtype_name)
def test_storage_rounds_within_the_product(native: Backend, dtype: torch.dtype) -> None:
    """W' near every kind of boundary, read out by an input of one column that is 1."""
    patterns = torch.arange(0, 1 << 16, 37, dtype=torch.int32).to(torch.int16)
    largest = torch.finfo(dtype).max
    special = torch.tensor([largest, -largest, torch.inf, -torch.inf, torch.nan, 0.0], dtype=dtype)
    weight = torch.cat((patterns.view(dtype), special))[:, None]
    seeds, sigmas = torch.tensor([1, 1, 2, 3]), torch.tensor([0.0, 2.0**-24, 3e-3, largest / 64])
    where = stream("normal")
    weights = member_weights(weight, seeds, sigmas, where, "storage")
    assert weights.isinf().sum() > 2 * 4  # more than were put in
    x = torch.ones(1, 1)
    actual = native.linear(x, weight, None, seeds, sigmas, None, where, None, "storage")
    assert_same_bits(actual[:, 0], weights[..., 0] + 0.0)


@every_isa
@every_family
def test_a_weight_that_is_not_finite_stays_in_its_row(native: Backend, noise: str) -> None:
    seeds, sigmas = members(2)
    clean = normals(20, 40)
    broken = clean.clone()
    broken[3, 7], broken[11, 39] = torch.nan, torch.inf
    x = normals(2, 3, 40).abs() + 0.1
    rest = (None, seeds, sigmas, None, stream(noise), None, "exact")
    expected = native.linear(x, clean, *rest)
    expected[..., 3], expected[..., 11] = torch.nan, torch.inf
    assert_same_bits(native.linear(x, broken, *rest), expected)


@every_isa
def test_no_instruction_set_leaks_into_another(native: Backend) -> None:
    """A function that several objects hold must not come from one that the CPU cannot run."""
    objects = [path for path in OBJECTS.glob("native-*/cpu/*.o") if path.stem.endswith(native.name)]
    if not objects or shutil.which("nm") is None:
        pytest.skip("needs nm and the object files of a build in this tree")
    listed = subprocess.run(["nm", "-C", *objects], capture_output=True, text=True, check=True).stdout
    weak = {line.split(" W ")[1] for line in listed.splitlines() if " W " in line}
    assert {name for name in weak if f"thickets::{native.name}::" not in name} == set()
