"""Modules that no layer function serves: member by member or refused, but never the base's value."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.utils.parametrizations as parametrizations
from members_oracle import (
    SEEDS,
    SIGMAS,
    assert_members,
    check,
    check_compiled,
    evaluate,
    ids,
    one_by_one,
    randn,
    seeded,
    state,
)
from torch import Tensor, nn
from torch.nn.utils import spectral_norm, weight_norm

import thickets
from thickets.perturbed import SlowPathWarning

pytestmark = pytest.mark.filterwarnings(
    "ignore:running member by member",
    "ignore:.*nested tensors is in prototype",
    "ignore:.*deprecated",
)


class FunctionalTied(nn.Module):
    """The embedding's weight read past its module."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.layer = nn.Linear(8, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layer(self.embedding(tokens)) @ self.embedding.weight.T


def test_a_weight_read_past_its_module_moves_the_reader_to_the_slow_path() -> None:
    check(FunctionalTied, ids(4, 3), slow=["the model"])
    inside = lambda: nn.Sequential(FunctionalTied(), nn.Linear(11, 2))  # noqa: E731
    check(inside, ids(4, 3), slow=["0"])


def test_a_weight_read_through_a_list_is_found() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(11, 8)
            self.others = [self.embedding]

        def forward(self, tokens: Tensor) -> Tensor:
            return self.embedding(tokens) @ self.others[0].weight.T

    check(Listed, ids(4, 3), slow=["the model"])


class Hidden(nn.Module):
    """An embedding whose weight is read in a way that no copy can redirect; `how` makes the reader."""

    def __init__(self, how: Callable[[nn.Embedding], Callable[[nn.Module], Tensor]]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.read = how(self.embedding)
        self.kept = [self.embedding.weight]
        self.view = self.embedding.weight.T
        self.register_buffer("part", self.embedding.weight.detach()[:, :4])

    def forward(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens)[..., :1] + self.read(self)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda embedding: lambda _: embedding.weight.T.sum(), "'embedding.weight' through a closure"),
        (lambda embedding: lambda _: embedding.weight.sum(), "'embedding.weight' through a closure"),
        (
            lambda embedding: lambda _: torch.cat([embedding.weight]).sum(),
            "'embedding.weight' through a closure",
        ),
        (lambda _: lambda self: self.kept[0].sum(), "cannot run as members: sum read .*'embedding.weight'"),
        (lambda _: lambda self: self.view.sum(), "cannot run as members: sum read .*'embedding.weight'"),
        (lambda _: lambda self: self.part.sum(), "cannot run as members: sum read .*'embedding.weight'"),
        (
            lambda _: lambda self: torch.tensor(self.kept[0].tolist()).sum(),
            "cannot run as members: tolist read",
        ),
    ],
    ids=["closure-view", "closure", "closure-list", "list", "view", "buffer", "values"],
)
def test_reads_that_cannot_be_perturbed_are_refused(how: Any, message: str) -> None:
    pm = thickets.perturb(Hidden(how))
    for _ in range(2):
        with pm.members(SEEDS, SIGMAS), pytest.raises(RuntimeError, match=message):
            pm(ids(4, 3))


def test_a_parameter_of_a_custom_module() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(8))
            self.table = nn.Parameter(torch.ones(3, 2, 8))
            self.offset = nn.Parameter(torch.tensor(0.5))
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * self.scale + self.table.sum((0, 1)) + self.offset

    check(lambda: nn.Sequential(Scaled(), nn.Linear(8, 2)), randn(4, 8), slow=["0"])
    pm = check(Scaled, randn(4, 8), slow=["the model"], options={"noise": "lowrank-2"})
    eps = thickets.sample_noise((6, 8), seed=5, name="table", noise="lowrank-2")
    torch.testing.assert_close(pm.materialize(5, 0.5)["table"], torch.ones(3, 2, 8) + 0.5 * eps.view(3, 2, 8))


def test_a_module_without_a_batch_moves_the_one_around_it() -> None:
    """Its output has as many rows as the batch by chance."""

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 8))

        def forward(self) -> Tensor:
            return self.weight

    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)
            self.table = Table()

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) @ self.table().T

    pm = check(Looking, randn(4, 8), slow=["the model"])
    assert "table: it is given no tensor of the batch" in pm.slow_modules[0]


