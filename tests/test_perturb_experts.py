"""Stacked experts and routers: known by what they compute, or run member by member."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from members_oracle import SEEDS, SIGMAS, assert_members, evaluate, one_by_one, randn, seeded
from torch import Tensor, nn

import thickets
from thickets.perturbed import SlowPathWarning
from thickets.perturbed.experts import StackedExperts
from thickets.perturbed.layers import known_layer
from thickets.perturbed.parameters import collect


class Experts(nn.Module):
    """As the library transformers stacks them since its version 5."""

    def __init__(self, count: int = 5, width: int = 6, inside: int = 4) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(count, 2 * inside, width))
        self.down_proj = nn.Parameter(torch.randn(count, width, inside))
        self.act_fn = nn.SiLU()

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        result = torch.zeros_like(hidden_states)
        for expert in range(len(self.down_proj)):
            token, place = torch.where(top_k_index == expert)
            gate, up = F.linear(hidden_states[token], self.gate_up_proj[expert]).chunk(2, -1)
            y = F.linear(self.act_fn(gate) * up, self.down_proj[expert])
            result.index_add_(0, token, (y * top_k_weights[token, place, None]).to(result.dtype))
        return result


class Clamped(Experts):
    """Another gate."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        return super().forward(hidden_states, top_k_index, top_k_weights).clamp(-1, 1)


class Router(nn.Module):
    def __init__(self, count: int = 5, width: int = 6, bias: bool = False) -> None:
        super().__init__()
        self.hidden_dim, self.top_k = width, 2
        self.weight = nn.Parameter(torch.randn(count, width))
        if bias:
            self.bias = nn.Parameter(torch.randn(count))
        self.register_buffer("correction", torch.linspace(-0.5, 0.5, count))

    def logits(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self._parameters.get("bias"))

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.logits(hidden_states.reshape(-1, self.hidden_dim))
        chosen = (logits.float().sigmoid() + self.correction).topk(self.top_k, dim=-1).indices
        return logits, logits.float().softmax(-1).gather(1, chosen).to(logits.dtype), chosen


class NormedRouter(Router):
    """Its logits are no product with the input."""

    def logits(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x), self.weight)


class Block(nn.Module):
    """A mixture with an expert that all tokens share, as blocks of transformers are: tokens flattened."""

    __module__ = "transformers.models.of.the.tests"

    def __init__(self, experts: type[nn.Module] = Experts, router: type[nn.Module] = Router, **options: Any):
        super().__init__()
        self.gate, self.experts, self.shared = router(**options), experts(), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, 6)
        _, weights, choices = self.gate(flat)
        return (self.experts(flat, choices, weights) + self.shared(flat)).view(x.shape)


def check(make: Any, x: Tensor, slow: list[str] | None = None, **options: Any) -> None:
    """Members, fused and stored, equal, ragged and alone, against ordinary forwards."""
    make = seeded(make)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SlowPathWarning)
        pm = thickets.perturb(make(), **options)
        expected = one_by_one(pm, make, x)
        assert_members(evaluate(pm, x), expected)
        for stored in (False, True):
            with pm.members(SEEDS, SIGMAS, stored=stored, fold=False, rows=[1, 0, 3]):
                ragged = pm(torch.cat([x[:1], x[:3]]))
            assert_members(ragged[None], [torch.cat([expected[0][:1], expected[2][:3]])])
    assert [text.split(" (")[0] for text in pm.slow_modules] == (slow or [])


@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("shape", [(4, 6), (4, 1, 6), (4, 3, 6), (3, 9, 6)], ids=str)
def test_members_equal_ordinary_forwards(shape: tuple[int, ...], bias: bool) -> None:
    check(lambda: Block(bias=bias), randn(*shape))


@pytest.mark.parametrize("noise", ["normal4", "rademacher", "hadamard", "lowrank-2"])
def test_families(noise: str) -> None:
    check(Block, randn(4, 3, 6), noise=noise)


@pytest.mark.parametrize(
    "exclude",
    ["experts.*", "experts.down_proj", "experts.gate_up_proj", "gate.*", "shared.*", ["experts.*", "gate.*"]],
    ids=str,
)
def test_what_is_left_out_is_the_base_s(exclude: Any) -> None:
    check(Block, randn(4, 3, 6), exclude=exclude)


def test_other_experts_run_member_by_member() -> None:
    check(lambda: nn.Sequential(Block(Clamped)), randn(4, 3, 6), slow=["0"])


