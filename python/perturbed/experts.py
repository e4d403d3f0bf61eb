"""Experts whose weights are stacked in one tensor each, run for all members at once.

Known is a module with `gate_up_proj` [E, 2 I, H] and `down_proj` [E, H, I] that computes, for tokens [T, H],
choices [T, k] and their weights [T, k],

    y[t] = sum_j weights[t, j] down[e] (act(gate[e] x[t]) * (up[e] x[t])),    e = choices[t, j]

as trying it on numbers shows (norms.py). The rows of an expert lie sorted by member, so that one product per
expert and segment of the checkpoint serves all members.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .groups import FoldError
from .members import Members
from .parameters import NamedParameter
from .segments import Segment

Slots = Mapping[str, NamedParameter]
Product = Callable[[str, int, Tensor, Tensor], Tensor]  # of a stack's name, an expert, rows and offsets


class StackedExperts:
    """A layer function: recognised experts for all members; `blocks`: the segments of each expert."""

    def __init__(self, slots: Slots) -> None:
        self.blocks = {name: _blocks(parameter) for name, parameter in slots.items()}

    def __call__(
        self, module: Any, x: Tensor, choices: Tensor, weights: Tensor, members: Members, slots: Slots
    ) -> Tensor:
        if x.dim() != 2 or not members.rows or x.shape[0] % members.rows:
            raise FoldError(f"its input {tuple(x.shape)} is not made of the tokens of {members.rows} rows")

        def product(name: str, expert: int, rows: Tensor, offsets: Tensor) -> Tensor:
            return members.block_linear(rows, offsets, slots[name], expert, self.blocks[name][expert])

        owners = members.owners().repeat_interleave(x.shape[0] // members.rows)
        experts = len(self.blocks["down_proj"])
        return mixture(module, x, choices, weights, owners, (experts, members.count), product)


def mixture(
    module: Any,
    x: Tensor,
    choices: Tensor,
    weights: Tensor,
    owners: Tensor,
    counts: tuple[int, int],
    product: Product,
) -> Tensor:
    """The sum above for tokens whose members are `owners` [T], ascending; counts: of experts and members."""
    experts, members = counts
    each = choices.shape[1]
    chosen = choices.flatten()
    order = chosen.argsort(stable=True)  # by expert, in it by token and so by member
    groups = torch.bincount(chosen * members + owners.repeat_interleave(each), minlength=experts * members)
    groups = groups.view(experts, members)
    offsets = F.pad(groups.cumsum(1), (1, 0))
    tokens = (order // each).split(groups.sum(1).tolist())
    parts = []
    for expert, rows in enumerate(tokens):
        if rows.numel():
            gate_up = product("gate_up_proj", expert, x[rows], offsets[expert])
            parts.append(product("down_proj", expert, _gated(module, gate_up), offsets[expert]))
    outputs = x.new_empty(len(order), x.shape[1])
    if parts:
        outputs[order] = torch.cat(parts)
    terms = outputs.view(*choices.shape, -1).float() * weights[..., None].float()
    return terms.sum(1).to(x.dtype)


def recognised(module: nn.Module, slots: Slots) -> StackedExperts | None:
    """The layer function of a module that computes the sum above; None for any other."""
    shapes = {name: parameter.tensor.shape for name, parameter in slots.items()}
    if shapes.keys() != {"gate_up_proj", "down_proj"} or any(len(shape) != 3 for shape in shapes.values()):
        return None
    count, outputs, inputs = shapes["down_proj"]
    if shapes["gate_up_proj"] != (count, 2 * inputs, outputs) or module._forward_pre_hooks:
        return None
    if module._forward_hooks or any(len(block) == 0 for name in slots for block in _blocks(slots[name])):
        return None
    generator, like = torch.Generator().manual_seed(0), slots["down_proj"].tensor
    width = 8  # of hidden states and inside: 32 bytes, as grouped products want
    sizes = {"gate_up_proj": (count, 2 * width, width), "down_proj": (count, width, width), "x": (6, width)}
    numbers = {name: torch.randn(size, generator=generator).to(like.device) for name, size in sizes.items()}
    choices = torch.stack([torch.randperm(count, generator=generator)[:2] for _ in range(6)]).to(like.device)
    weights = torch.rand(choices.shape, generator=generator).to(like.device)
    x = numbers.pop("x")
    trial = copy.copy(module)
    trial._parameters = {name: nn.Parameter(w, requires_grad=False) for name, w in numbers.items()}

    def product(name: str, expert: int, rows: Tensor, offsets: Tensor) -> Tensor:
        return F.linear(rows, numbers[name][expert])

    try:
        with torch.no_grad():
            found = type(module).forward(trial, x, choices, weights)
            ours = mixture(module, x, choices, weights, choices.new_zeros(6), (count, 1), product)
    except Exception:  # whatever it is, it is nothing of this form
        return None
    same = isinstance(found, Tensor) and found.shape == ours.shape
    return StackedExperts(slots) if same and torch.allclose(found, ours, rtol=1e-4, atol=1e-4) else None


def _gated(module: Any, gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return module.act_fn(gate) * up


def _blocks(parameter: NamedParameter) -> list[list[Segment]]:
    """The segments of each expert of a stack [E, O, K]; one that is a whole parameter is cut into them."""
    count, rows, _ = parameter.tensor.shape
    if len(parameter.segments) == 1 and not parameter.segments[0].index:
        name = parameter.segments[0].name
        return [[Segment(name, (expert,), origin=(expert * rows, 0))] for expert in range(count)]
    return [[part for part in parameter.segments if part.index == (expert,)] for expert in range(count)]
