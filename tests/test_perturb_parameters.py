"""A model's parameters: names, views, filters, fingerprint, and models that cannot be perturbed."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from members_oracle import (
    X,
    assert_members,
    evaluate,
    mlp,
    one_by_one,
    seeded,
)
from torch import nn

import thickets
from thickets.perturbed import parameters
from thickets.perturbed.parameters import collect, matching

MLP_NAMES = ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"]


def names_of(model: nn.Module, **options: Any) -> list[str]:
    return [p.name for p in collect(model, **options).values() if p.perturbed]


class Mixed(nn.Module):
    """One parameter of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.embedding = nn.Embedding(7, 5)
        self.conv1 = nn.Conv1d(2, 6, 3)
        self.conv2 = nn.Conv2d(4, 6, (3, 2), groups=2)
        self.transposed = nn.ConvTranspose2d(4, 6, 3)
        self.scalar = nn.Parameter(torch.zeros(()))
        self.cube = nn.Parameter(torch.zeros(2, 3, 4))


def test_matrix_views() -> None:
    views = {p.name: p.view for p in collect(Mixed()).values()}
    assert views == {
        "scalar": (1, 1),
        "cube": (6, 4),
        "linear.weight": (4, 3),
        "linear.bias": (1, 4),
        "embedding.weight": (7, 5),
        "conv1.weight": (6, 6),
        "conv1.bias": (1, 6),
        "conv2.weight": (6, 12),
        "conv2.bias": (1, 6),
        "transposed.weight": (4 * 6 * 3, 3),
        "transposed.bias": (1, 6),
    }


def test_views_decide_the_noise() -> None:
    """materialize is W + sigma eps in the matrix view, of the canonical name, for every kind."""
    for noise in ("normal", "rademacher", "hadamard", "lowrank-2"):
        with pytest.warns(thickets.perturbed.SlowPathWarning):
            pm = thickets.perturb(Mixed(), noise=noise)
        member = pm.materialize(2**63 + 5, 0.5)
        for p in collect(pm.base).values():
            shape = p.view if p.tensor.dim() > 1 else (p.tensor.numel(),)
            eps = thickets.sample_noise(shape, seed=2**63 + 5, name=p.name, noise=noise)
            expected = p.tensor + 0.5 * eps.view(p.tensor.shape)
            torch.testing.assert_close(member[p.name], expected, rtol=1e-6, atol=1e-6)


def test_names_leave_out_wrappers() -> None:
    plain = mlp()
    assert names_of(plain) == MLP_NAMES
    assert names_of(torch.compile(plain, backend="eager")) == MLP_NAMES
    assert names_of(nn.DataParallel(plain)) == MLP_NAMES
    assert names_of(nn.DataParallel(torch.compile(plain, backend="eager"))) == MLP_NAMES
    plain[0] = torch.compile(plain[0], backend="eager")
    assert names_of(plain) == MLP_NAMES
    holder = nn.Module()
    holder.module = nn.Linear(2, 2)
    assert names_of(holder) == ["module.weight", "module.bias"]


@pytest.mark.parametrize(
    "wrap", [lambda m: torch.compile(m, backend="eager"), nn.DataParallel], ids=["compile", "dp"]
)
def test_wrapped_models_are_the_same_experts(wrap: Any) -> None:
    make = seeded(mlp)
    plain = thickets.perturb(make())
    wrapped = thickets.perturb(wrap(make()))
    assert wrapped.fingerprint == plain.fingerprint
    assert torch.equal(evaluate(wrapped, X), evaluate(plain, X))
    wrapped.base.load_state_dict(wrapped.materialize(5, 0.1))
    inner = make()
    inner[0] = torch.compile(inner[0], backend="eager")
    assert torch.equal(evaluate(thickets.perturb(inner), X), evaluate(plain, X))


def test_other_names_give_other_noise() -> None:
    model = seeded(mlp)()
    pm = thickets.perturb(model, names={"0.weight": "encoder.weight"})
    assert pm.parameter_names[0] == "encoder.weight"
    eps = thickets.sample_noise((8, 6), seed=3, name="encoder.weight")
    torch.testing.assert_close(pm.materialize(3, 0.5)["0.weight"], model[0].weight + 0.5 * eps)
    with pytest.raises(
        ValueError, match=r"names must have parameters of the model as keys, got \['9.weight'\]"
    ):
        thickets.perturb(model, names={"9.weight": "a"})


def test_equal_ids_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"different ids, got one for '0.weight' and '3.weight'"):
        thickets.perturb(mlp(), names={"3.weight": "0.weight"})
    monkeypatch.setattr(parameters, "parameter_id", lambda name: len(name.partition(".")[2]))
    with pytest.raises(ValueError, match=r"different ids, got one for '0.weight' and '1.weight'"):
        thickets.perturb(mlp())


