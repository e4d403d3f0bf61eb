"""The layers that run N members at once: which modules are known, and their forwards when folded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from . import experts, norms
from .checkpoint import conv1d
from .continued import continued
from .groups import FoldError
from .members import Members
from .parameters import NamedParameter

Slots = Mapping[str, NamedParameter]  # the layer's parameters by attribute: weight, bias or both
Layer = Callable[..., Any]  # of the module, its folded inputs, the members and the slots


def linear(module: Any, x: Tensor, members: Members, slots: Slots) -> Tensor:
    return members.linear(x, slots["weight"], slots.get("bias"))


def token_linear(module: Any, x: Tensor, members: Members, slots: Slots) -> Tensor:
    return members.token_linear(x, slots["weight"], slots.get("bias"))


def embedding(module: Any, ids: Tensor, members: Members, slots: Slots) -> Tensor:
    return members.embedding(ids, slots["weight"])


def layer_norm(module: Any, x: Tensor, members: Members, slots: Slots) -> Tensor:
    y = F.layer_norm(_float(x), module.normalized_shape, None, None, module.eps)
    return members.scale_and_shift(y, slots.get("weight"), slots.get("bias"), -1).to(x.dtype)


def rms_norm(module: Any, x: Tensor, members: Members, slots: Slots) -> Tensor:
    y = F.rms_norm(_float(x), module.normalized_shape, None, module.eps)
    return members.scale_and_shift(y, slots.get("weight"), None, -1).to(x.dtype)


def batch_norm(module: Any, x: Tensor, members: Members, slots: Slots) -> Tensor:
    module._check_input_dim(x)
    mean, var = module.running_mean, module.running_var
    y = F.batch_norm(_float(x), mean.float(), var.float(), None, None, False, 0.0, module.eps)
    return members.scale_and_shift(y, slots.get("weight"), slots.get("bias"), 1).to(x.dtype)


def group_norm(module: Any, x: Tensor, members: Members, slots: Slots) -> Tensor:
    y = F.group_norm(_float(x), module.num_groups, None, None, module.eps)
    return members.scale_and_shift(y, slots.get("weight"), slots.get("bias"), 1).to(x.dtype)


def convolution(module: Any, x: Tensor, members: Members, slots: Slots) -> Tensor:
    """Conv1d as Conv2d of height 1; patches [R, L, C * kernel] times the weight's matrix view."""
    dims = len(module.kernel_size)
    if x.dim() != dims + 2:
        raise FoldError(f"its input {tuple(x.shape)} has no batch dimension")
    if any(module._reversed_padding_repeated_twice):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    kernel, stride, dilation = tuple(module.kernel_size), tuple(module.stride), tuple(module.dilation)
    sizes = [
        (size - d * (k - 1) - 1) // s + 1
        for size, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)
    ]
    if dims == 1:
        x, kernel, stride, dilation = x[:, :, None], (1, *kernel), (1, *stride), (1, *dilation)
    patches = F.unfold(x, kernel, dilation, 0, stride)
    y = members.linear(patches.transpose(1, 2), slots["weight"], slots.get("bias"))
    return y.transpose(1, 2).reshape(y.shape[0], module.out_channels, *sizes).contiguous()


def _float(x: Tensor) -> Tensor:
    """float32, so that a 16-bit result is rounded once."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


LAYERS: dict[type[nn.Module], Layer] = {
    nn.Linear: linear,
    nn.Embedding: embedding,
    nn.LayerNorm: layer_norm,
    nn.RMSNorm: rms_norm,
    nn.BatchNorm1d: batch_norm,
    nn.BatchNorm2d: batch_norm,
    nn.BatchNorm3d: batch_norm,
    nn.GroupNorm: group_norm,
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
}


def known_layer(module: nn.Module, slots: Slots) -> Layer | str:
    """The function that runs this module for N members, or why there is none, in words.

    Known is a module whose forward is the stock one and whose parameters are the stock ones, and what a
    library wrote itself and norms.py, continued.py or experts.py recognises.
    """
    library = conv1d()
    layers = LAYERS if library is None else {**LAYERS, library: linear}
    stock = next((kind for kind in layers if isinstance(module, kind)), None)
    own = "forward" in vars(module)
    if stock is None:
        found = None if own else _recognised(module, slots)
        return found or "it uses its parameters itself"
    methods = ["forward", "__call__", "_call_impl"] + ["_conv_forward"] * issubclass(stock, _ConvNd)
    if own or any(getattr(type(module), m) is not getattr(stock, m) for m in methods):
        goes_on = continued(module, slots) if stock is nn.Embedding and not own else None
        return goes_on or f"its forward is not that of {stock.__name__}"
    if module._forward_pre_hooks:
        return "a forward pre-hook may change its parameters"
    if not slots.keys() <= {"weight", "bias"} or "weight" not in module._parameters:
        return f"its parameters are not those of {stock.__name__}"
    if any(len(parameter.segments) > 1 for parameter in slots.values()):
        return "its parameters are several of the checkpoint"
    if len({parameter.tensor.dtype for parameter in slots.values()}) > 1:
        return "its parameters differ in dtype"
    return _unusual(module, slots) or layers[stock]


def _recognised(module: nn.Module, slots: Slots) -> Layer | None:
    """The layer function of a module that a library wrote itself, by what it computes."""
    return norms.recognised(module, slots) or continued(module, slots) or experts.recognised(module, slots)


def _unusual(module: nn.Module, slots: Slots) -> str | None:
    """Why a stock layer's options rule the fast path out."""
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "max_norm writes its weight"
    if isinstance(module, _ConvNd) and module.groups != 1:
        return f"groups={module.groups}"
    if isinstance(module, _BatchNorm) and module.running_mean is None:
        return "it has no running statistics"
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and len(module.normalized_shape) != 1:
        return f"normalized_shape={tuple(module.normalized_shape)}"
    return None
