"""The per-row path against members materialised one by one: any mix and order of owners, on every backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import Place
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from thickets import perturb_
from thickets.integrations.rows import RowMembers, noise_rows_, perturbed_rows

SEEDS = [7, 2**64 - 1, 11]
SIGMAS = [0.06, -0.04, 0.5]
OWNERS = [2, -1, 0, 2, 2, -1, 0]  # member 1 owns no row
FAMILIES = ["normal", "normal4", "rademacher", "hadamard", "lowrank-3"]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}  # of the largest entry


def randn(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(device, dtype)


def member(weight: Tensor, owner: int, **place: Any) -> Tensor:
    """W' of an owner in float32; the base for -1."""
    if owner < 0:
        return weight.float()
    out = torch.empty(weight.shape, device=weight.device)
    return perturb_(out, weight, seed=SEEDS[owner], sigma=SIGMAS[owner], **place)


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype = torch.float32) -> None:
    assert actual.dtype == dtype
    assert actual.shape == expected.shape
    assert (actual.double() - expected.double()).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


KINDS = [(noise, torch.float32) for noise in FAMILIES]
KINDS += [("normal", torch.bfloat16), ("hadamard", torch.float16)]


@pytest.mark.parametrize(("noise", "dtype"), KINDS, ids=str)
def test_rows_of_any_owners_equal_each_row_alone(
    place: Place, noise: str, dtype: torch.dtype, poisoned_empty: None
) -> None:
    owners = torch.tensor(OWNERS, device=place.device)
    x, weight = (randn(*shape, dtype=dtype, device=place.device) for shape in [(7, 130), (9, 130)])
    bias = randn(9, dtype=dtype, device=place.device)
    options = {"noise": noise, "backend": place.backend}
    actual = perturbed_rows(
        x, weight, owners, bias, seeds=SEEDS, sigmas=SIGMAS, name="w", bias_name="b", **options
    )
    expected = torch.stack(
        [
            row.float() @ member(weight, owner, name="w", **options).T
            + member(bias, owner, name="b", **options)
            for row, owner in zip(x, OWNERS, strict=True)
        ]
    )
    assert_close(actual, expected, dtype)


@pytest.mark.parametrize("noise", FAMILIES)
def test_noise_is_added_to_the_engines_own_product(place: Place, noise: str) -> None:
    owners = torch.tensor(OWNERS, device=place.device)
    x, y = randn(7, 33, device=place.device), randn(7, 20, device=place.device)
    before, block = y.clone(), y[:, 3:8]  # a fused layer's rows of another parameter
    options = {"name": "w", "noise": noise, "origin": (4, 0), "backend": place.backend}
    assert noise_rows_(block, x, owners, seeds=SEEDS, sigmas=SIGMAS, **options) is block
    zero = torch.zeros(5, 33, device=place.device)
    added = torch.stack(
        [row @ member(zero, owner, **options).T for row, owner in zip(x, OWNERS, strict=True)]
    )
    assert_close(block, before[:, 3:8] + added)
    base = owners < 0
    assert torch.equal(block[base], before[base, 3:8])
    assert torch.equal(y[:, :3], before[:, :3])
    assert torch.equal(y[:, 8:], before[:, 8:])


def test_one_plan_serves_embeddings_and_vectors(place: Place) -> None:
    plan = RowMembers(torch.tensor(OWNERS, device=place.device), SEEDS, SIGMAS)
    table, gain = randn(6, 5, device=place.device), randn(5, device=place.device)
    ids = torch.tensor([0, 5, 5, 2, 0, 1, 3], device=place.device)
    rows = plan.embedding(ids, table, name="t", backend=place.backend)
    gains = plan.vector(gain, name="g", backend=place.backend)
    for row, index, vector, owner in zip(rows, ids, gains, OWNERS, strict=True):
        assert torch.equal(row, member(table, owner, name="t", backend=place.backend)[index])
        assert torch.equal(vector, member(gain, owner, name="g", backend=place.backend))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-1, 2), max_size=12), st.randoms(use_true_random=False))
