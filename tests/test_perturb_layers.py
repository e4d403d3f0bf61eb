"""The layers that run all members at once, against ordinary forwards of materialised members."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import Place
from members_oracle import (
    SEEDS,
    SIGMAS,
    TOLERANCE,
    assert_members,
    check,
    evaluate,
    ids,
    one_by_one,
    randn,
    seeded,
)
from torch import Tensor, nn

import thickets

pytestmark = pytest.mark.filterwarnings("ignore:Using padding=.same.")

FAMILIES = ["normal", "normal4", "rademacher", "hadamard", "lowrank-3"]


class Tied(nn.Module):
    """An embedding whose weight is also that of the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embedding(tokens)))


class Twice(nn.Module):
    """A module called twice, and registered under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.second = self.first
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(torch.relu(self.first(torch.relu(self.first(x))))))


class Positions(nn.Module):
    """Position embeddings with a leading dimension of 1, through a Linear and a norm, then added."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 6)
        self.positions = nn.Embedding(8, 6)
        self.project = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1])[None]
        return self.tokens(tokens) + self.norm(self.project(self.positions(positions)))


CASES: dict[str, tuple[Any, tuple[Tensor, ...]]] = {
    "linear": (lambda: nn.Linear(7, 5), (randn(4, 7),)),
    "linear-no-bias": (lambda: nn.Linear(7, 5, bias=False), (randn(4, 2, 3, 7),)),
    "linear-one-row": (lambda: nn.Linear(1, 1), (randn(1, 1),)),
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 33), nn.ReLU(inplace=True), nn.Linear(33, 3)), (randn(5, 6),)),
    "embedding": (lambda: nn.Embedding(11, 6, padding_idx=2), (ids(4, 3),)),
    "embedding-1d": (lambda: nn.Embedding(11, 6), (ids(4),)),
    "embedding-int32": (lambda: nn.Embedding(11, 6), (ids(4, 3).int(),)),
    "layer-norm": (lambda: nn.LayerNorm(6), (randn(4, 3, 6),)),
    "layer-norm-no-bias": (lambda: nn.LayerNorm(6, bias=False), (randn(4, 6),)),
    "rms-norm": (lambda: nn.RMSNorm(6), (randn(4, 3, 6),)),
    "rms-norm-eps": (lambda: nn.RMSNorm(6, eps=0.1), (randn(4, 6),)),
    "batch-norm": (lambda: nn.BatchNorm1d(6), (randn(4, 6),)),
    "batch-norm-1d": (lambda: nn.BatchNorm1d(6), (randn(4, 6, 5),)),
    "batch-norm-2d": (lambda: nn.BatchNorm2d(6), (randn(4, 6, 3, 2),)),
    "group-norm": (lambda: nn.GroupNorm(2, 6), (randn(4, 6, 3),)),
    "conv1d": (lambda: nn.Conv1d(3, 5, 4), (randn(2, 3, 9),)),
    "conv1d-same": (lambda: nn.Conv1d(3, 5, 4, padding="same", dilation=2), (randn(2, 3, 9),)),
    "conv1d-reflect": (lambda: nn.Conv1d(3, 5, 3, padding=2, padding_mode="reflect"), (randn(2, 3, 9),)),
    "conv1d-stride": (lambda: nn.Conv1d(3, 5, 3, stride=3, padding=1, bias=False), (randn(2, 3, 9),)),
    "conv2d": (lambda: nn.Conv2d(3, 5, (2, 3)), (randn(2, 3, 6, 7),)),
    "conv2d-valid": (lambda: nn.Conv2d(3, 5, 3, padding="valid"), (randn(2, 3, 6, 7),)),
    "conv2d-same": (lambda: nn.Conv2d(3, 5, (2, 3), padding="same"), (randn(2, 3, 6, 7),)),
    "conv2d-all": (
        lambda: nn.Conv2d(3, 5, 3, (2, 1), (1, 2), (1, 2), padding_mode="circular"),
        (randn(2, 3, 6, 7),),
    ),
    "conv2d-view": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(16, 3)),
        (randn(4, 1, 6, 4),),
    ),
    "tied": (Tied, (ids(4, 3),)),
    "twice": (Twice, (randn(4, 5),)),
    "positions": (Positions, (ids(4, 6),)),
}


@pytest.mark.parametrize("name", CASES)
def test_layers_equal_ordinary_forwards(name: str, place: Place) -> None:
    make, args = CASES[name]
    check(make, *args, options={"backend": place.backend, "strict": True})


@pytest.mark.parametrize("noise", FAMILIES[1:])
@pytest.mark.parametrize("name", ["mlp", "tied", "layer-norm", "conv2d-all", "embedding"])
def test_every_family(name: str, noise: str) -> None:
    make, args = CASES[name]
    check(make, *args, options={"noise": noise, "strict": True})


def transformer_like() -> nn.Module:
    return nn.Sequential(
        nn.Embedding(11, 8), nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.RMSNorm(16), nn.Linear(16, 4)
    )


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.GroupNorm(2, 4))


