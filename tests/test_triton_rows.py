"""Perturbed rows and sums of noise from the Triton kernels: shapes that the common tests do not reach."""

from __future__ import annotations

from typing import Any

import oracle
import pytest
import torch
from torch import Tensor
from triton_place import DEVICE

from thickets.noise import Stream, entries, family
from thickets.operands import Members, Noise
from thickets.triton_kernels.accumulate import accumulate
from thickets.triton_kernels.rows import perturbed_rows

SEEDS = [7, -1, 7, 0x123456789ABCDEF0, -(2**63)]  # one twice, mirrored
SIGMAS = [0.3, -0.1, -0.3, 0.0, 1.5]
SCALE = 0.7
# (row, column) where a slice begins: tiles of the second begin before it, the third's numbers fill 32 bits
ORIGINS = [(0, 0), (5, 130), (2**32 - 9, 2**31 + 256)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

every_family = pytest.mark.parametrize("noise", ["normal", "normal4", "rademacher", "hadamard", "lowrank-5"])
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
every_origin = pytest.mark.parametrize("origin", ORIGINS, ids=str)
pytestmark = pytest.mark.usefixtures("one_thread")


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE, dtype)


def members(count: int, **groups: Any) -> Members:
    seeds, sigmas = torch.tensor(SEEDS[:count]), torch.tensor(SIGMAS[:count])
    return Members(seeds.to(DEVICE), sigmas.to(DEVICE), SCALE, **groups)


def noise_at(noise: str, origin: tuple[int, int], cols: int) -> tuple[Stream, Noise]:
    """The noise of a slice of `cols` columns that ends three before the parameter's last one."""
    row, col = origin
    kind = family(noise)
    if noise == "hadamard":
        col %= 256  # its rows are generated whole
    stream = Stream("w", kind, row, col, col + cols + 3, SCALE)
    return stream, Noise(kind.kind, kind.rank, stream.id, row, col, col + cols + 3)


