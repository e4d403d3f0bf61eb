"""The ops inside torch's compiler: opcheck, fakes, one graph, new members without recompilation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import Place
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

import thickets
from thickets import ops

MEMBERS = (torch.tensor([1, -2]), torch.tensor([0.1, -0.2]))
POSITION = ("w", "normal", 0.5, (2, 3), 9)
WHOLE = ("w", "hadamard", 1.0, (0, 0), None)
TABLE = torch.randn(5, 6)

X, ROWS, OFFSETS = torch.randn(2, 3, 6), torch.randn(4, 6), torch.tensor([0, 1, 4])
BIAS = torch.randn(5)

CASES: dict[str, tuple[Callable, tuple[Any, ...]]] = {
    "linear": (
        ops.perturbed_linear,
        (X, TABLE, BIAS, *MEMBERS, None, *POSITION, "b", 2.0, "exact", "auto"),
    ),
    "linear, ragged": (
        ops.perturbed_linear,
        (ROWS, TABLE, None, *MEMBERS, OFFSETS, *WHOLE, None, 1.0, "storage", "auto"),
    ),
    "linear, shared, bfloat16": (
        ops.perturbed_linear,
        (ROWS, TABLE.bfloat16(), None, *MEMBERS, None, *WHOLE, None, 1.0, "storage", "reference"),
    ),
    "linear, strided": (
        ops.perturbed_linear,
        (
            X.mT.contiguous().mT,
            TABLE.T.contiguous().T,
            BIAS,
            *MEMBERS,
            None,
            *WHOLE,
            None,
            1.0,
            "exact",
            "auto",
        ),
    ),
    "linear, no columns": (
        ops.perturbed_linear,
        (X[..., :0], TABLE[:, :0], BIAS, *MEMBERS, None, *WHOLE, None, 1.0, "exact", "auto"),
    ),
    "noise_linear_": (ops.noise_linear_, (torch.randn(2, 3, 5), X, *MEMBERS, None, *POSITION, "auto")),
    "noise_linear_, strided": (
        ops.noise_linear_,
        (torch.randn(5, 4).T, ROWS, *MEMBERS, OFFSETS, *WHOLE, "auto"),
    ),
    "embedding": (
        ops.perturbed_embedding,
        (torch.tensor([[0, 4], [2, 2]]), TABLE, *MEMBERS, None, *POSITION, "exact", "auto"),
    ),
    "vector": (ops.perturbed_vector, (BIAS, *MEMBERS, "b", "normal4", 1.0, (0, 3), None, "exact", "auto")),
    "vector, float16": (
        ops.perturbed_vector,
        (BIAS.half(), *MEMBERS, "b", "normal4", 1.0, (0, 3), None, "storage", "auto"),
    ),
    "perturb_": (
        ops.perturb_,
        (torch.zeros(5, 6).bfloat16(), TABLE, MEMBERS[0][:1], MEMBERS[1][:1], *POSITION, "auto"),
    ),
    "accumulate_": (ops.accumulate_, (TABLE.clone(), *MEMBERS, *POSITION, "auto")),
    "sample_noise": (ops.sample_noise, (MEMBERS[0][:1], 5, 7, "w", "rademacher", (1, 2), 9, "auto")),
    "grouped_linear": (ops.grouped_linear, (X, torch.randn(2, 5, 6), torch.randn(2, 5), None, "auto")),
    "grouped_linear, ragged": (ops.grouped_linear, (ROWS, torch.randn(2, 5, 6), None, OFFSETS, "auto")),
}


@pytest.mark.parametrize("case", CASES)
def test_opcheck(case: str) -> None:
    op, arguments = CASES[case]
    torch.library.opcheck(op, arguments)


@pytest.mark.parametrize("case", CASES)
def test_fakes_have_the_shape_stride_and_dtype_of_the_result(case: str) -> None:
    op, arguments = CASES[case]
    real = op(*arguments)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = op(*arguments)
    if real is None:
        assert fake is None
    else:
        assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())


def test_every_op_is_covered() -> None:
    defined = {name for name in vars(ops).values() if isinstance(name, torch._ops.OpOverload)}
    assert defined == {op for op, _ in CASES.values()}


class Net(nn.Module):
    """One call of every public function, as a model's forward may make them."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.tail = {"backend": place.backend}
        self.embedding = nn.Parameter(torch.randn(11, 8))
        self.weight = nn.Parameter(torch.randn(6, 8))
        self.bias = nn.Parameter(torch.randn(6))
        self.gain = nn.Parameter(torch.randn(6))
        self.to(place.device)

    def forward(self, ids: Tensor, seeds: Tensor, sigmas: Tensor) -> tuple[Tensor, ...]:
        tail = {"seeds": seeds, "sigmas": sigmas, **self.tail}
        h = thickets.perturbed_embedding(ids, self.embedding, name="e", **tail)
        y = thickets.perturbed_linear(
            h, self.weight, self.bias, name="w", bias_name="b", noise="hadamard", **tail
        )
        y = y * thickets.perturbed_vector(self.gain, name="g", **tail)[:, None]
        y = thickets.noise_linear_(y, h, name="q", noise="lowrank-1", **tail)
        stored = torch.empty_like(self.weight).expand(2, 6, 8).contiguous()
        thickets.perturb_(stored[0], self.weight, seed=seeds[0], sigma=sigmas[:1], name="w", **self.tail)
        total = thickets.accumulate_(
            self.weight.clone(), seeds=seeds, coefficients=sigmas, name="w", **self.tail
        )
        eps = thickets.sample_noise((6, 8), seed=seeds[1], name="w", device=ids.device, **self.tail)
        stored[1] = self.weight + eps
        return y, total, thickets.grouped_linear(h, stored, **self.tail)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_as_one_graph_and_sees_new_members(place: Place, dynamic: bool) -> None:
    torch._dynamo.reset()
    net = Net(place)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    ids = torch.tensor([[0, 10, 3], [3, 3, 7]], device=place.device)

    def check(ids: Tensor, seeds: list[int], sigmas: list[float]) -> None:
        members = torch.tensor(seeds, device=place.device), torch.tensor(sigmas, device=place.device)
        for actual, expected in zip(compiled(ids, *members), net(ids, *members), strict=True):
            torch.testing.assert_close(actual, expected)

    with torch.no_grad():
        check(ids, [1, 2], [0.1, 0.2])
        with torch.compiler.set_stance("fail_on_recompile"):
            check(ids, [-9, 2], [-0.5, 0.0])
            if dynamic:
                check(ids.repeat(1, 3), [-9, 2], [-0.5, 0.0])


