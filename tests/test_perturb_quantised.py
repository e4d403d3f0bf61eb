"""Linear layers with packed weights, against their own forwards plus the product with materialised noise."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from members_oracle import SEEDS, SIGMAS, randn
from torch import Tensor, nn
from torch.ao.quantization import quantize_dynamic

import thickets
from thickets.perturbed import SlowPathWarning
from thickets.perturbed.guards import Guard
from thickets.perturbed.packed import contents, packed_linears

pytestmark = pytest.mark.filterwarnings(
    "ignore:running member by member", "ignore:.*(deprecated|TypedStorage)"
)

FAMILIES = ["normal", "normal4", "rademacher", "hadamard", "lowrank-2"]


class Int8Linear(nn.Module):
    """Integers and a scale per output, in buffers."""

    def __init__(
        self, inputs: int, outputs: int, bias: bool = True, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.dtype = inputs, outputs, dtype
        weight = torch.randn(outputs, inputs)
        scales = weight.abs().amax(1) / 127
        self.register_buffer("qweight", (weight / scales[:, None]).round().to(torch.int8))
        self.register_buffer("scales", scales.to(dtype))
        self.bias = nn.Parameter(torch.randn(outputs, dtype=dtype)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == self.dtype
        return F.linear(x, self.qweight.to(x.dtype) * self.scales[:, None], self.bias)


class Int4Linear(nn.Module):
    """Two integers to a byte, sizes under the other names, a bias that is a buffer."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.infeatures, self.outfeatures = inputs, outputs
        self.register_buffer("codes", torch.randint(0, 256, (outputs, inputs // 2), dtype=torch.uint8))
        self.register_buffer("bias", torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        low, high = self.codes % 16, self.codes // 16
        return F.linear(x, (torch.stack([low, high], -1).flatten(1) - 8.0) / 8, self.bias)


class PackedParameter(nn.Parameter):
    """Integers with their scale, as some libraries make their parameters."""

    def __new__(cls, data: Tensor) -> PackedParameter:
        return torch.Tensor._make_subclass(cls, data, False)

    def __deepcopy__(self, memo: Any) -> PackedParameter:
        copied = PackedParameter(self.data.clone())
        vars(copied).update(vars(self))
        return copied


class SubclassLinear(nn.Linear):
    """A Linear whose weight is such a parameter; its first forward moves the scale, as bitsandbytes does."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        scale = self.weight.detach().abs().max() / 127
        self.weight = PackedParameter((self.weight.detach() / scale).round().to(torch.int8))
        self.weight.scale = scale
        self.state: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if not self.state:
            self.state = [self.weight.scale]
            del self.weight.scale
        return F.linear(x, self.weight.data.to(x.dtype) * self.state[0], self.bias)


class Composed(Tensor):
    """A tensor made of integers and a scale, which calls itself float32, as those of torchao do."""

    codes: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, codes: Tensor, scale: Tensor) -> Composed:
        tensor = Tensor._make_wrapper_subclass(cls, codes.shape, dtype=scale.dtype)
        tensor.codes, tensor.scale = codes, scale
        return tensor

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes", "scale"], None

    def __deepcopy__(self, memo: Any) -> Tensor:
        return nn.Parameter(Composed(self.codes.clone(), self.scale.clone()), requires_grad=False)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            x, weight, bias = args
            return F.linear(x, weight.codes * weight.scale, bias)
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is torch.ops.aten.detach.default, func
        return Composed(args[0].codes, args[0].scale)


def composed(inputs: int, outputs: int) -> nn.Module:
    """A stock Linear with such a weight."""
    linear, codes = nn.Linear(inputs, outputs), torch.randint(-9, 9, (outputs, inputs), dtype=torch.int8)
    linear.weight = nn.Parameter(Composed(codes, torch.tensor(0.1)), requires_grad=False)
    return linear


class Float8Linear(nn.Module):
    """A float8 weight and a scale that is a float parameter of two dimensions."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        weight = torch.randn(outputs, inputs).to(torch.float8_e4m3fn)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.weight_scale_inv = nn.Parameter(torch.full((1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype) * self.weight_scale_inv)


def dynamic(model: nn.Module) -> nn.Module:
    """torch's own quantised linears: packed by native code, activations quantised by one scale per call."""
    return quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


LAYERS: dict[str, Callable[[int, int], nn.Module]] = {
    "int8": Int8Linear,
    "int8-no-bias": lambda inputs, outputs: Int8Linear(inputs, outputs, bias=False),
    "int4": Int4Linear,
    "subclass": SubclassLinear,
    "composed": composed,
    "float8": Float8Linear,
    "dynamic": lambda inputs, outputs: dynamic(nn.Sequential(nn.Linear(inputs, outputs)))[0],
}


def network(kind: str) -> nn.Module:
    """Two layers of a kind around a norm and a plain layer."""
    torch.manual_seed(0)
    layer = LAYERS[kind]
    return nn.Sequential(layer(6, 9), nn.LayerNorm(9), nn.Tanh(), nn.Linear(9, 4), layer(4, 3)).eval()


class Noisy(nn.Module):
    """A layer's own forward plus the product with one member's noise."""

    def __init__(self, layer: nn.Module, eps: Tensor, bias: Tensor | float) -> None:
        super().__init__()
        self.layer, self.eps, self.shift = layer, eps, bias

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return (y.double() + x.double() @ self.eps.T.double() + self.shift).to(y.dtype)


def member(model: nn.Module, seed: int, sigma: float, perturbed: list[str], noise: str) -> nn.Module:
    """One member as a module: plain parameters written, packed layers around their own forwards."""

    def eps(shape: Any, name: str) -> Tensor:
        if name not in perturbed:
            return torch.zeros(shape)
        return sigma * thickets.sample_noise(shape, seed=seed, name=name, noise=noise)

    own = copy.deepcopy(model)
    packed = packed_linears(own)
    for name, layer in packed.items():
        shape = [getattr(layer, k) for k in ("out_features", "in_features") if hasattr(layer, k)]
        shape = shape or [layer.outfeatures, layer.infeatures]
        bias = layer._parameters.get("bias")
        shift = 0.0 if bias is None else eps((shape[0],), f"{name}.bias")
        own.set_submodule(name, Noisy(layer, eps(shape, f"{name}.weight"), shift))
    with torch.no_grad():
        for name, parameter in own.named_parameters():
            if ".layer." not in name:
                parameter += eps(parameter.shape, name)
    return own


def expected(
    model: nn.Module, x: Tensor, perturbed: list[str], noise: str = "normal", counts: list[int] | None = None
) -> list[Tensor]:
    """Each member's output for its rows of x, or for all of x."""
    own = [x] * len(SEEDS) if counts is None else x.split(counts)
    outputs = []
    for seed, sigma, rows in zip(SEEDS, SIGMAS, own, strict=True):
        with torch.no_grad():
            outputs += [member(model, seed, sigma, perturbed, noise)(rows)] if len(rows) else []
    return outputs


def assert_close(actual: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    assert actual.shape == wanted.shape
    assert actual.dtype == wanted.dtype
    assert (actual.double() - wanted.double()).abs().max() <= tolerance * wanted.double().abs().max()


X = randn(4, 6)
NAMES = {  # of the perturbed parameters that a network has beside its plain ones
    "int8": ["0.bias", "4.bias", "0.weight", "4.weight"],
    "subclass": ["0.bias", "4.bias", "0.weight", "4.weight"],
    "composed": ["0.bias", "4.bias", "0.weight", "4.weight"],
}
PLAIN = ["1.weight", "1.bias", "3.weight", "3.bias"]


@pytest.mark.parametrize("kind", LAYERS)
def test_members_equal_own_forwards_plus_noise(kind: str) -> None:
    model = network(kind)
    names = [*PLAIN, *NAMES.get(kind, ["0.weight", "4.weight"])]
    pm = thickets.perturb(model, strict=True)
    assert sorted(pm.parameter_names) == sorted(names)
    wanted = torch.stack(expected(network(kind), X, names))
    for stored in (False, True):
        with pm.members(SEEDS, SIGMAS, stored=stored):
            assert_close(pm(X), wanted)
    assert pm.slow_modules == []
    with torch.no_grad():
        assert torch.equal(model(X), network(kind)(X))


@pytest.mark.parametrize("noise", FAMILIES)
@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 6), (1, 6), (2, 1, 2, 6)])
def test_every_family_and_shape(noise: str, shape: tuple[int, ...]) -> None:
    pm = thickets.perturb(network("int8"), noise=noise, strict=True)
    x = randn(*shape)
    with pm.members(SEEDS, SIGMAS):
        assert_close(pm(x), torch.stack(expected(pm.base, x, pm.parameter_names, noise)))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("counts", [[2, 0, 3], [0, 1, 0]])
def test_ragged_rows(kind: str, counts: list[int]) -> None:
    pm, x = thickets.perturb(network(kind), strict=True), randn(sum(counts), 2, 6)
    with pm.members(SEEDS, SIGMAS, fold=False, rows=counts):
        assert_close(pm(x), torch.cat(expected(network(kind), x, pm.parameter_names, counts=counts)))


@pytest.mark.parametrize("bias", [False, True])
def test_half_results_are_rounded_once(bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Int8Linear(6, 9, bias, torch.bfloat16))
    pm, x = thickets.perturb(model, strict=True), X.bfloat16()
    with pm.members(SEEDS, SIGMAS):
        y = pm(x)
    assert_close(y, torch.stack(expected(model, x, pm.parameter_names)), 2.0**-8)


def test_inputs_that_all_rows_share() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table, self.project, self.layer = nn.Embedding(5, 6), Int8Linear(6, 4), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + self.project(self.table(torch.arange(x.shape[1])[None]))

    pm, x = thickets.perturb(Positions(), strict=True), randn(5, 3, 6)
    with pm.members(SEEDS, SIGMAS):
        assert_close(pm(x), torch.stack(expected(Positions(), x, pm.parameter_names)))
    with pm.members(SEEDS, SIGMAS, fold=False, rows=[2, 0, 3]):
        assert_close(pm(x), torch.cat(expected(Positions(), x, pm.parameter_names, counts=[2, 0, 3])))


@pytest.mark.parametrize("kind", ["int8", "dynamic", "subclass"])
def test_inside_of_what_runs_member_by_member(kind: str) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.scale = network(kind), nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * self.scale

    for make in (Scaled, lambda: nn.Sequential(Scaled(), nn.Linear(3, 2))):
        torch.manual_seed(1)
        pm = thickets.perturb(make())
        torch.manual_seed(1)
        wanted = torch.stack(expected(make(), X, pm.parameter_names))
        assert len(pm.slow_modules) == 1
        for stored in (False, True):
            with pm.members(SEEDS, SIGMAS, stored=stored):
                assert_close(pm(X), wanted)


def test_half_layers_inside_of_what_runs_member_by_member_keep_their_activations() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.inner = Int8Linear(6, 3, dtype=torch.bfloat16)
            self.scale = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * self.scale

    pm, x = thickets.perturb(Scaled()), X.bfloat16()
    with pm.members(SEEDS, SIGMAS):
        y = pm(x)
    assert_close(y, torch.stack(expected(Scaled(), x, pm.parameter_names)), 2.0**-6)


def test_members_do_not_depend_on_their_neighbours() -> None:
    """torch's dynamic layers quantise all rows of a call by one scale."""
    pm, x = thickets.perturb(network("dynamic"), strict=True), torch.cat([X, 50 * X, X])
    with pm.members(SEEDS, SIGMAS, fold=False):
        together = pm(x)
    for n, (seed, sigma) in enumerate(zip(SEEDS, SIGMAS, strict=True)):
        with pm.members([seed], [sigma], fold=False):
            assert torch.equal(pm(x[4 * n : 4 * n + 4]), together[4 * n : 4 * n + 4])


@pytest.mark.parametrize("kind", LAYERS)
def test_nothing_packed_is_copied_or_written(kind: str) -> None:
    model = network(kind)
    pm = thickets.perturb(model)
    before = [(path, tensor.clone()) for path, tensor in contents(model)]
    held = {id(t) for t in model.buffers()}
    with pm.members(SEEDS, SIGMAS, fold=False, rows=[1, 1, 2]):
        pm(X)
        twin = pm.module
    assert all(isinstance(t, Guard) or id(t) in held for t in twin.buffers())  # guards have no memory
    assert type(model[0]) is type(network(kind)[0])
    for (path, old), (_, new) in zip(before, contents(model), strict=True):
        assert torch.equal(old, new), path


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"exclude": "*weight"}, ["1.bias", "3.bias", "0.bias", "4.bias"]),
        ({"exclude": "*bias"}, ["1.weight", "3.weight", "0.weight", "4.weight"]),
        ({"include": "4.*"}, ["4.weight", "4.bias"]),
        ({"include": "0.weight"}, ["0.weight"]),
        ({"include": ["1.*", "3.*"]}, PLAIN),
        ({"names": {"0.weight": "first"}, "include": ["first", "3.*"]}, ["3.weight", "3.bias", "first"]),
    ],
)
def test_filters_and_names(options: dict[str, Any], names: list[str]) -> None:
    pm = thickets.perturb(network("int8"), strict=True, **options)
    assert sorted(pm.parameter_names) == sorted(names)
    wanted = expected(network("int8"), X, names)
    with pm.members(SEEDS, SIGMAS):
        y = pm(X)
    if "names" not in options:
        assert_close(y, torch.stack(wanted))


