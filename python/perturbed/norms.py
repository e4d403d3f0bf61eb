"""RMS norms that libraries of models write themselves, recognised by what they compute.

Llama's form is n(x) weight and Gemma's n(x) (1 + weight), with n(x) = x / sqrt(mean(x^2) + eps) over the last
dimension. A module with one vector `weight` and a number for eps is tried on numbers of two sizes, one of
them so small that eps shows, and known if its results are those of a form.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .members import Members
from .parameters import NamedParameter

EPSILONS = ("eps", "variance_epsilon", "epsilon")  # the attribute's names in use
SIZES = (1.0, 1e-3)  # of the numbers tried: the squares of the small ones are as large as an usual eps


def normalised(x: Tensor, eps: float) -> Tensor:
    """n(x), float32 for 16-bit x."""
    x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    return F.rms_norm(x, x.shape[-1:], None, eps)


FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "weight": lambda n, weight: n * weight,
    "1 + weight": lambda n, weight: n * (1 + weight),
}


class RMSNorm:
    """A layer function: a recognised norm for all members, with one rounding for 16-bit results."""

    def __init__(self, form: str, eps: float, promotes: bool) -> None:
        self.form, self.eps, self.promotes = form, eps, promotes

    def __call__(
        self, module: Any, x: Tensor, members: Members, slots: Mapping[str, NamedParameter]
    ) -> Tensor:
        weight, n = slots["weight"], normalised(x, self.eps)
        y = members.scale_and_shift(n, weight, None, -1)
        if self.form == "1 + weight":
            y = y + n
        dtype = torch.promote_types(x.dtype, weight.tensor.dtype) if self.promotes else x.dtype
        return y.to(dtype)


def recognised(module: nn.Module, slots: Mapping[str, NamedParameter]) -> RMSNorm | None:
    """The layer function of a module that is an RMS norm of a known form; None for any other."""
    epsilons = [value for name in EPSILONS if isinstance(value := getattr(module, name, None), float)]
    alone = not (module._modules or module._buffers or module._forward_pre_hooks or module._forward_hooks)
    if len(epsilons) != 1 or not alone or slots.keys() != {"weight"} or not slots["weight"].vector:
        return None
    generator, like = torch.Generator().manual_seed(0), slots["weight"].tensor
    weight = torch.randn(like.shape, generator=generator).to(like.device)
    x = torch.stack([size * torch.randn(2, *like.shape, generator=generator) for size in SIZES])
    y = _outcome(module, x.to(like.device), weight)
    if y is None:
        return None
    n = normalised(x.to(like.device), epsilons[0])
    for form, expected in FORMS.items():
        if y.shape == n.shape and torch.allclose(y, expected(n, weight), rtol=1e-5, atol=1e-6):
            narrow = _outcome(module, x.to(like.device, torch.bfloat16), weight)
            return None if narrow is None else RMSNorm(form, epsilons[0], narrow.dtype != torch.bfloat16)
    return None


def _outcome(module: nn.Module, x: Tensor, weight: Tensor) -> Tensor | None:
    """What the module's class computes with this weight; None if that is no tensor or an error."""
    trial = copy.copy(module)
    trial._parameters = {"weight": nn.Parameter(weight, requires_grad=False)}
    try:
        with torch.no_grad():
            y = type(module).forward(trial, x)
    except Exception:  # whatever it is, it is no norm of one input
        return None
    return y if isinstance(y, Tensor) else None
