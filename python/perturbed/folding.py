"""Folding N members into the batch: row n * B + b of a folded tensor is example b of member n."""

from __future__ import annotations

import copy
import dataclasses
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

MIXING = 1e-4  # a relative difference of float32 outputs that rounding does not cause
PLAIN = (Tensor, bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


def map_tensors(function: Callable[[str, Tensor], Any], value: Any, path: str) -> Any:
    """`value` with function(path, tensor) for each tensor, through tuples, lists, dicts and dataclasses.

    What holds no tensor is returned as it is.
    """
    if isinstance(value, Tensor):
        return function(path, value)
    if not any(isinstance(leaf, Tensor) for _, leaf in leaves(value, "")):
        return value
    mapped = {
        key: map_tensors(function, child, f"{path}{_label(value, key)}") for key, child in _children(value)
    }
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*mapped.values())
    if isinstance(value, (tuple, list)):
        return type(value)(tuple(mapped.values()))  # torch.return_types take no iterator
    if type(value) is dict:
        return mapped
    result = copy.copy(value)
    for key, child in mapped.items():
        if isinstance(value, dict):
            result[key] = child
        else:
            object.__setattr__(result, key, child)
    return result


def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Path and value of everything in a nested container that is no container itself."""
    children = list(_children(value))
    if not children and not isinstance(value, (tuple, list, dict)):
        yield path, value
    for key, child in children:
        yield from leaves(child, f"{path}{_label(value, key)}")


def _children(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, (tuple, list)):
        yield from enumerate(value)
    elif isinstance(value, dict):
        yield from value.items()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))


def _label(container: Any, key: Any) -> str:
    return f"[{key!r}]" if isinstance(container, (tuple, list, dict)) else f".{key}"


def first_tensor(arguments: dict[str, Any]) -> tuple[str, Tensor]:
    """The first tensor with a dimension among the arguments, by its path; ValueError if there is none."""
    for name, argument in arguments.items():
        for path, leaf in leaves(argument, name):
            if isinstance(leaf, Tensor) and leaf.dim():
                return path, leaf
    got = ", ".join(arguments) or "no arguments"
    raise ValueError(f"the model must be given a tensor [B, ...] among its arguments, got {got}")


def folded(value: Any, path: str, count: int, batch: int, first: str) -> Any:
    """Tensors [B, ...] repeated to [N * B, ...]; [1, ...] and scalars stay; ValueError naming any other."""

    def fold(path: str, tensor: Tensor) -> Tensor:
        if tensor.dim() == 0:
            return tensor
        if tensor.shape[0] == batch:
            return tensor.repeat(count, *[1] * (tensor.dim() - 1))
        if tensor.shape[0] == 1:
            return tensor
        raise ValueError(
            f"{path} must have leading size B={batch} as {first} has, or 1, got {tuple(tensor.shape)}; "
            "fold it yourself and use members(..., fold=False)"
        )

    return map_tensors(fold, value, path)


def unfolded(value: Any, count: int, batch: int) -> Any:
    """Tensors [N * B, ...] as [N, B, ...]; ValueError naming one that has no such leading size."""

    def unfold(path: str, tensor: Tensor) -> Tensor:
        if tensor.dim() == 0 or tensor.shape[0] != count * batch:
            raise ValueError(
                f"{path} of the model must have leading size N * B = {count} * {batch}, got "
                f"{tuple(tensor.shape)}; take it as it is with members(..., fold=False)"
            )
        return tensor.unflatten(0, (count, batch))

    return map_tensors(unfold, value, "output")


def row_counts(rows: Sequence[int], count: int) -> list[int]:
    """`rows` as N row counts; TypeError if one is no integer, ValueError if it is negative or N differs."""
    counts = [operator.index(each) for each in rows]
    if len(counts) != count or min(counts, default=0) < 0:
        raise ValueError(f"rows must be N={count} counts >= 0, got {counts}")
    return counts


def mixing(alone: Any, together: Any, count: int, compare: bool) -> str | None:
    """How the first rows' outputs alone differ from those among others, in shape or, if `compare`, value."""
    for (path, one), (_, many) in zip(leaves(alone, "output"), leaves(together, "output"), strict=True):
        if isinstance(one, Tensor) and one.dim():
            own = many if one.shape[0] == many.shape[0] else many[: one.shape[0]]
            if one.shape != own.shape:
                return f"the shape of its {path} depends on the number of members, it mixes its batch's rows"
            if compare and one.dtype == torch.float32 and one.numel():
                difference, size = float((one - own).abs().max()), float(one.abs().max())
                if MIXING * size < difference < float("inf"):
                    return (
                        f"its {path} differs by {difference:.2g} among {count} members: it seems to mix the "
                        "rows of its batch, or to be random"
                    )
    return None