def test_views_must_fit_32_bits() -> None:
    def views(*shape: int) -> list[tuple[int, int]]:
        model = nn.Module()
        model.w = nn.Parameter(torch.empty(shape, device="meta"))
        return [p.view for p in collect(model).values()]

    assert views(2**20, 2**32) == [(2**20, 2**32)]
    for shape in ((2**32 + 1, 2), (2, 2**32 + 1), (2**32 + 1,), (2**17, 2**16, 2)):
        with pytest.raises(ValueError, match=r"parameter 'w' must have at most 2\*\*32 rows and columns"):
            views(*shape)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"include": "0.*"}, MLP_NAMES[:2]),
        ({"exclude": "*.bias"}, MLP_NAMES[::2]),
        ({"include": re.compile(r"^[01]\.w")}, ["0.weight", "1.weight"]),
        ({"include": re.compile("WEIGHT", re.IGNORECASE), "exclude": "3.*"}, ["0.weight", "1.weight"]),
        ({"include": ["0.weight", re.compile(r"\.bias$")]}, ["0.weight", "0.bias", "1.bias", "3.bias"]),
        ({"include": ["0.?eight"], "exclude": ["*bias", "3.weight"]}, ["0.weight"]),
    ],
)
def test_filters(options: dict[str, Any], expected: list[str]) -> None:
    model = seeded(mlp)()
    pm = thickets.perturb(model, **options)
    assert pm.parameter_names == expected
    member = pm.materialize(1, 0.1)
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(member[name], tensor)]
    assert changed == expected
    assert_members(evaluate(pm, X), one_by_one(pm, seeded(mlp), X))
    filters = json.loads(json.dumps(pm.filters()))
    assert thickets.perturb(model, **filters).parameter_names == expected
    assert (pm.include, pm.exclude) == (options.get("include"), options.get("exclude"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"include": "9.*"},
            ValueError,
            r"include must match a parameter \(0.weight, .*got '9.\*', matching none",
        ),
        ({"exclude": ["0.*", re.compile("x")]}, ValueError, r"exclude must match a parameter .*got 're:x'"),
        ({"exclude": "*"}, ValueError, "include and exclude must leave a parameter to perturb, got none"),
        ({"include": 3}, TypeError, "include must be globs"),
        ({"exclude": [3]}, TypeError, "exclude must be globs .*got 3"),
        ({"exclude": re.compile(b"x")}, TypeError, "exclude must be globs"),
        ({"noise": "gauss"}, ValueError, "noise must be .*got 'gauss'"),
        ({"precision": "double"}, ValueError, "precision must be 'exact' or 'storage', got 'double'"),
        ({"backend": "tpu"}, ValueError, "backend must be .*tpu"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        thickets.perturb(mlp(), **options)


def test_matching_takes_glob_characters_literally_in_brackets() -> None:
    assert matching("include", "a[[]0]", ["a[0]", "a0"]) == {"a[0]"}


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (
            nn.Linear(2, 2).double(),
            TypeError,
            "parameter 'weight' must be a plain .*torch.float64.*exclude='weight'",
        ),
        (nn.LazyLinear(2), ValueError, "parameter 'weight' must be initialised"),
        (nn.Embedding(3, 2, max_norm=1.0), ValueError, "max_norm must be None"),
        (nn.ReLU(), ValueError, "must leave a parameter to perturb, got none"),
        (torch.nn.functional.relu, TypeError, "model must be an unperturbed torch.nn.Module"),
    ],
    ids=["float64", "lazy", "max-norm", "no-parameters", "function"],
)
def test_models_that_cannot_be_perturbed(model: Any, error: type[Exception], message: str) -> None:
    options = {}
    if isinstance(model, nn.Embedding):
        model, options = nn.Sequential(model, nn.Linear(2, 2)), {"include": "1.*"}
    with pytest.raises(error, match=message):
        thickets.perturb(model, **options)


def test_parameters_of_other_types_must_be_excluded() -> None:
    class Packed(nn.Parameter):
        pass

    model = mlp()
    model[0].weight = Packed(model[0].weight.detach())
    model.codes = nn.Parameter(torch.zeros(3, dtype=torch.int32), requires_grad=False)
    with pytest.raises(TypeError, match=r"parameter 'codes' must be .*torch.int32"):
        thickets.perturb(model)
    with pytest.raises(
        TypeError, match=r"parameter '0.weight' must be a plain .* got a Packed of torch.float32"
    ):
        thickets.perturb(model, exclude="codes")
    thickets.perturb(model, exclude=["codes", "0.weight"])


def test_models_that_cannot_be_copied() -> None:
    class Locked(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Any:
            raise OSError("locked")

    class Fresh(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Any:
            return Fresh(2, 2)

    with pytest.raises(TypeError, match=r"model must allow copy.deepcopy, got OSError: locked"):
        thickets.perturb(Locked(2, 2))
    with pytest.raises(TypeError, match=r"model must allow copy.deepcopy with a memo"):
        thickets.perturb(Fresh(2, 2))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_scripted_modules_are_refused() -> None:
    with pytest.raises(TypeError, match="model must have no scripted modules, got 0"):
        thickets.perturb(nn.Sequential(torch.jit.script(nn.Linear(2, 2))))


def test_fingerprint() -> None:
    def changed(change: Any) -> str:
        model = seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)))()
        with torch.no_grad():
            change(model)
        return thickets.perturb(model).fingerprint

    def nothing(model: nn.Module) -> None:
        model[1].register_buffer("cache", torch.randn(3), persistent=False)

    base = changed(nothing)
    assert re.fullmatch("[0-9a-f]{64}", base)
    assert base == changed(nothing)
    others = [
        changed(lambda model: model[0].weight[0, 0].add_(1e-3)),
        changed(lambda model: model[1].running_var.add_(1e-3)),
        changed(lambda model: model.bfloat16()),
        changed(lambda model: setattr(model[0], "weight", nn.Parameter(model[0].weight.reshape(6, 8)))),
        changed(lambda model: model.append(nn.Linear(1, 1))),
    ]
    assert len({base, *others}) == 6
    model = seeded(mlp)()
    assert thickets.perturb(model, names={"0.bias": "b"}).fingerprint != thickets.perturb(model).fingerprint
    pm = thickets.perturb(model, include="0.*", noise="normal4")
    assert pm.fingerprint == thickets.perturb(model).fingerprint
    with torch.no_grad():
        model[0].weight.data.mul_(2)
    assert pm.fingerprint == thickets.perturb(model).fingerprint
