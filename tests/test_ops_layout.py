"""What reaches the ops in other forms: strided, empty and converted arguments, the modes of autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Place
from torch import Tensor

import thickets

pytestmark = pytest.mark.usefixtures("poisoned_empty")

SEEDS, SIGMAS = [3, 2**64 - 5], [0.5, -0.25]
every_noise = pytest.mark.parametrize("noise", ["normal", "hadamard", "lowrank-2"])


def spread(tensor: Tensor) -> Tensor:
    """The same values with every dimension strided: each second element of a larger tensor."""
    large = torch.full([2 * size for size in tensor.shape], 77, dtype=tensor.dtype, device=tensor.device)
    view = large[tuple(slice(None, None, 2) for _ in tensor.shape)]
    return view.copy_(tensor)


def flipped(tensor: Tensor) -> Tensor:
    """The same values laid out with the first dimension fastest."""
    return tensor.permute(*reversed(range(tensor.dim()))).contiguous().permute(*reversed(range(tensor.dim())))


def randn(place: Place, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(place.device)


@every_noise
@pytest.mark.parametrize("layout", [spread, flipped])
def test_strides_do_not_matter(place: Place, layout: Callable[[Tensor], Tensor], noise: str) -> None:
    device = place.device
    seeds, sigmas = torch.tensor([3, -5], device=device), torch.tensor(SIGMAS, device=device)
    offsets, ids = torch.tensor([0, 1, 4], device=device), torch.tensor([[0, 4], [2, 2]], device=device)
    x, rows, weight, bias = randn(place, 2, 3, 20), randn(place, 4, 20), randn(place, 5, 20), randn(place, 5)
    weights, biases = randn(place, 2, 5, 20), randn(place, 2, 5)
    tail = {"name": "w", "noise": noise, "backend": place.backend}

    def results(change: Callable[[Tensor], Tensor]) -> list[Tensor]:
        m = {"seeds": change(seeds), "sigmas": change(sigmas)}
        y, flat = change(torch.ones(2, 3, 5, device=device)), change(torch.ones(4, 5, device=device))
        out, total, bias_out = (
            change(torch.zeros_like(weight)),
            change(weight),
            change(torch.zeros_like(bias)),
        )
        return [
            thickets.perturbed_linear(change(x), change(weight), change(bias), **m, bias_name="b", **tail),
            thickets.perturbed_linear(change(rows), change(weight), **m, offsets=change(offsets), **tail),
            thickets.perturbed_linear(change(rows), change(weight), change(bias), **m, **tail),
            thickets.noise_linear_(y, change(x), **m, **tail),
            thickets.noise_linear_(flat, change(rows), **m, offsets=change(offsets), **tail),
            thickets.perturbed_embedding(change(ids), change(weight), **m, **tail),
            thickets.perturbed_vector(change(bias), **m, **tail),
            thickets.perturb_(out, change(weight), seed=SEEDS[1], sigma=0.5, **tail),
            thickets.perturb_(bias_out, change(bias), seed=SEEDS[1], sigma=0.5, **tail),
            thickets.accumulate_(total, seeds=m["seeds"], coefficients=m["sigmas"], **tail),
            thickets.grouped_linear(change(x), change(weights), change(biases), backend=place.backend),
        ]

    for plain, strided in zip(results(lambda t: t.clone()), results(layout), strict=True):
        assert torch.equal(plain, strided)


def test_writing_through_strides_leaves_the_gaps(place: Place) -> None:
    weight = torch.full((4, 6), 7.0, device=place.device)
    view = weight[::2, ::2]
    thickets.perturb_(view, view, seed=1, sigma=1.0, name="w", noise="rademacher", backend=place.backend)
    assert ((view == 6) | (view == 8)).all()
    assert (weight[1::2] == 7).all()
    assert (weight[:, 1::2] == 7).all()


def test_an_expanded_input_is_the_shared_one(place: Place) -> None:
    x, weight = randn(place, 3, 20), randn(place, 5, 20)
    tail = {"seeds": SEEDS, "sigmas": SIGMAS, "name": "w", "backend": place.backend}
    shared = thickets.perturbed_linear(x, weight, **tail)
    assert shared.shape == (2, 3, 5)
    assert torch.equal(shared, thickets.perturbed_linear(x.expand(2, 3, 20), weight, **tail))


@every_noise
@pytest.mark.parametrize("empty", ["N", "M", "O"])
def test_nothing_gives_nothing(place: Place, empty: str, noise: str) -> None:
    n, m, o = (0 if symbol == empty else 2 for symbol in "NMO")
    where = {"name": "w", "noise": noise, "backend": place.backend}
    tail = {"seeds": SEEDS[:n], "sigmas": SIGMAS[:n], **where}
    x, rows, weight, bias = randn(place, n, m, 5), randn(place, n * m, 5), randn(place, o, 5), randn(place, o)
    ids = torch.zeros(n, m, dtype=torch.int64, device=place.device)
    offsets = torch.arange(n + 1, device=place.device) * m
    assert thickets.perturbed_linear(x, weight, bias, bias_name="b", **tail).shape == (n, m, o)
    assert thickets.perturbed_linear(randn(place, m, 5), weight, **tail).shape == (n, m, o)
    assert thickets.perturbed_linear(rows, weight, offsets=offsets, **tail).shape == (n * m, o)
    assert thickets.noise_linear_(randn(place, n, m, o), x, **tail).shape == (n, m, o)
    assert thickets.perturbed_vector(bias, **tail).shape == (n, o)
    assert thickets.grouped_linear(x, randn(place, n, o, 5), backend=place.backend).shape == (n, m, o)
    assert thickets.sample_noise((o, m), seed=1, device=place.device, **where).shape == (o, m)
    if o:
        assert thickets.perturbed_embedding(ids, weight, **tail).shape == (n, m, 5)
    for tensor in (weight, bias):
        before = tensor.clone()
        updated = thickets.accumulate_(tensor, seeds=SEEDS[:n], coefficients=SIGMAS[:n], **where)
        assert n > 0 or torch.equal(updated, before)
        assert thickets.perturb_(tensor, tensor, seed=1, sigma=0.1, **where).shape == before.shape


@every_noise
@pytest.mark.parametrize("ragged", [False, True], ids=["equal", "ragged"])
def test_a_sum_over_no_columns_is_the_bias(place: Place, ragged: bool, noise: str) -> None:
    x, weight, bias = randn(place, 2, 3, 0), randn(place, 5, 0), randn(place, 5)
    tail = {"seeds": SEEDS, "sigmas": SIGMAS, "backend": place.backend, "noise": noise}
    offsets = torch.tensor([0, 1, 6], device=place.device) if ragged else None
    x = x.view(6, 0) if ragged else x
    biases = thickets.perturbed_vector(bias, name="b", **tail)
    expected = biases[torch.tensor([0] + [1] * 5)] if ragged else biases[:, None].expand(2, 3, 5)
    actual = thickets.perturbed_linear(x, weight, bias, name="w", bias_name="b", offsets=offsets, **tail)
    assert torch.equal(actual, expected)
    plain = thickets.perturbed_linear(
        x, weight, name="w", offsets=offsets, origin=(0, 9), full_cols=9, **tail
    )
    assert torch.equal(plain, torch.zeros_like(expected))
    y = torch.ones_like(expected)
    assert torch.equal(thickets.noise_linear_(y.clone(), x, name="w", offsets=offsets, **tail), y)
    stored = thickets.grouped_linear(
        x, weight.expand(2, 5, 0), biases, offsets=offsets, backend=place.backend
    )
    assert torch.equal(stored, expected)


@pytest.mark.parametrize(
    "convert",
    [
        pytest.param(lambda seeds, sigmas: (tuple(seeds), tuple(sigmas)), id="tuples"),
        pytest.param(
            lambda seeds, sigmas: (np.array(seeds, dtype=np.uint64), np.array(sigmas, dtype=np.float32)),
            id="numpy",
        ),
        pytest.param(lambda seeds, sigmas: (iter(seeds), iter(sigmas)), id="iterators"),
        pytest.param(
            lambda seeds, sigmas: (torch.tensor([s - (s >> 63 << 64) for s in seeds]), torch.tensor(sigmas)),
            id="tensors",
        ),
    ],
)
def test_members_come_in_many_forms(place: Place, convert: Callable[..., Any]) -> None:
    weight = randn(place, 9)
    seeds, sigmas = convert(SEEDS, SIGMAS)
    tail = {"name": "v", "backend": place.backend}
    expected = thickets.perturbed_vector(weight, seeds=SEEDS, sigmas=SIGMAS, **tail)
    assert torch.equal(thickets.perturbed_vector(weight, seeds=seeds, sigmas=sigmas, **tail), expected)


def test_a_member_is_restored_exactly_from_its_base(place: Place) -> None:
    base = randn(place, 9, 20)
    weight = base.clone()
    for seed in (1, 2):
        thickets.perturb_(weight, base, seed=seed, sigma=0.3, name="w", backend=place.backend)
        assert not torch.equal(weight, base)
    thickets.perturb_(weight, base, seed=2, sigma=0.0, name="w", backend=place.backend)
    assert torch.equal(weight, base)


def test_works_in_inference_mode_and_without_grad(place: Place) -> None:
    parameter = torch.nn.Parameter(randn(place, 5, 20))
    tail = {"seeds": SEEDS, "sigmas": SIGMAS, "name": "w", "backend": place.backend}
    with torch.no_grad():
        expected = thickets.perturbed_linear(randn(place, 3, 20), parameter, **tail)
    with torch.inference_mode():
        assert torch.equal(thickets.perturbed_linear(randn(place, 3, 20), parameter, **tail), expected)
        weight = randn(place, 5, 20)
        thickets.perturb_(weight, weight, seed=1, sigma=1.0, name="w", backend=place.backend)
        assert not torch.equal(weight, randn(place, 5, 20))


def test_autograd_notices_a_weight_that_was_perturbed_in_place(place: Place) -> None:
    weight = torch.nn.Parameter(randn(place, 5, 20))
    loss = (randn(place, 3, 20).requires_grad_() @ weight.T).sum()
    with torch.no_grad():
        thickets.perturb_(weight, weight, seed=1, sigma=1.0, name="w", backend=place.backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_outputs_do_not_require_grad(place: Place) -> None:
    y = thickets.perturbed_linear(
        randn(place, 3, 20), randn(place, 5, 20), seeds=SEEDS, sigmas=SIGMAS, name="w", backend=place.backend
    )
    assert not y.requires_grad


def test_one_id_for_all_members_may_be_expanded(place: Place) -> None:
    """Flattened, [N, 1] expanded from [1] is still a view of one element."""
    weight, tail = randn(place, 5, 20), {"seeds": SEEDS, "sigmas": SIGMAS, "name": "w"}
    one = torch.tensor([3], device=place.device)
    expected = thickets.perturbed_embedding(torch.tensor([[3], [3]], device=place.device), weight, **tail)
    for ids in (one, one.expand(2, 1), one.int(), one.int().expand(2, 1)):
        rows = thickets.perturbed_embedding(ids, weight, **tail, backend=place.backend)
        torch.testing.assert_close(rows, expected, rtol=1e-6, atol=1e-6)
