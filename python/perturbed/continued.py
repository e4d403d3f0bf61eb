"""Layers that go on from a look-up or a product of their own: scaled embeddings, routers of experts.

Such a module computes g(W[ids]) or g(x W^T + b) with a g that takes rows one by one. It is then the same
module with the rows found for its table and their numbers for ids, or with an identity for W and the product
for x, and so its own forward makes g for all members. It is tried on numbers, as norms.py does, and known if
both ways give the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .members import Members
from .parameters import NamedParameter

Slots = Mapping[str, NamedParameter]
MOST_EXPERTS = 1024  # a router's identity has their square of entries


class ContinuedEmbedding:
    """A layer function: the members' rows, and the module's forward on them."""

    def __init__(self, kind: type[nn.Module]) -> None:
        self.kind = kind

    def __call__(self, module: Any, ids: Tensor, members: Members, slots: Slots) -> Tensor:
        return self.of_rows(module, members.embedding(ids, slots["weight"]))

    def of_rows(self, module: nn.Module, rows: Tensor) -> Any:
        """g(rows) of rows [..., D]."""
        ids = torch.arange(rows[..., 0].numel(), device=rows.device).view(rows.shape[:-1])
        return _forward(self.kind, module, {"weight": rows.flatten(0, -2)}, ids, padding_idx=None)


class Router:
    """A layer function: the members' logits, and the module's choice of experts from them."""

    def __init__(self, kind: type[nn.Module], widens: bool) -> None:
        self.kind, self.widens = kind, widens

    def __call__(self, module: Any, x: Tensor, members: Members, slots: Slots) -> Any:
        x = x.float() if self.widens else x
        return self.of_logits(
            module, members.token_linear(x, slots["weight"], slots.get("bias")), x.shape[-1]
        )

    def of_logits(self, module: nn.Module, logits: Tensor, inputs: int) -> Any:
        """g(logits) of logits [T, E]; `inputs` is the module's number of inputs, which are E now."""
        outputs = logits.shape[-1]
        weights = {"weight": torch.eye(outputs, dtype=logits.dtype, device=logits.device)}
        if "bias" in module._parameters:
            weights["bias"] = logits.new_zeros(outputs)
        return _forward(self.kind, module, weights, logits, **_sized(module, inputs, outputs))


def continued(module: nn.Module, slots: Slots) -> ContinuedEmbedding | Router | None:
    """The layer function of a module of one of these kinds; None for any other."""
    weight = slots.get("weight")
    plain = not (module._modules or module._forward_pre_hooks or module._forward_hooks)
    if not plain or weight is None or weight.tensor.dim() != 2 or len(weight.segments) > 1:
        return None
    try:
        with torch.no_grad():
            if isinstance(module, nn.Embedding):
                return _embedding(module, weight.tensor)
            if slots.keys() <= {"weight", "bias"} and weight.tensor.shape[0] <= MOST_EXPERTS:
                return _router(module, weight.tensor)
    except Exception:  # whatever it is, it is neither
        return None
    return None


def _embedding(module: nn.Embedding, weight: Tensor) -> ContinuedEmbedding | None:
    layer = ContinuedEmbedding(type(module))
    table = _numbers(7, weight.shape[1]).to(weight)
    ids = torch.tensor([[1, 5, 2], [0, 6, 5]], device=weight.device)
    expected = _forward(layer.kind, module, {"weight": table}, ids, padding_idx=None)
    shape = (*ids.shape, weight.shape[1])
    if module.max_norm is not None or not isinstance(expected, Tensor) or expected.shape != shape:
        return None
    return layer if torch.equal(layer.of_rows(module, table[ids]), expected) else None


def _router(module: nn.Module, weight: Tensor, tokens: int = 4) -> Router | None:
    outputs = weight.shape[0]
    inputs = outputs if outputs == weight.shape[1] else 5
    weights = {"weight": _numbers(outputs, inputs)}
    if "bias" in module._parameters:
        weights["bias"] = _numbers(outputs)
    weights = {name: tensor.to(weight.device) for name, tensor in weights.items()}
    x = _numbers(tokens, inputs).to(weight.device)
    sizes = _sized(module, weight.shape[1], inputs)

    def outcome(dtype: torch.dtype) -> Any:
        typed = {name: tensor.to(dtype) for name, tensor in weights.items()}
        return _forward(type(module), module, typed, x.to(dtype), **sizes)

    expected = _parts(outcome(torch.float32))
    chooses = any(not part.is_floating_point() for part in expected)
    if not chooses and not type(module).__module__.startswith("transformers"):
        return None  # whatever else computes a product is no router
    logits = nn.functional.linear(x[:2], weights["weight"], weights.get("bias"))
    found = _parts(Router(type(module), widens=False).of_logits(module, logits, weight.shape[1]))
    if not all(torch.allclose(one, whole[:2], rtol=1e-5) for one, whole in zip(found, expected, strict=True)):
        return None
    narrow = next(part.dtype for part in _parts(outcome(torch.bfloat16)) if part.is_floating_point())
    return Router(type(module), widens=narrow == torch.float32)


def _parts(output: Any) -> tuple[Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


def _sized(module: nn.Module, inputs: int, others: int) -> dict[str, int]:
    """The attributes that say how many inputs a module takes, changed to another number."""
    return {name: others for name, value in vars(module).items() if value == inputs and type(value) is int}


def _numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _forward(
    kind: type[nn.Module], module: nn.Module, weights: dict[str, Tensor], x: Tensor, **attributes: Any
) -> Any:
    """What the class computes with these weights and attributes in place of the module's."""
    trial = copy.copy(module)
    vars(trial).update(attributes)
    trial._parameters = {name: nn.Parameter(weight, requires_grad=False) for name, weight in weights.items()}
    forward: Callable[..., Any] = kind.forward
    return forward(trial, x)