def test_another_router_runs_member_by_member() -> None:
    check(lambda: nn.Sequential(Block(router=NormedRouter)), randn(4, 3, 6), slow=["0"])


def test_expert_modules_run_member_by_member_whatever_their_rows() -> None:
    """Each row has a token for either expert, so that each is given as many as the batch has rows."""

    class Separate(nn.Module):
        __module__ = "transformers.models.of.the.tests"

        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            flat, y = x.reshape(-1, 6), torch.zeros_like(x).reshape(-1, 6)
            for expert, layer in enumerate(self.experts):
                rows = (torch.arange(len(flat)) % 2 == expert).nonzero()[:, 0].flip(0)
                y[rows] = layer(flat[rows])
            return y.view(x.shape)

    check(lambda: nn.Sequential(Separate()), randn(4, 2, 6), slow=["0"])


def test_a_mean_over_experts_that_another_library_wrote_stays_fast() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return sum(expert(x) for expert in self.experts) / 2

    check(Mean, randn(4, 2, 6))


def test_a_whole_stack_is_one_parameter_elsewhere() -> None:
    """Its view is (E * O, K), so expert e's noise starts at row e * O."""
    make = seeded(Block)
    pm = thickets.perturb(make())
    stack = pm.materialize(5, 0.5)["experts.down_proj"]
    eps = thickets.sample_noise((5 * 6, 4), seed=5, name="experts.down_proj")
    torch.testing.assert_close(stack, make().experts.down_proj + 0.5 * eps.view(5, 6, 4))


def test_half_precision_rounds_once_per_product() -> None:
    make = seeded(Block, torch.bfloat16)
    pm, x = thickets.perturb(make(), strict=True), randn(4, 3, 6).bfloat16()
    expected = one_by_one(pm, make, x.float(), dtype=torch.float32)
    actual = evaluate(pm, x)
    assert actual.dtype == torch.bfloat16
    close = (actual.float() - torch.stack(expected)).abs() <= 4e-2 * torch.stack(expected).abs().max()
    assert close.float().mean() > 0.9  # a choice between two as good experts may differ


@pytest.mark.parametrize("make", [Experts, Clamped])
def test_recognition(make: type[nn.Module]) -> None:
    model = make()
    slots = {p.name: p for p in collect(model).values()}
    assert isinstance(known_layer(model, slots), StackedExperts) == (make is Experts)


def test_strange_stacks_are_not_recognised() -> None:
    for change in ({"down_proj": torch.zeros(5, 6, 3)}, {"gate_up_proj": torch.zeros(5, 8, 7)}):
        model = Experts()
        for name, tensor in change.items():
            setattr(model, name, nn.Parameter(tensor))
        slots = {p.name: p for p in collect(model).values()}
        assert known_layer(model, slots) == "it uses its parameters itself"
    hooked = Experts()
    hooked.register_forward_hook(lambda *_: None)
    slots = {p.name: p for p in collect(hooked).values()}
    assert known_layer(hooked, slots) == "it uses its parameters itself"


class Scaled(nn.Embedding):
    """As Gemma's: the look-up times a buffer."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes, padding_idx=0)
        self.register_buffer("embed_scale", torch.tensor(2.5), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * self.embed_scale.to(self.weight.dtype)


class Masked(nn.Embedding):
    """Its rows depend on the ids in another way too."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * (ids != 1)[..., None]


@pytest.mark.parametrize("shape", [(4,), (4, 3), (2, 3, 2)], ids=str)
def test_scaled_embeddings(shape: tuple[int, ...]) -> None:
    ids = torch.randint(0, 11, shape, generator=torch.Generator().manual_seed(1))
    make = seeded(lambda: Scaled(11, 6))
    pm = thickets.perturb(make(), strict=True)
    assert_members(evaluate(pm, ids), one_by_one(pm, make, ids))
    pm.base.embed_scale.fill_(-3.0)

    def rescaled() -> nn.Module:
        model = make()
        model.embed_scale.fill_(-3.0)
        return model

    assert_members(evaluate(pm, ids), one_by_one(pm, rescaled, ids))


def test_an_embedding_that_looks_at_ids_runs_member_by_member() -> None:
    ids = torch.tensor([[0, 1, 2], [1, 4, 5]])
    make = seeded(lambda: Masked(11, 6))
    with pytest.warns(SlowPathWarning, match="its forward is not that of Embedding"):
        pm = thickets.perturb(make())
    assert_members(evaluate(pm, ids), one_by_one(pm, make, ids))