def test_a_module_that_reduces_the_batch_moves_the_one_around_it() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8))

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.weight).mean(0, keepdim=True)

    class Less(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)
            self.mean = Mean()

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) - self.mean(x)

    pm = check(Less, randn(4, 8), slow=["the model"])
    assert "mean: its output (1, 8) does not have the leading size 4 of the batch" in pm.slow_modules[0]


def test_tied_parameters_inside_the_slow_path() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(11, 8)
            self.head = nn.Linear(8, 11, bias=False)
            self.head.weight = self.embedding.weight
            self.scale = nn.Parameter(torch.ones(8))

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.embedding(tokens) * self.scale)

    check(Both, ids(4, 3), slow=["the model"])


def test_traced_graphs() -> None:
    def traced() -> nn.Module:
        return torch.fx.symbolic_trace(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)))

    check(traced, randn(4, 8))
    check(lambda: torch.fx.symbolic_trace(FunctionalTied()), ids(4, 3), slow=["the model"])


def test_the_parameters_of_containers() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterList([torch.randn(8, 8) for _ in range(2)])
            self.more = nn.ModuleDict({"gains": nn.ParameterDict({"gain": torch.ones(8)})})

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weights[0] @ self.weights[1] * self.more["gains"]["gain"]

    check(lambda: nn.Sequential(nn.Linear(8, 8), Listed()), randn(4, 8), slow=["1"])


@pytest.mark.parametrize(
    "normalise",
    [
        weight_norm,
        spectral_norm,
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
    ],
    ids=["weight-norm-hook", "spectral-norm-hook", "weight-norm", "spectral-norm", "orthogonal"],
)
def test_parametrised_weights(normalise: Callable[[nn.Module], nn.Module]) -> None:
    make = lambda: nn.Sequential(normalise(nn.Linear(8, 4)), nn.ReLU(), nn.Linear(4, 3))  # noqa: E731
    check(make, randn(4, 8), slow=["0"])
    convolution = lambda: nn.Sequential(normalise(nn.Conv1d(4, 3, 2)))  # noqa: E731
    check(convolution, randn(2, 4, 5), slow=["0"])


class Doubling(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def with_instance_forward() -> nn.Module:
    layer = nn.Linear(8, 3)
    layer.forward = lambda x: torch.zeros(*x.shape[:-1], 3)  # type: ignore[method-assign]
    return layer


def with_pre_hook() -> nn.Module:
    layer = nn.Linear(8, 3)
    layer.register_forward_pre_hook(lambda module, args: (args[0] * module.weight.abs().sum(),))
    return layer


UNKNOWN: dict[str, tuple[Any, Tensor]] = {
    "other-forward": (lambda: Doubling(8, 3), randn(2, 8)),
    "instance-forward": (with_instance_forward, randn(2, 8)),
    "pre-hook": (with_pre_hook, randn(2, 8)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), randn(2, 4, 5, 5)),
    "max-norm": (lambda: nn.Embedding(11, 8, max_norm=0.5), ids(4, 3)),
    "layer-norm-2d": (lambda: nn.LayerNorm((3, 8)), randn(2, 3, 8)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3), randn(2, 4, 5, 5)),
    "bilinear-cell": (lambda: nn.GRUCell(8, 8), randn(2, 8)),
    "prelu": (lambda: nn.PReLU(), randn(2, 8)),
    "embedding-bag": (lambda: nn.EmbeddingBag(11, 8), ids(4, 3)),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_layers_that_are_not_stock(name: str) -> None:
    make, x = UNKNOWN[name]
    check(lambda: nn.Sequential(make()), x, slow=["0"])
    with pytest.raises(RuntimeError, match=r"strict=True, but .*0 \("):
        thickets.perturb(nn.Sequential(make()).eval(), strict=True)


def test_a_hook_on_the_output_keeps_the_layer_fast_and_one_that_reads_the_weight_does_not() -> None:
    def hooked(hook: Any) -> nn.Module:
        layer = nn.Linear(8, 3)
        layer.register_forward_hook(hook)
        return nn.Sequential(layer)

    check(lambda: hooked(lambda module, args, output: output * 2), randn(2, 8))
    check(lambda: hooked(lambda module, args, output: output * module.weight.sum()), randn(2, 8), slow=["0"])


class Transposing(nn.Module):
    """Its layer sees the sequence first."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(0, 1)).transpose(0, 1)


class Flattening(Transposing):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.reshape(-1, 8)).reshape(x.shape)


class Joining(Transposing):
    def forward(self, x: Tensor) -> Tensor:
        one, two = self.layer(torch.cat([x, x + 1])).chunk(2)
        return one * two


class Counting(nn.Module):
    """Positions without a batch dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 8)
        self.positions = nn.Embedding(16, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))