HALF_CASES = {
    "transformer": (transformer_like, (ids(4, 3),)),
    "convolution": (convolutional, (randn(2, 2, 5, 5),)),
}


def to(dtype: torch.dtype, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(arg.to(dtype) if arg.is_floating_point() else arg for arg in args)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", HALF_CASES)
def test_storage_of_half_models_equals_ordinary_forwards(name: str, dtype: torch.dtype) -> None:
    make, args = HALF_CASES[name]
    make, args = seeded(make, dtype), to(dtype, args)
    pm = thickets.perturb(make(), precision="storage", strict=True)
    actual = evaluate(pm, *args)
    assert actual.dtype == dtype
    assert {tensor.dtype for tensor in pm.materialize(1, 0.1).values() if tensor.is_floating_point()} == {
        dtype
    }
    assert_members(actual, one_by_one(pm, make, *args), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", HALF_CASES)
def test_exact_of_half_models_equals_float32_forwards(name: str, dtype: torch.dtype) -> None:
    """The oracle runs in float32, since float32 W' do not fit a 16-bit forward."""
    make, args = HALF_CASES[name]
    make, args = seeded(make, dtype), to(dtype, args)
    pm = thickets.perturb(make(), strict=True)
    actual = evaluate(pm, *args)
    assert actual.dtype == dtype
    expected = one_by_one(pm, make, *to(torch.float32, args), dtype=torch.float32)
    assert_members(actual, expected, TOLERANCE[dtype])


def test_the_default_eps_of_rms_norm_is_that_of_the_stock_forward() -> None:
    make, x = seeded(lambda: nn.RMSNorm(6), torch.bfloat16), (randn(4, 6) * 1e-2).bfloat16()
    pm = thickets.perturb(make(), precision="storage", strict=True)
    assert_members(evaluate(pm, x), one_by_one(pm, make, x), 2.0**-7)


@pytest.mark.parametrize("noise", ["normal", "normal4", "rademacher"])
@pytest.mark.parametrize("precision", ["exact", "storage"])
def test_stored_members_have_the_bits_of_fused_ones(noise: str, precision: str) -> None:
    for name in ("mlp", "conv2d-all", "tied", "layer-norm"):
        make, args = CASES[name]
        pm = thickets.perturb(seeded(make)(), noise=noise, precision=precision)
        fused = evaluate(pm, *args)
        with pm.members(SEEDS, SIGMAS, stored=True):
            first = pm(*args)
            addresses = [tensor.data_ptr() for tensor in pm._stored.values()]
        with pm.members(SEEDS[::-1], SIGMAS[::-1], stored=True):
            pm(*args)
            assert [tensor.data_ptr() for tensor in pm._stored.values()] == addresses
        assert torch.equal(fused, first), name
        fresh = thickets.perturb(pm.base, noise=noise, precision=precision)
        with fresh.members(SEEDS, SIGMAS, stored=True):
            assert torch.equal(fused, fresh(*args)), name


@pytest.mark.parametrize("exclude", ["*weight", "*bias"])
@pytest.mark.parametrize("name", ["mlp", "layer-norm", "conv2d", "batch-norm", "group-norm", "tied"])
def test_layers_with_one_perturbed_parameter(name: str, exclude: str) -> None:
    make, args = CASES[name]
    check(make, *args, options={"exclude": exclude, "strict": True})


def test_tied_parameters_share_one_noise() -> None:
    make, _ = CASES["tied"]
    pm = thickets.perturb(seeded(make)())
    assert pm.parameter_names == ["embedding.weight", "head.bias"]
    state = pm.materialize(3, 0.1)
    assert torch.equal(state["embedding.weight"], state["head.weight"])


def test_members_do_not_depend_on_each_other() -> None:
    """The same bits alone and among others: a score is a function of (seed, sigma)."""
    make, args = CASES["mlp"]
    pm = thickets.perturb(seeded(make)())
    together = evaluate(pm, *args)
    for index, (seed, sigma) in enumerate(zip(SEEDS, SIGMAS, strict=True)):
        with pm.members([seed], [sigma]):
            assert torch.equal(pm(*args)[0], together[index])


def test_a_subclass_with_the_stock_forward_is_fast() -> None:
    class Named(nn.Linear):
        def extra(self) -> int:
            return 1

    check(lambda: Named(4, 3), randn(2, 4), options={"strict": True})


def test_isinstance_and_attributes_of_layers_stay() -> None:
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            assert isinstance(self.layer, nn.Linear)
            weight = self.layer.weight
            assert isinstance(weight, nn.Parameter)
            assert (weight.shape, weight.dim(), weight.device.type) == ((3, 4), 2, "cpu")
            zeros = weight.new_zeros(self.layer.out_features)
            return self.layer(x.to(weight.dtype)) + zeros + torch.zeros(3).to(next(self.parameters()))

    check(Asking, randn(2, 4), options={"strict": True})
