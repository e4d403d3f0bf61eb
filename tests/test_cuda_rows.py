"""Rows and sums of dense noise from the emulated CUDA kernels: addresses and sizes that common tests miss."""

from __future__ import annotations

from typing import Any

import emulated
import oracle
import pytest
import torch
from torch import Tensor

from thickets.backends.cuda import Kernels
from thickets.noise import Stream, family
from thickets.operands import Members, Noise

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(emulated.why_not() is not None, reason=str(emulated.why_not())),
]

SEEDS = [7, -1, 7, 0x123456789ABCDEF0, -(2**63), 12]  # one twice, mirrored
SIGMAS = [0.3, -0.1, -0.3, 0.0, 1.5, 0.02]
SCALE = 0.7
# (row, column) where a slice begins: on a block, within one, where numbers fill 32 bits
ORIGINS = [(0, 0), (5, 131), (2**32 - 90, 2**31 + 256)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

every_family = pytest.mark.parametrize("noise", ["normal", "normal4", "rademacher"])
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
every_origin = pytest.mark.parametrize("origin", ORIGINS, ids=str)


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels(emulated.module())


def members(count: int, **groups: Any) -> Members:
    return Members(torch.tensor(SEEDS[:count]), torch.tensor(SIGMAS[:count]), SCALE, **groups)


def noise_at(noise: str, origin: tuple[int, int], cols: int) -> tuple[Stream, Noise]:
    """The noise of a slice of `cols` columns that ends three before the parameter's last one."""
    stream = Stream("w", family(noise), *origin, origin[1] + cols + 3, SCALE)
    return stream, Noise.of(stream, cols)


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def within(*shape: int, dtype: torch.dtype, before: int, after: int) -> tuple[Tensor, Tensor]:
    """A tensor full of NaN and a view of that shape inside it, with so many columns on either side."""
    whole = torch.full([*shape[:-1], before + shape[-1] + after], torch.nan, dtype=dtype)
    return whole, whole[..., before : before + shape[-1]]


def assert_filled(whole: Tensor, view: Tensor, expected: Tensor, noise: str) -> None:
    """The view holds the expected values, and nothing around it was written."""
    if noise == "normal":  # within the bounds of docs/noise.md, section 4, and a rounding
        torch.testing.assert_close(view, expected, atol=2e-3, rtol=torch.finfo(view.dtype).eps)
    else:
        assert torch.equal(view, expected)
    assert int(whole.isnan().sum()) == whole.numel() - view.numel()


@every_family
@every_origin
@every_dtype
@pytest.mark.parametrize("around", [(0, 0), (8, 8), (1, 0), (3, 4)], ids=str)
@pytest.mark.parametrize("cols", [1, 63, 128, 300])
def test_all_rows_at_any_address(
    cols: int,
    around: tuple[int, int],
    dtype: torch.dtype,
    origin: tuple[int, int],
    noise: str,
    kernels: Kernels,
) -> None:
    stream, place = noise_at(noise, origin, cols)
    weight = within(5, cols, dtype=DTYPES[cols % 3], before=around[1], after=around[0])[1].copy_(
        randn(5, cols)
    )
    whole, out = within(3, 5, cols, dtype=dtype, before=around[0], after=around[1])
    kernels.perturbed_rows(out, weight, members(3), place)
    expected = oracle.member_weights(weight, members(3).seeds, members(3).sigmas, stream, "exact").to(dtype)
    assert_filled(whole, out, expected, noise)


@every_family
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("rows", [530, 270])
def test_quads_of_two_and_four_lines(rows: int, count: int, noise: str, kernels: Kernels) -> None:
    stream, place = noise_at(noise, (3, 100), 200)
    weight = randn(rows, 200, dtype=torch.bfloat16)
    whole, out = within(count, rows, 200, dtype=torch.bfloat16, before=0, after=8)
    kernels.perturbed_rows(out, weight, members(count), place)
    expected = oracle.member_weights(weight, members(count).seeds, members(count).sigmas, stream, "exact").to(
        torch.bfloat16
    )
    assert_filled(whole, out, expected, noise)


@every_family
@pytest.mark.parametrize("form", ["shared", "ragged"])
def test_looked_up_rows_of_many_members(form: str, noise: str, kernels: Kernels) -> None:
    stream, place = noise_at(noise, (5, 130), 140)
    weight, ids = randn(50, 140), torch.arange(180) * 17 % 50
    offsets = torch.tensor([0, 0, 70, 71, 71, 180, 180]) if form == "ragged" else None
    groups = members(6, offsets=offsets, rows=180, total=180 if form == "ragged" else 6 * 180)
    whole, out = within(groups.total, 140, dtype=torch.float32, before=0, after=0)
    kernels.perturbed_rows(out, weight, groups, place, ids)
    expected = oracle.oracle_embedding(ids, weight, groups.seeds, groups.sigmas, offsets, stream, "exact")
    assert_filled(whole, out, expected.reshape(out.shape), noise)


@every_family
@every_origin
@every_dtype
@pytest.mark.parametrize("count", [1, 4, 6])
@pytest.mark.parametrize("around", [(0, 0), (3, 4)], ids=str)
def test_accumulate_at_any_address(
    around: tuple[int, int],
    count: int,
    dtype: torch.dtype,
    origin: tuple[int, int],
    noise: str,
    kernels: Kernels,
) -> None:
    stream, place = noise_at(noise, origin, 290)
    whole, weight = within(5, 290, dtype=dtype, before=around[0], after=around[1])
    weight.copy_(randn(5, 290))
    expected = oracle.oracle_accumulate(weight, members(count).seeds, members(count).sigmas, stream)
    kernels.accumulate(weight, members(count), place)
    assert_filled(whole, weight, expected, noise)


@pytest.mark.parametrize("noise", ["normal4", "lowrank-2", "hadamard"])
def test_ids_outside_of_the_weight_become_the_nearest(noise: str, kernels: Kernels) -> None:
    """They are not known on the host; no memory around the weight is read."""
    weight, ids = randn(50, 140), torch.tensor([3, -1, 50, -(2**60), 2**60, 49])
    _, place = noise_at(noise, (0, 0), 140)
    out, expected = torch.empty(2, 6, 140).flatten(0, 1), torch.empty(2, 6, 140).flatten(0, 1)
    groups = members(2, rows=6, total=12)
    kernels.perturbed_rows(out, weight, groups, place, ids)
    kernels.perturbed_rows(expected, weight, groups, place, ids.clamp(0, 49))
    assert torch.equal(out, expected)