def test_members_may_be_constants_of_the_graph(place: Place) -> None:
    torch._dynamo.reset()
    weight = torch.randn(5, 6).to(place.device)

    def forward(weight: Tensor) -> Tensor:
        return thickets.perturbed_linear(
            torch.ones_like(weight),
            weight,
            seeds=[1, 2**64 - 1],
            sigmas=(0.1, -0.2),
            name="w",
            backend=place.backend,
        )

    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(weight), forward(weight))


def test_compiles_with_the_default_compiler(place: Place) -> None:
    torch._dynamo.reset()
    x, y, weight = (torch.randn(shape).to(place.device) for shape in ((2, 3, 6), (2, 3, 5), (5, 6)))
    tail = {"seeds": MEMBERS[0].to(place.device), "sigmas": MEMBERS[1].to(place.device), "name": "w"}

    def forward(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        product = thickets.perturbed_linear(x, weight, **tail, backend=place.backend)
        return product, thickets.noise_linear_(y, x, **tail, backend=place.backend)

    expected = forward(x, y.clone())
    for actual, eager in zip(torch.compile(forward, fullgraph=True)(x, y), expected, strict=True):
        assert torch.equal(actual, eager)
    assert torch.equal(y, expected[1])


def test_a_gradient_is_refused_while_compiling() -> None:
    torch._dynamo.reset()
    weight = nn.Parameter(torch.randn(5, 6))
    compiled = torch.compile(
        lambda: thickets.perturbed_vector(weight[0], seeds=[1], sigmas=[0.1], name="w"), backend="aot_eager"
    )
    with pytest.raises(Exception, match=r"no gradient, but weight requires grad: use torch.no_grad"):
        compiled()
