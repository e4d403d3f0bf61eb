"""RMS norms that libraries write themselves: known by what they compute, or run member by member."""

from __future__ import annotations

import pytest
import torch
from members_oracle import TOLERANCE, assert_members, check, evaluate, one_by_one, randn, seeded
from torch import Tensor, nn

import thickets


class LlamaNorm(nn.Module):
    """As Llama, Qwen, Mistral, OLMo and T5 have it: the 16-bit result of the norm times the weight."""

    def __init__(self, width: int, eps: float = 1e-6, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, dtype=dtype))
        self.variance_epsilon = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        x = hidden_states.to(torch.float32)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * x.to(hidden_states.dtype)


class GemmaNorm(nn.Module):
    """As Gemma has it: a weight around zero, the result in the dtype of the input."""

    def __init__(self, width: int, eps: float = 1e-6, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, dtype=dtype))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
        return (y * (1.0 + self.weight.float())).type_as(x)


class CentredNorm(LlamaNorm):
    """Subtracts the mean, which no RMS norm does."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states - hidden_states.mean(-1, keepdim=True))


class CarelessNorm(LlamaNorm):
    """Has an eps and does not use it."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        x = hidden_states.float()
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True))).to(hidden_states.dtype)


class GatedNorm(LlamaNorm):
    """Takes a second input."""

    def forward(self, hidden_states: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(hidden_states) * gate


every_form = pytest.mark.parametrize("form", [LlamaNorm, GemmaNorm])


@every_form
@pytest.mark.parametrize("eps", [1e-6, 0.1])
@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 6), (2, 3, 5, 6)], ids=str)
def test_members_equal_ordinary_forwards(form: type, eps: float, shape: tuple[int, ...]) -> None:
    check(lambda: nn.Sequential(nn.Linear(6, 6), form(6, eps), nn.Linear(6, 3)), randn(*shape))


@every_form
def test_one_position_for_all_rows(form: type) -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions, self.norm = nn.Embedding(5, 6), form(6)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.norm(self.positions(torch.arange(5)[None]))

    check(Positions, randn(4, 5, 6))


@every_form
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("inputs", [torch.float32, torch.bfloat16], ids=str)
def test_dtypes_are_those_of_the_plain_forward(form: type, weights: torch.dtype, inputs: torch.dtype) -> None:
    """Llama's product with a float32 weight is float32, Gemma's result has the dtype of the input."""
    make = seeded(lambda: form(6), weights)
    pm, x = thickets.perturb(make(), strict=True), randn(4, 6).to(inputs)
    actual, expected = evaluate(pm, x), one_by_one(pm, make, x)
    assert actual.dtype == expected[0].dtype
    assert_members(actual, expected, max(TOLERANCE[weights], TOLERANCE[inputs]))


@pytest.mark.parametrize("form", [CentredNorm, CarelessNorm])
def test_what_computes_something_else_runs_member_by_member(form: type) -> None:
    check(lambda: nn.Sequential(nn.Linear(6, 6), form(6)), randn(4, 6), slow=["1"])


def test_a_norm_of_two_inputs_runs_member_by_member() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = GatedNorm(6)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x, x + 1)

    check(Gated, randn(4, 6), slow=["norm"])


def test_an_instance_with_a_forward_of_its_own_runs_member_by_member() -> None:
    norm = LlamaNorm(6)
    norm.forward = lambda x: 2 * x * norm.weight  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match=r"strict=True.*LlamaNorm.*it uses its parameters itself"):
        thickets.perturb(nn.Sequential(norm), strict=True)