def test_another_name_is_another_noise() -> None:
    torch.manual_seed(0)
    layer = Int8Linear(6, 3, bias=False)
    pm = thickets.perturb(nn.Sequential(layer), names={"0.weight": "first"})
    with pm.members([5], [0.1]):
        y = pm(X)
    eps = thickets.sample_noise((3, 6), seed=5, name="first")
    assert_close(y[0], layer(X) + 0.1 * X @ eps.T)


def test_the_scales_of_packed_weights_are_no_parameters() -> None:
    with pytest.raises(ValueError, match=r"exclude must match a parameter \(.*\), got '\*scale_inv'"):
        thickets.perturb(network("float8"), exclude="*scale_inv")


@pytest.mark.parametrize("kind", LAYERS)
def test_the_fingerprint_counts_what_is_packed(kind: str) -> None:
    same, other = thickets.perturb(network(kind)), network(kind)
    assert thickets.perturb(other).fingerprint == same.fingerprint
    assert thickets.perturb(other, exclude="0.weight").fingerprint == same.fingerprint
    torch.manual_seed(7)
    other[4] = LAYERS[kind](4, 3)
    if getattr(network(kind)[4], "bias", None) is not None and not callable(other[4].bias):
        with torch.no_grad():
            other[4].bias.copy_(network(kind)[4].bias)  # so that the packed weight alone differs
    assert thickets.perturb(other).fingerprint != same.fingerprint