def within(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """A tensor full of NaN and a strided view of that shape inside it."""
    whole = torch.full([size + 3 for size in shape], torch.nan, dtype=dtype, device=DEVICE)
    return whole, whole[tuple(slice(1, -2) for _ in shape)]


def assert_filled(whole: Tensor, view: Tensor, expected: Tensor) -> None:
    """The view holds the expected values, and nothing around it was written."""
    assert torch.equal(view, expected)
    assert int(whole.isnan().sum()) == whole.numel() - view.numel()


@every_family
@every_origin
def test_all_rows_of_members(origin: tuple[int, int], noise: str) -> None:
    stream, place = noise_at(noise, origin, 135)
    weight = randn(9, 135)
    whole, out = within(3, 9, 135)
    perturbed_rows(out, weight, members(3), place)
    assert_filled(whole, out, oracle.member_weights(weight, *members(3)[:2], stream, "exact"))


@pytest.mark.parametrize("noise", ["normal", "normal4", "rademacher"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (70, 129), (67, 3)], ids=str)
def test_rows_beyond_one_tile(shape: tuple[int, int], noise: str) -> None:
    stream, place = noise_at(noise, (3, 7), shape[1])
    weight = randn(*shape)
    out = torch.full((2, *shape), torch.nan, device=DEVICE)
    perturbed_rows(out, weight, members(2), place)
    assert torch.equal(out, oracle.member_weights(weight, *members(2)[:2], stream, "exact"))


@every_family
@every_dtype
def test_in_place_over_a_strided_weight(dtype: torch.dtype, noise: str) -> None:
    stream, place = noise_at(noise, (5, 130), 40)
    whole, weight = within(6, 40, dtype=dtype)
    weight.copy_(randn(6, 40))
    expected = oracle.member_weights(weight, *members(1)[:2], stream, "storage").to(dtype)[0]
    perturbed_rows(weight[None], weight, members(1), place)
    assert_filled(whole, weight, expected)


@every_family
def test_noise_alone_is_not_scaled(noise: str) -> None:
    stream, place = noise_at(noise, (5, 130), 37)
    whole, out = within(2, 5, 37)
    perturbed_rows(out, None, members(2), place)
    assert_filled(whole, out, entries(members(2).seeds, stream, 5, 37))


@every_family
@pytest.mark.parametrize("form", ["members", "shared", "ragged"])
def test_looked_up_rows(form: str, noise: str) -> None:
    stream, place = noise_at(noise, (5, 130), 35)
    weight = randn(11, 35, dtype=torch.bfloat16)
    ids = torch.tensor([0, 10, 3, 3, 7], device=DEVICE)
    offsets = torch.tensor([0, 0, 2, 2, 5], device=DEVICE) if form == "ragged" else None
    count, rows, total = {"members": (1, 5, 5), "shared": (3, 5, 15), "ragged": (4, 1, 5)}[form]
    whole, out = within(total, 35, dtype=torch.bfloat16)
    groups = members(count, offsets=offsets, rows=rows, total=total)
    perturbed_rows(out, weight, groups, place, ids)
    expected = oracle.oracle_embedding(ids, weight, *groups[:2], offsets, stream, "exact")
    assert_filled(whole, out, expected.reshape(total, 35))


def test_looked_up_rows_of_every_member_and_tile() -> None:
    stream, place = noise_at("normal4", (0, 0), 300)
    weight, ids = randn(50, 300), torch.arange(3 * 70, device=DEVICE) * 17 % 50
    out = torch.full((210, 300), torch.nan, device=DEVICE)
    groups = members(3, rows=70, total=210)
    perturbed_rows(out, weight, groups, place, ids)
    expected = oracle.oracle_embedding(ids.view(3, 70), weight, *groups[:2], None, stream, "exact")
    assert torch.equal(out, expected.view(210, 300))


@pytest.mark.filterwarnings("ignore:overflow encountered")
@every_dtype
@pytest.mark.parametrize("stored", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_values_are_rounded_to_the_nearest_even(stored: torch.dtype, dtype: torch.dtype) -> None:
    """A member of strength 0 is W itself: ties, subnormals and overflows convert as in torch."""
    bits = torch.arange(2**16, dtype=torch.int32)
    ties = torch.cat([(bits << 16) + low for low in (0, 0x7FFF, 0x8000, 0x8001)])
    halves = torch.cat([(bits[: 2**15] << 12) + low for low in (0x2FFFFFFF, 0x30000000, 0x30000001)])
    values = torch.cat([ties, halves]).view(torch.float32).to(stored)
    values = values[values.isfinite()]
    weight = values[: len(values) // 64 * 64].view(64, -1).to(DEVICE)
    out = torch.full_like(weight, torch.nan, dtype=dtype)
    silent = Members(torch.zeros(1, dtype=torch.int64, device=DEVICE), torch.zeros(1, device=DEVICE), 1.0)
    perturbed_rows(out[None], weight, silent, Noise("rademacher"))
    assert torch.equal(out, weight.to(dtype))


@every_family
@every_origin
def test_accumulate(origin: tuple[int, int], noise: str) -> None:
    stream, place = noise_at(noise, origin, 35)
    whole, weight = within(9, 35)
    weight.copy_(randn(9, 35))
    expected = oracle.oracle_accumulate(weight, *members(3)[:2], stream)
    accumulate(weight, members(3), place)
    assert_filled(whole, weight, expected)


@every_dtype
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("shape", [(1, 700), (70, 129)], ids=str)
def test_accumulate_beyond_one_tile(shape: tuple[int, int], count: int, dtype: torch.dtype) -> None:
    stream, place = noise_at("rademacher", (3, 7), shape[1])
    weight = randn(*shape, dtype=dtype)
    expected = oracle.oracle_accumulate(weight, *members(count)[:2], stream)
    accumulate(weight, members(count), place)
    assert torch.equal(weight, expected)


@pytest.mark.parametrize("form", ["members", "shared", "ragged", "all rows", "sum"])
def test_hadamard_rows_too_long_for_a_program(form: str) -> None:
    kind = family("hadamard")
    stream = Stream("w", kind, 65534, 40000, 65000, SCALE)  # the rows lie in two row blocks
    place = Noise(kind.kind, 0, stream.id, 65534, 40000, 65000)
    weight, ids = randn(3, 35), torch.tensor([2, 0, 1, 2], device=DEVICE)
    if form == "sum":
        expected = oracle.oracle_accumulate(weight, *members(2)[:2], stream)
        accumulate(weight, members(2), place)
        assert torch.equal(weight, expected)
    elif form == "all rows":
        whole, out = within(2, 3, 35)
        perturbed_rows(out, weight, members(2), place)
        assert_filled(whole, out, oracle.member_weights(weight, *members(2)[:2], stream, "exact"))
    else:
        offsets = torch.tensor([0, 0, 3, 4], device=DEVICE) if form == "ragged" else None
        count, rows, total = {"members": (2, 2, 4), "shared": (2, 4, 8), "ragged": (3, 1, 4)}[form]
        whole, out = within(total, 35)
        groups = members(count, offsets=offsets, rows=rows, total=total)
        perturbed_rows(out, weight, groups, place, ids)
        lines = ids.view(2, 2) if form == "members" else ids
        expected = oracle.oracle_embedding(lines, weight, *groups[:2], offsets, stream, "exact")
        assert_filled(whole, out, expected.reshape(total, 35))
