"""Stand-ins for perturbed parameters: code other than a parameter's own layer that reads one gets an error.

A perturbed model is a copy in which each perturbed parameter is a Guard: it has the parameter's shape, dtype
and device, but no values, so that nothing can use the base's value for a member's by mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .parameters import NamedParameter

METADATA = {
    *(
        "__get__",
        "__len__",
        "__hash__",
        "__repr__",
        "size",
        "stride",
        "dim",
        "ndimension",
        "numel",
        "nelement",
    ),
    *("element_size", "is_contiguous", "is_floating_point", "is_complex", "is_signed", "get_device"),
}
LIKE = {
    "new_zeros",
    "new_ones",
    "new_empty",
    "new_full",
    "new_tensor",
    "type_as",
}  # of dtype and device alone


class ReadError(RuntimeError):
    """A perturbed parameter was read by code other than its own layer."""

    def __init__(self, parameter: NamedParameter, reader: str) -> None:
        super().__init__(f"{reader} read the perturbed parameter {parameter.name!r} past its own layer")
        self.parameter = parameter


class Guard(Tensor):
    """A tensor without values that raises ReadError in place of an operation."""

    parameter: NamedParameter

    @staticmethod
    def __new__(cls, parameter: NamedParameter, tensor: Tensor) -> Guard:
        guard = Tensor._make_wrapper_subclass(
            cls, tensor.shape, strides=tensor.stride(), dtype=tensor.dtype, device=tensor.device
        )
        guard.parameter = parameter
        guard._is_param = True  # isinstance(guard, nn.Parameter)
        return guard

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Guard({self.parameter.name!r}, {tuple(self.shape)})"

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if name in METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if name in LIKE or (name == "to" and not isinstance(args[0], Guard)):
            return func(*(_empty_like(arg) if isinstance(arg, Guard) else arg for arg in args), **kwargs)
        raise ReadError(_first(Guard, (args, kwargs)).parameter, name)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        raise ReadError(_first(Guard, (args, kwargs)).parameter, str(func))


def _empty_like(guard: Guard) -> Tensor:
    return torch.empty(0, dtype=guard.dtype, device=guard.device)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of an operation's arguments."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


def _first(kind: type, value: Any) -> Any:
    return next(tensor for tensor in tensors_in(value) if isinstance(tensor, kind))


class BaseReads(TorchFunctionMode):
    """While active, an operation on one of the base's own perturbed parameters raises RuntimeError.

    A copy of a model cannot redirect what its code holds by other means than attributes: a closure or a
    global variable still leads to the base.
    """

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names = names  # canonical names by the parameter's id()

    def __torch_function__(
        self, func: Callable, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") not in METADATA or isinstance(result, Tensor):  # T is a __get__ too
            for tensor in tensors_in((args, kwargs or {})):
                if id(tensor) in self.names:
                    raise RuntimeError(
                        f"the model reads its parameter {self.names[id(tensor)]!r} through a closure or a "
                        "global variable, where it cannot be perturbed: make it an attribute or exclude it"
                    )
        return result