def test_a_packed_member_cannot_be_written_down() -> None:
    pm = thickets.perturb(network("int8"))
    message = r"materialize\(\) must be used where no perturbed weight is packed, got 2, '0.weight' for one"
    with pytest.raises(RuntimeError, match=message):
        pm.materialize(1, 0.1)


@pytest.mark.parametrize("kind", ["int8", "float8", "dynamic"])
def test_packed_layers_that_are_excluded_are_copied_as_they_are(kind: str) -> None:
    model = network(kind)
    pm = thickets.perturb(model, exclude=["0.*", "4.*"])
    own = network(kind)
    own.load_state_dict(pm.materialize(SEEDS[0], SIGMAS[0]))
    with pm.members(SEEDS, SIGMAS), torch.no_grad():
        assert_close(pm(X)[0], own(X))
        assert_close(pm(X), torch.stack(expected(model, X, PLAIN)))


def test_storage_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"precision must be 'exact' where weights are packed, as '0\.weight' is"
    ):
        thickets.perturb(network("int8"), precision="storage")
    assert thickets.perturb(network("int8"), precision="storage", exclude="*[04].weight").slow_modules == []


@pytest.mark.parametrize(("kind", "attribute"), [("float8", "weight"), ("int8", "qweight")])
def test_a_packed_weight_is_guarded(kind: str, attribute: str) -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = LAYERS[kind](6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + getattr(self.layer, attribute).float().sum()

    pm = thickets.perturb(Reader())
    with (
        pm.members(SEEDS, SIGMAS),
        pytest.raises(RuntimeError, match=r"read the perturbed parameter 'layer\.weight'"),
    ):
        pm(X)


def test_replaced_parameters_are_noticed() -> None:
    model = network("subclass")
    pm = thickets.perturb(model)
    model[0].weight = PackedParameter(model[0].weight.data.clone())
    with pytest.raises(RuntimeError, match="parameters were replaced or moved"), pm.members(SEEDS, SIGMAS):
        pass


def test_changes_of_packed_buffers_are_followed() -> None:
    model = network("int8")
    pm = thickets.perturb(model, strict=True)
    with torch.no_grad():
        model[0].scales *= 2
    old = model[4].qweight
    model[4].qweight = -old
    with pm.members(SEEDS, SIGMAS):
        assert_close(pm(X), torch.stack(expected(model, X, pm.parameter_names)))
    assert torch.equal(old, -model[4].qweight)


def test_hooks_run_once_and_see_the_noise() -> None:
    model, seen = network("int8"), []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    pm = thickets.perturb(model, strict=True)
    with pm.members(SEEDS, SIGMAS):
        pm(X)  # checks first
        seen.clear()
        pm(X)
    (output,) = seen
    layer = nn.Sequential(network("int8")[0])
    names = {"0.weight", "0.bias"}
    assert_close(output.view(3, 4, 9), torch.stack(expected(layer, X, list(names))))


def test_a_forward_that_a_library_put_on_the_instance_runs() -> None:
    model = network("int8")
    forward = model[0].forward
    model[0].forward = lambda x: 2 * forward(x)
    pm = thickets.perturb(model, strict=True)
    with pm.members(SEEDS, SIGMAS):
        assert_close(pm(X), torch.stack(expected(model, X, pm.parameter_names)))


class Masked(nn.Linear):
    """A plain weight under a mask of booleans."""

    def __init__(self) -> None:
        super().__init__(6, 3)
        self.register_buffer("mask", torch.ones(3, 6, dtype=torch.bool))


class Factors(nn.Module):
    """Two factors in place of a matrix, and an order of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 6, 30
        self.left, self.right = nn.Parameter(torch.ones(30, 2)), nn.Parameter(torch.ones(2, 6))
        self.register_buffer("order", torch.arange(2))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.left @ self.right).T


class Wrapped(nn.Module):
    """A linear of another library's around a plain one."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features, self.layer = 6, 3, nn.Linear(6, 3)
        self.register_buffer("codes", torch.zeros(64, dtype=torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Paired(Int8Linear):
    """Integers, but a forward of two tensors."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x + y)


@pytest.mark.parametrize(
    "make",
    [Masked, Factors, Wrapped, lambda: Paired(6, 3), lambda: nn.Linear(6, 3), lambda: nn.LazyLinear(3)],
    ids=["masked", "factors", "wrapped", "two-inputs", "plain", "lazy"],
)
def test_other_modules_are_not_taken_for_packed_linears(make: Any) -> None:
    assert packed_linears(nn.Sequential(make())) == {}


def test_no_warning_where_all_is_fast() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", SlowPathWarning)
        thickets.perturb(network("int8"))


def test_a_language_model_prefills_and_decodes() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=50
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            model.set_submodule(name, Int8Linear(module.in_features, module.out_features, bias=False))
    pm = thickets.perturb(model, include="*.weight", strict=True)
    assert {"model.layers.1.mlp.up_proj.weight", "lm_head.weight"} <= set(pm.parameter_names)
    tokens, counts = torch.randint(0, 50, (5, 6)), [2, 0, 3]
    with pm.members(SEEDS, SIGMAS, fold=False, rows=counts), torch.no_grad():
        logits = pm(tokens, use_cache=False).logits
        cache = pm.module(tokens[:, :4]).past_key_values
        decoded = [pm.module(tokens[:, [i]], past_key_values=cache).logits for i in (4, 5)]
    own = [
        member(model, s, sigma, pm.parameter_names, "normal") for s, sigma in zip(SEEDS, SIGMAS, strict=True)
    ]
    with torch.no_grad():
        wanted = [one(part).logits for one, part in zip(own, tokens.split(counts), strict=True) if len(part)]
    assert_close(logits, torch.cat(wanted))
    assert_close(torch.cat(decoded, 1), torch.cat(wanted)[:, 4:])
