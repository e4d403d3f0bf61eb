"""`perturb` itself: members, folding, state dicts, the base, training mode, torch.compile."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re
from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from members_oracle import (
    SEEDS,
    SIGMAS,
    X,
    assert_members,
    evaluate,
    mlp,
    one_by_one,
    seeded,
    state,
)
from torch import Tensor, nn

import thickets
from thickets.perturbed.fallback import ArgumentNames


def test_calls_need_members() -> None:
    pm = thickets.perturb(mlp())
    with pytest.raises(RuntimeError, match=r"members must be given: call it inside of `with pm.members"):
        pm(X)
    with (
        pm.members([1], [0.1]),
        pytest.raises(RuntimeError, match="must not be used inside of members"),
        pm.members([1], [0.1]),
    ):
        pass
    with pytest.raises(ZeroDivisionError), pm.members([1], [0.1]):
        raise ZeroDivisionError
    with pytest.raises(RuntimeError, match="members must be given"):
        pm(X)


@pytest.mark.parametrize(
    ("seeds", "sigmas", "error", "message"),
    [
        ([], [], ValueError, "seeds must be at least one"),
        ([1, 2], [0.1], ValueError, "sigmas must be"),
        ([-1], [0.1], ValueError, "seeds must be in 0 <= seed < 2"),
        ([2**64], [0.1], ValueError, "seeds must be in 0 <= seed < 2"),
        ([1.5], [0.1], TypeError, "seeds must be"),
        ([1], [float("nan")], ValueError, "sigmas must be finite"),
        ([1], torch.tensor([float("inf")]), ValueError, "sigmas must be finite"),
        (torch.tensor([1.0]), [0.1], TypeError, "seeds must be int64"),
    ],
)
def test_bad_members(seeds: Any, sigmas: Any, error: type[Exception], message: str) -> None:
    pm = thickets.perturb(mlp())
    with pytest.raises(error, match=message), pm.members(seeds, sigmas):
        pass


def test_members_are_copied_into_fixed_buffers() -> None:
    pm = thickets.perturb(seeded(mlp)())
    seeds, sigmas = torch.tensor([1, 2]), torch.tensor([0.1, 0.2])
    with pm.members(seeds, sigmas):
        expected = pm(X)
        addresses = pm._members.seeds.data_ptr(), pm._members.sigmas.data_ptr()
        seeds.zero_()
        assert torch.equal(pm(X), expected)
    with pm.members([3, 4], [0.3, 0.4]):
        assert (pm._members.seeds.data_ptr(), pm._members.sigmas.data_ptr()) == addresses
    with pm.members([1, 2], [0.1, 0.2]):
        assert torch.equal(pm(X), expected)


def test_inference_mode_and_grad_mode_can_change_between_calls() -> None:
    make = seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)))
    model = make()
    with torch.inference_mode():
        pm = thickets.perturb(model)
        first = evaluate(pm, X)
        with pm.members(SEEDS, SIGMAS, stored=True):
            pm(X)
    assert torch.equal(evaluate(pm, X), first)
    with pm.members(SEEDS, SIGMAS, stored=True):
        assert torch.equal(pm(X), first)
        assert torch.is_grad_enabled()


def test_mirrored_members_and_sigma_zero() -> None:
    model = seeded(mlp)()
    pm = thickets.perturb(model)
    one, two = pm.materialize(9, 0.1), pm.materialize(9, -0.1)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(one[name] + two[name], 2 * tensor)
    with pm.members([9], [0.0]), torch.no_grad():
        torch.testing.assert_close(pm(X)[0], model(X))


class Many(nn.Module):
    """All kinds of arguments and outputs."""

    class Output(NamedTuple):
        y: Tensor
        rest: Any

    @dataclasses.dataclass(frozen=True)
    class Extra:
        scaled: Tensor
        label: str

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(
        self, x: Tensor, options: dict[str, Any], mask: Tensor, *more: Tensor, factor: float = 1.0
    ) -> Any:
        y = self.layer(x) * mask * options["gain"] * factor
        for other in more:
            y = y + other
        ordered = OrderedDict(y=y, sum=y.sum(-1))
        return self.Output(y, [{"neg": -y}, (y, None, 3), ordered, self.Extra(y * 2, "label"), y.max(1)])


def test_arguments_and_outputs_in_containers() -> None:
    make = seeded(Many)
    pm = thickets.perturb(make(), strict=True)
    args = (X, {"gain": torch.rand(1, 6), "name": "a"}, torch.rand(4, 1), torch.tensor(2.0), X[:1])
    actual = evaluate(pm, *args, factor=0.5)
    assert isinstance(actual, Many.Output)
    assert isinstance(actual.rest[2], OrderedDict)
    assert isinstance(actual.rest[3], Many.Extra)
    assert isinstance(actual.rest[4], torch.return_types.max)
    assert (actual.rest[1][1:], actual.rest[3].label) == ((None, 3), "label")
    assert actual.rest[2]["sum"].shape == (3, 4)
    assert_members(actual, one_by_one(pm, make, *args, factor=0.5))
    assert set(args[1]) == {"gain", "name"}
    assert args[1]["gain"].shape == (1, 6)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((X, {"gain": X}, X[:3]), {}, r"mask must have leading size B=4 as x has, or 1, got \(3, 6\)"),
        ((X, {"gain": X[:2]}, X), {}, r"options\['gain'\] must have leading size B=4"),
        ((X, {"gain": X}, X, X, X[:2]), {}, r"args\[4\] must have leading size B=4"),
        ((X, {"gain": X}), {"mask": X[:3]}, "mask must have leading size B=4"),
        ((X[:1], {"gain": X}, X), {}, r"options\['gain'\] must have leading size B=1"),
        (
            (torch.tensor(1.0), {}, 3),
            {},
            r"must be given a tensor \[B, ...\] among its arguments, got x, options, mask",
        ),
        ((), {}, "must be given a tensor .*got no arguments"),
    ],
)
def test_arguments_that_cannot_be_folded(args: Any, kwargs: Any, message: str) -> None:
    pm = thickets.perturb(Many())
    with pm.members(SEEDS, SIGMAS), pytest.raises(ValueError, match=message):
        pm(*args, **kwargs)


@pytest.mark.parametrize(
    ("reduce", "message"),
    [
        (lambda y: y.mean(), r"output of the model must have leading size N \* B = 3 \* 4, got \(\)"),
        (lambda y: {"loss": (y, y[:1])}, r"output\['loss'\]\[1\] of the model must have leading size"),
        (lambda y: y.reshape(-1), "output of the model must have leading size"),
    ],
)
def test_outputs_that_are_no_batch_are_refused(reduce: Any, message: str) -> None:
    class Reducing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Any:
            return reduce(self.layer(x))

    pm = thickets.perturb(Reducing())
    with pytest.raises(ValueError, match=message.replace("3 \\* 4", "[13] \\* 4")), pm.members(SEEDS, SIGMAS):
        pm(X)


def test_folded_in_and_out() -> None:
    pm = thickets.perturb(seeded(mlp)())
    expected = evaluate(thickets.perturb(seeded(mlp)()), X)
    with pm.members(SEEDS, SIGMAS, fold=False):
        folded = pm(X.repeat(3, 1))
        assert not pm.slow_modules
        assert torch.equal(folded, expected.flatten(0, 1))
        own = torch.randn(12, 6)
        each = pm(own).view(3, 4, 3)
        with pytest.raises(ValueError, match=r"input must be \[N=3 \* B, ...\], got \(4, 6\)"):
            pm(X)
    for n in range(3):
        with pm.members(SEEDS[n : n + 1], SIGMAS[n : n + 1]):
            assert torch.equal(pm(own[4 * n : 4 * n + 4])[0], each[n])


@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("count", [1, 3])
def test_small_batches(batch: int, count: int) -> None:
    make = seeded(lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(9, 2)))
    pm = thickets.perturb(make(), strict=True)
    x = torch.randn(batch, 2, 4)
    with pm.members(SEEDS[:count], SIGMAS[:count]):
        actual = pm(x)
    assert actual.shape == (count, batch, 2)
    if batch:
        assert_members(actual, one_by_one(pm, make, x)[:count])


def test_no_gradients_are_recorded() -> None:
    pm = thickets.perturb(mlp())
    x = X.clone().requires_grad_()
    with torch.enable_grad(), pm.members(SEEDS, SIGMAS):
        assert not pm(x).requires_grad


def test_arguments_are_not_written() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.mul_(2))

    pm, x = thickets.perturb(InPlace()), X.clone()
    for seeds in ([1], [1, 2]):
        with pm.members(seeds, SIGMAS[: len(seeds)]):
            first, second = pm(x), pm(x)
        assert torch.equal(first, second)
        assert torch.equal(x, X)


def test_the_base_is_never_written() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)))()
    model[2].weight.requires_grad_(False)
    before = state(model)
    pm = thickets.perturb(model)
    evaluate(pm, X)
    with pm.members(SEEDS, SIGMAS, stored=True):
        pm(X)
    member = pm.materialize(1, 0.1)
    for tensor in member.values():
        tensor.zero_()
    assert pm.fingerprint == thickets.perturb(model).fingerprint
    copy.deepcopy(pm)
    repr(pm)
    with pm.members(SEEDS, SIGMAS), pytest.raises(ValueError, match="weight must be"):
        pm(X[:, :2])
    assert state(model) == before
    assert pm.base is model


def test_it_follows_the_base() -> None:
    make = seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)))
    model = make()
    pm = thickets.perturb(model)
    evaluate(pm, X)
    other = pm.materialize(77, 0.3)
    other["1.running_mean"] += 1
    model.load_state_dict(other)

    def changed() -> nn.Module:
        fresh = make()
        fresh.load_state_dict(other)
        return fresh

    assert_members(evaluate(pm, X), one_by_one(pm, changed, X))
    model.train()
    with pytest.raises(RuntimeError, match=r"1 \(BatchNorm1d\) must be in eval mode"), pm.members([1], [0.1]):
        pass
    model[1].eval()
    with pytest.raises(RuntimeError, match=r"2 \(Dropout\) must be in eval mode"), pm.members([1], [0.1]):
        pass
    model[2].p = 0.0
    assert not pm.training
    model[0].weight = nn.Parameter(torch.zeros(8, 6))
    for use in (lambda: pm.materialize(1, 0.1), lambda: evaluate(pm, X)):
        with pytest.raises(RuntimeError, match="parameters were replaced or moved"):
            use()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Dropout(0.1), r"1 \(Dropout\) must be in eval mode"),
        (nn.AlphaDropout(0.1), r"1 \(AlphaDropout\) must be in eval mode"),
        (nn.BatchNorm1d(8), r"1 \(BatchNorm1d\) must be in eval mode"),
        (nn.RReLU(), r"1 \(RReLU\) must be in eval mode"),
        (
            nn.TransformerEncoderLayer(8, 2, 8, batch_first=True),
            r"1.self_attn \(MultiheadAttention\) must be in eval mode",
        ),
        (nn.LSTM(8, 8, 2, dropout=0.1, batch_first=True), r"1 \(LSTM\) must be in eval mode"),
        (nn.BatchNorm1d(8, track_running_stats=False), r"1 \(BatchNorm1d\) must have running statistics"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
@pytest.mark.filterwarnings("ignore:running member by member")
def test_training_mode_is_refused_where_it_matters(module: nn.Module, message: str) -> None:
    pm = thickets.perturb(nn.Sequential(nn.Linear(6, 8), module))
    with pytest.raises(RuntimeError, match=message), pm.members(SEEDS, SIGMAS):
        pm(X)


def test_training_mode_elsewhere_and_dropout_of_zero_run() -> None:
    make = seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Dropout(0.0)))
    pm = thickets.perturb(make().train())
    assert_members(evaluate(pm, X), one_by_one(pm, make, X))


def test_it_is_no_trainable_module() -> None:
    pm = thickets.perturb(mlp())
    assert list(pm.parameters()) == []
    assert pm.eval() is pm
    with pytest.raises(RuntimeError, match="mode must be False"):
        pm.train()
    for move in (pm.double, pm.cpu, lambda: pm.to("cpu")):
        with pytest.raises(RuntimeError, match="cannot be moved or converted"):
            move()
    with pytest.raises(TypeError, match=r"model must be an unperturbed torch.nn.Module, got PerturbedModule"):
        thickets.perturb(pm)
    assert "6 of 6 parameters perturbed" in repr(pm)


def test_materialized_dtypes() -> None:
    half = seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)), torch.bfloat16)
    options = {"include": "0.*"}
    exact, storage = (
        thickets.perturb(half(), **options),
        thickets.perturb(half(), precision="storage", **options),
    )
    assert exact.materialize(1, 0.1)["0.weight"].dtype == torch.float32
    assert storage.materialize(1, 0.1)["0.weight"].dtype == torch.bfloat16
    assert exact.materialize(1, 0.1)["1.weight"].dtype == torch.bfloat16
    rounded = exact.materialize(1, 0.1, dtype=torch.bfloat16)["0.weight"]
    assert torch.equal(rounded, storage.materialize(1, 0.1)["0.weight"])
    wide = storage.materialize(1, 0.1, dtype=torch.float64)["0.weight"]
    assert torch.equal(wide, rounded.double())
    for dtype in (torch.int8, "float32"):
        with pytest.raises(TypeError, match=r"dtype must be a floating-point torch.dtype or None"):
            exact.materialize(1, 0.1, dtype=dtype)
    with pytest.raises(ValueError, match="seed must be in"):
        exact.materialize(-1, 0.1)
    with pytest.raises(ValueError, match="sigma must be finite"):
        exact.materialize(1, float("nan"))


def test_buffers_are_not_perturbed() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)))()
    member = thickets.perturb(model).materialize(1, 0.5)
    assert member.keys() == model.state_dict().keys()
    for name, buffer in model.named_buffers():
        assert torch.equal(member[name], buffer)
        assert member[name].data_ptr() != buffer.data_ptr()


@pytest.mark.parametrize("noise", ["normal", "normal4", "rademacher", "hadamard", "lowrank-2"])
def test_the_evaluated_weights_of_storage_are_the_materialized_bits(noise: str) -> None:
    """A product with the identity returns the weights."""
    layer = seeded(lambda: nn.Linear(16, 5, bias=False), torch.bfloat16)()
    pm = thickets.perturb(layer, noise=noise, precision="storage")
    evaluated = evaluate(pm, torch.eye(16, dtype=torch.bfloat16))
    for weights, seed, sigma in zip(evaluated, SEEDS, SIGMAS, strict=True):
        assert torch.equal(weights.T, pm.materialize(seed, sigma)["weight"])


def test_copies_and_pickles() -> None:
    model = seeded(mlp)()
    pm = thickets.perturb(model, noise="hadamard", exclude=re.compile("bias"), names={"0.weight": "w"})
    expected = evaluate(pm, X)
    for twin in (copy.deepcopy(pm), pickle.loads(pickle.dumps(pm))):
        assert twin.base is not model
        assert twin.fingerprint == pm.fingerprint
        assert twin.parameter_names == pm.parameter_names
        assert torch.equal(evaluate(twin, X), expected)


def test_argument_names() -> None:
    names = ArgumentNames(Many())
    assert list(names.bind((1, 2, 3, 4), {"factor": 5})) == ["x", "options", "mask", "args[3]", "factor"]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_code_sees_new_members_without_recompiling(backend: str) -> None:
    torch._dynamo.reset()
    pm = thickets.perturb(seeded(mlp)())
    compiled = torch.compile(pm, backend=backend, fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seeds in ([1, 2, 3], [4, 5, 6]):
            with pm.members(seeds, SIGMAS):
                torch.testing.assert_close(compiled(X), pm(X))


def test_compiled_code_with_containers_and_folded_arguments() -> None:
    torch._dynamo.reset()
    pm = thickets.perturb(seeded(Many)())
    compiled = torch.compile(pm, backend="eager", fullgraph=True)
    args = (X, {"gain": torch.rand(1, 6)}, torch.rand(4, 1))
    with pm.members(SEEDS, SIGMAS):
        assert_members(compiled(*args).rest[0]["neg"], [member["neg"] for member in _columns(pm(*args))])
    torch._dynamo.reset()
    pm = thickets.perturb(seeded(mlp)())
    compiled = torch.compile(pm, backend="eager", fullgraph=True)
    with pm.members(SEEDS, SIGMAS, fold=False):
        torch.testing.assert_close(compiled(X.repeat(3, 1)), pm(X.repeat(3, 1)))


def _columns(output: Any) -> list[dict[str, Tensor]]:
    return [{"neg": tensor} for tensor in output.rest[0]["neg"]]