@pytest.mark.parametrize("length", [1, 2, 5, 6], ids=lambda length: f"length-{length}")
def test_layers_off_the_batch_run_member_by_member(length: int) -> None:
    """With length 6 = N * B rows only the check of the first call tells a sequence from the folded batch."""
    for make in (Transposing, Flattening, Joining):
        if make is not Flattening or length > 1:
            check(make, randn(2, length, 8), slow=["the model"])
    check(Counting, ids(2, length), slow=["the model"])


def test_an_unbatched_input_runs_member_by_member() -> None:
    check(lambda: nn.Conv2d(3, 4, 2), randn(3, 5, 5), slow=["the model"])


def test_strict_raises_where_a_forward_needs_the_slow_path() -> None:
    pm = thickets.perturb(FunctionalTied().eval(), strict=True)
    for _ in range(2):
        with (
            pm.members(SEEDS, SIGMAS),
            pytest.raises(RuntimeError, match=r"strict=True, but .*'embedding.weight'"),
        ):
            pm(ids(4, 3))


def test_the_slow_path_is_said_once_with_its_reason() -> None:
    with pytest.warns(SlowPathWarning, match=re.escape("0 (GRUCell): it uses its parameters itself")):
        pm = thickets.perturb(nn.Sequential(nn.GRUCell(8, 8)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            evaluate(pm, randn(2, 8))
    pm = thickets.perturb(FunctionalTied().eval())
    with pytest.warns(SlowPathWarning, match=r"the model \(FunctionalTied\): .*'embedding.weight'"):
        evaluate(pm, ids(4, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(pm, ids(4, 3))
    assert "FunctionalTied" in repr(pm)


class Centred(nn.Module):
    """Each row depends on the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y - y.mean(0)


class Similar(Centred):
    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y @ y.T


@pytest.mark.parametrize("make", [Centred, Similar])
def test_a_model_that_mixes_its_batch_runs_member_by_member(make: Any) -> None:
    check(make, randn(4, 8), slow=["the model"])
    pm = thickets.perturb(make(), strict=True)
    with pm.members(SEEDS, SIGMAS), pytest.raises(RuntimeError, match=r"strict=True, .* mix"):
        pm(randn(4, 8))


def test_arguments_that_a_forward_changes_are_not_used_twice() -> None:
    class Cache:
        def __init__(self) -> None:
            self.calls = 0

    class Caching(FunctionalTied):
        def forward(self, tokens: Tensor, cache: Cache) -> Tensor:
            cache.calls += 1
            return super().forward(tokens)

    make = seeded(Caching)
    pm, cache = thickets.perturb(make()), Cache()
    with pm.members(SEEDS, SIGMAS):
        with pytest.raises(RuntimeError, match="call again with fresh arguments"):
            pm(ids(4, 3), cache)
        assert cache.calls == 1
        assert_members(pm(ids(4, 3), Cache()), one_by_one(pm, make, ids(4, 3), Cache()))


def test_members_start_from_the_same_buffers() -> None:
    class Stepping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))
            self.register_buffer("steps", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.steps += 1.0
            return x * self.weight * self.steps

    check(Stepping, randn(2, 8), slow=["the model"])


def test_half_parameters_do_not_round_what_a_float32_model_hands_on() -> None:
    class Scale(nn.Module):
        def __init__(self, dtype: torch.dtype) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.full((8,), 0.75, dtype=dtype))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.factor

    def make(dtype: torch.dtype) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 8), Scale(dtype), nn.Linear(8, 3))

    pm, x = thickets.perturb(make(torch.bfloat16)), randn(4, 8)
    with pm.members(SEEDS, SIGMAS):
        y = pm(x)
    assert_members(y, one_by_one(pm, lambda: make(torch.float32), x))


def test_the_base_is_not_written_when_a_forward_fails() -> None:
    model = nn.Sequential(weight_norm(nn.Linear(8, 4)), nn.MultiheadAttention(4, 2, batch_first=True)).eval()
    before = state(model)
    pm = thickets.perturb(model)
    with pm.members(SEEDS, SIGMAS), pytest.raises(TypeError):
        pm(randn(2, 5, 8))
    assert state(model) == before


def test_the_compiled_slow_path_sees_new_members() -> None:
    check_compiled(FunctionalTied, ids(4, 3))
