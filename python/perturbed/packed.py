"""Linear layers that hold their weight packed: which modules they are, and all that they hold.

bitsandbytes, GPTQ, AWQ, torchao, fp8 and torch.ao keep quantised weights as integers in parameters or in
buffers, in subclasses of tensors or in objects of their own. What they share is what a linear layer says of
itself, so they are known by their structure, and none of those libraries is imported. The canonical name of
such a weight is `<module>.weight`, its logical shape (outputs, inputs) (docs/noise.md, section 2).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..checks import STORAGE

SIZES = (("out_features", "in_features"), ("outfeatures", "infeatures"))  # the attributes' names in use
VALUES = (bool, int, float, str, bytes, torch.dtype)  # in a state dict beside tensors


def packed_linears(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers of a model that hold their weight packed, by the model's own names of them."""
    return {name: module for name, module in model.named_modules() if logical_shape(module) is not None}


def logical_shape(module: nn.Module) -> tuple[int, int] | None:
    """(outputs, inputs) of a linear layer that holds its weight packed; None for any other module.

    It says its sizes, takes one tensor, has neither parts with parameters nor a plain float matrix of those
    sizes, and holds something else, at least a bit for each entry of the matrix.
    """
    shape = _sizes(module)
    has_parts = any(True for child in module.children() for _ in child.parameters())
    if shape is None or has_parts or not _takes_one_tensor(module):
        return None
    own = [tensor for tensor in module._parameters.values() if tensor is not None]
    entries = shape[0] * shape[1]
    if any(is_lazy(t) or hasattr(t, "device_mesh") or (_plain(t) and t.numel() == entries) for t in own):
        return None
    bits = sum(8 * t.numel() * t.element_size() for t in _tensors(module) if not _plain(t))
    return shape if bits >= entries or _has_opaque(module) else None


def _sizes(module: nn.Module) -> tuple[int, int] | None:
    for names in SIZES:
        outputs, inputs = (getattr(module, name, None) for name in names)
        if isinstance(outputs, int) and isinstance(inputs, int) and outputs > 0 and inputs > 0:
            return outputs, inputs
    return None


def logical_weight(module: nn.Module) -> Tensor:
    """A tensor [O, K] in place of the packed weight: its shape, device and activations' dtype, no values."""
    shape, tensors = _sizes(module), _tensors(module)
    assert shape is not None
    half = (t.dtype for t in tensors if t.dtype in (torch.bfloat16, torch.float16))
    device = tensors[0].device if tensors else torch.device("cpu")
    return torch.empty((), dtype=next(half, torch.float32), device=device).expand(shape)


def packed_parameters(module: nn.Module) -> dict[str, Tensor]:
    """The parameters of such a layer that are no parameters of the model: all but a plain bias."""
    own = {name: tensor for name, tensor in module._parameters.items() if tensor is not None}
    return {name: tensor for name, tensor in own.items() if name != "bias" or not _plain(tensor)}


def contents(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All tensors and plain values of such a layer's state dict by path, as plain tensors."""
    yield from _flat("", module.state_dict())


def _flat(path: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _flat(f"{path}.{key}", child)
    elif isinstance(value, (tuple, list)):
        yield from _flat(path, dict(enumerate(value)))
    elif isinstance(value, VALUES):
        yield path, torch.frombuffer(bytearray(repr(value).encode()), dtype=torch.uint8)
    elif isinstance(value, Tensor) and hasattr(value, "__tensor_flatten__"):
        yield from _flat(path, {name: getattr(value, name) for name in value.__tensor_flatten__()[0]})
    elif isinstance(value, Tensor) and value.is_quantized:
        yield path, value.int_repr()
        if value.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams):
            yield f"{path}.scales", value.q_per_channel_scales()
            yield f"{path}.zeros", value.q_per_channel_zero_points()
        else:
            yield from _flat(f"{path}.scale", (value.q_scale(), value.q_zero_point()))
    elif isinstance(value, Tensor):
        yield path, value.detach().as_subclass(Tensor)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _plain(tensor: Tensor) -> bool:
    """Whether it is an ordinary tensor of floating-point numbers."""
    composed = hasattr(tensor, "__tensor_flatten__")  # of other tensors
    return not composed and tensor.layout == torch.strided and tensor.dtype in (*STORAGE, torch.float64)


def _has_opaque(module: nn.Module) -> bool:
    """Whether it holds an object of native code, as the packed weights of torch.ao are."""
    values = (value for part in module.modules() for value in vars(part).values())
    return any(isinstance(value, torch.ScriptObject) for value in values)


def _takes_one_tensor(module: nn.Module) -> bool:
    try:
        arguments = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [argument for argument in arguments if argument.default is argument.empty]
    return sum(a.kind in positional for a in needed) == 1 and all(a.kind != a.KEYWORD_ONLY for a in needed)
