"""What a copy of a model shares with it: weights, packed ones too, and nothing that a forward may write."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .guards import Guard, tensors_in
from .packed import packed_parameters
from .parameters import NamedParameter, inner_module
from .quantised import stand_in


def refuse_writers(model: nn.Module, parameters: Mapping[int, NamedParameter]) -> None:
    """ValueError for modules whose forward would write the base."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
            known = parameters.get(id(module.weight))
            if known is not None and not known.perturbed:
                raise ValueError(
                    f"{name}.max_norm must be None if the weight, which it writes, is not perturbed"
                )


def _tensors_of(module: nn.Module) -> list[Tensor]:
    """Plain tensors in a module's attributes, buffers included, parameters not."""
    attributes = [value for name, value in vars(module).items() if name not in ("_parameters", "_modules")]
    return [tensor for tensor in tensors_in(attributes) if type(tensor) in (Tensor, nn.Parameter)]


def memo_of(model: nn.Module, parameters: Mapping[int, NamedParameter]) -> dict[int, Any]:
    """What deepcopy takes in place of parameters, of views of their memory, of results and of wrappers."""
    memo: dict[int, Any] = {}
    tensor: Tensor
    owners = {p.tensor.untyped_storage().data_ptr(): p for p in parameters.values() if p.perturbed}
    owners.pop(0, None)
    for tensor in model.parameters():
        known = parameters[id(tensor)]
        memo[id(tensor)] = Guard(known, tensor) if known.perturbed else tensor
    for weight in parameters.values():
        if weight.packed is not None:
            held = packed_parameters(weight.packed).values() if weight.perturbed else ()
            memo.update((id(tensor), Guard(weight, tensor)) for tensor in held)
            memo.update((id(part), part) for part in weight.packed.modules())
            memo[id(weight.packed)] = stand_in(weight, memo)
    for module in reversed(list(model.modules())):
        for tensor in _tensors_of(module):
            if id(tensor) not in memo and tensor.untyped_storage().data_ptr() in owners:
                memo[id(tensor)] = Guard(owners[tensor.untyped_storage().data_ptr()], tensor)
            elif id(tensor) not in memo and not tensor.is_leaf:
                memo[id(tensor)] = tensor.detach().clone()
        inner = inner_module(module)
        if inner is not None:
            memo[id(module)] = copy.deepcopy(inner, memo)
    return memo
