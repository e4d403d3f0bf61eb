"""The data of a search: a list of (inputs, targets) batches, and a digest of its content."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

Batch = tuple[Any, Any]


def as_batches(data: Iterable[Any], name: str = "data") -> list[Batch]:
    """All batches in one list, which fixes their order for every member (a generator is read once)."""
    if isinstance(data, Tensor | str | dict) or not isinstance(data, Iterable):
        raise TypeError(f"{name} must be an iterable of (inputs, targets) batches, got {type(data).__name__}")
    batches = []
    for i, batch in enumerate(data):
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            came = (
                f"{type(batch).__name__} of {len(batch)}"
                if isinstance(batch, tuple | list)
                else type(batch).__name__
            )
            raise TypeError(
                f"{name} must be an iterable of (inputs, targets) batches, but item {i} is {came};"
                " a single batch is given as [(inputs, targets)]"
            )
        batches.append((batch[0], batch[1]))
    if not batches:
        raise ValueError(f"{name} must hold at least one (inputs, targets) batch, got none")
    return batches


def digest(value: Any) -> str:
    """32 hex digits of the content of nested lists, tuples and dicts of tensors, arrays, text and numbers.

    Any other object counts by its type and repr, without the addresses in it.
    """
    state = hashlib.blake2b(digest_size=16)
    _feed(state, value)
    return state.hexdigest()


def _feed(state: Any, value: Any) -> None:
    if hasattr(value, "__array__") and not isinstance(value, Tensor):
        array = value.__array__()
        if array.dtype.kind in "biufc":
            value = torch.from_numpy(array.copy())
    if isinstance(value, Tensor):
        tensor = value.detach().cpu().contiguous()
        state.update(f"tensor {tensor.dtype} {tuple(tensor.shape)};".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, dict):
        state.update(f"dict {len(value)};".encode())
        for key, item in value.items():
            _feed(state, key)
            _feed(state, item)
    elif isinstance(value, list | tuple):
        state.update(f"list {len(value)};".encode())
        for item in value:
            _feed(state, item)
    else:
        content = value if isinstance(value, bytes) else re.sub(r" at 0x[0-9a-f]+", "", repr(value)).encode()
        state.update(f"{type(value).__name__} {len(content)};".encode())
        state.update(content)