def test_the_order_of_the_batch_changes_nothing(owners: list[int], random: Any) -> None:
    x, weight = randn(len(owners), 8), randn(3, 8)
    order = list(range(len(owners)))
    random.shuffle(order)
    shuffled = torch.tensor([owners[row] for row in order], dtype=torch.int64)
    options = {"seeds": SEEDS, "sigmas": SIGMAS, "name": "w"}
    straight = perturbed_rows(x, weight, torch.tensor(owners, dtype=torch.int64), **options)
    torch.testing.assert_close(perturbed_rows(x[order], weight, shuffled, **options), straight[order])


@pytest.mark.parametrize("noise", FAMILIES)
def test_the_products_of_two_ranks_sum_to_the_whole(place: Place, noise: str) -> None:
    owners = torch.tensor(OWNERS, device=place.device)
    x, weight = randn(7, 96, device=place.device), randn(5, 96, device=place.device)
    members = {"seeds": SEEDS, "sigmas": SIGMAS, "name": "w", "noise": noise, "backend": place.backend}
    whole = perturbed_rows(x, weight, owners, **members)
    left, right = slice(0, 48), slice(48, 96)
    one = perturbed_rows(x[:, left], weight[:, left], owners, full_cols=96, **members)
    two = perturbed_rows(x[:, right], weight[:, right], owners, origin=(0, 48), full_cols=96, **members)
    torch.testing.assert_close(one + two, whole, rtol=1e-4, atol=1e-4)


def test_only_the_base(place: Place) -> None:
    x, weight = randn(2, 8, device=place.device), randn(3, 8, device=place.device)
    owners = torch.full((2,), -1, device=place.device)
    actual = perturbed_rows(x, weight, owners, seeds=[], sigmas=[], name="w", backend=place.backend)
    assert_close(actual, x @ weight.T)


def test_errors_name_what_is_wrong() -> None:
    owners = torch.tensor([0, 1])
    with pytest.raises(TypeError, match=r"owners must be an int64 tensor, got torch\.float32"):
        RowMembers(torch.zeros(2), [1], [0.1])
    with pytest.raises(ValueError, match=r"owners must be \[T\], got \(2, 1\)"):
        RowMembers(owners[:, None], [1], [0.1])
    with pytest.raises(ValueError, match=r"owners must be in \[0, N=1\), or -1, got 1"):
        RowMembers(owners, [1], [0.1])
    with pytest.raises(ValueError, match=r"owners must be in \[0, N=2\), or -1, got -2"):
        RowMembers(owners - 2, [1, 2], [0.1, 0.1])
    with pytest.raises(ValueError, match=r"sigmas must be \[N=1\], got \(2,\)"):
        RowMembers(owners, [1], [0.1, 0.2])
    plan = RowMembers(owners, [1, 2], [0.1, 0.2])
    with pytest.raises(ValueError, match=r"x must be \[T=2, features\], got \(3, 4\)"):
        plan.linear(randn(3, 4), randn(5, 4), name="w")
    with pytest.raises(ValueError, match=r"y must be \[T=2, features\], got \(1, 5\)"):
        plan.noise_linear_(randn(1, 5), randn(2, 4), name="w")
    with pytest.raises(ValueError, match=r"ids must be \[T=2\], got \(3,\)"):
        plan.embedding(torch.zeros(3, dtype=torch.int64), randn(5, 4), name="w")
    with pytest.raises(TypeError, match="multiple values for keyword argument 'seeds'"):
        plan.linear(randn(2, 4), randn(5, 4), name="w", seeds=[3, 1, 2])


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu() -> None:
    owners = torch.tensor(OWNERS, device="cuda")
    seeds, sigmas = torch.tensor([1, 2, 3], device="cuda"), torch.tensor(SIGMAS, device="cuda")
    x, weight = randn(7, 128, device="cuda"), randn(64, 128, device="cuda")
    perturbed_rows(x, weight, owners, seeds=seeds, sigmas=sigmas, name="w")  # compiles
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        perturbed_rows(x, weight, owners, seeds=seeds, sigmas=sigmas, name="w")
    finally:
        torch.cuda.set_sync_debug_mode(before)
