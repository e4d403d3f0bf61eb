"""Linear layers whose weight is packed (packed.py) for N members: their own forward, and noise added to it.

y_n = forward(x_n) + s_n x_n eps_n^T, so nothing is unpacked. The base's own module makes the first term: the
twin has a stand-in that shares all it holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..functional import noise_linear_
from .guards import Guard
from .members import Members
from .parameters import NamedParameter

MIXED = 0.1  # share of the rows' differences that no kernel's choice changes, but a large row beside them may


class QuantisedLayer(nn.Module):
    """Put in front of a stand-in's class: its forward runs all members."""

    def forward(self, x: Tensor) -> Tensor:
        quantised: QuantisedLinear = self.__dict__["thickets_quantised"]
        return quantised(x)


class QuantisedLinear:
    """Runs one of the base's linear layers for the members; `weight` is its logical weight."""

    def __init__(self, weight: NamedParameter, bias: NamedParameter | None, members: Members) -> None:
        assert weight.packed is not None
        self.linear = weight.packed
        self.weight = weight
        self.bias = bias if bias is not None and bias.perturbed else None
        self.members = members
        self.mixes = self._mixes_rows()

    @property
    def perturbed(self) -> bool:
        """Whether the members' outputs differ from the layer's own."""
        return self.weight.perturbed or self.bias is not None

    def __call__(self, x: Tensor) -> Tensor:
        """The members' outputs for folded x, or one member's while it runs alone."""
        members = self.members
        if members.alone:
            y = self.linear.forward(x if members.widened is None else x.to(members.widened))
            y = y if members.widened is None else y.to(x.dtype)
            with members.only(members.turn):
                members.alone = False
                members.regroup([1])
                return self._noised(y[None], x[None])[0]
        if self.mixes and x.shape[0] == members.rows > 0:
            y = torch.cat([self.linear.forward(own) for own in members.split(x) if len(own)])
        else:
            y = self.linear.forward(x)
        return self._noised(y, x)

    def _noised(self, y: Tensor, x: Tensor) -> Tensor:
        """y [R, ..., O] or [1, ..., O], made of x, plus the members' noise: [R, ..., O]."""
        members = self.members
        if not self.perturbed:
            return y
        groups, offsets = members.group(x, 1)
        if x.shape[0] == members.rows:
            out, _ = members.group(y, 1)
        else:
            out = y.flatten(0, -2).repeat(members.count, 1, 1)
        out = out if self.bias is None else out.float()  # so that the sum is rounded once
        for part in self.weight.segments:
            if part.name in self.weight.chosen:
                noise_linear_(
                    out if part.rows is None else out[..., slice(*part.rows)],
                    groups,
                    seeds=members.seeds,
                    sigmas=members.sigmas,
                    name=part.name,
                    noise=members.noise,
                    origin=part.origin,
                    full_cols=part.full_cols,
                    offsets=offsets,
                    backend=members.backend,
                )
        out = members.ungroup(out, x.shape[:-1])
        if self.bias is not None:
            noise = members.vector(self.bias).float() - self.bias.tensor.float()  # [N, O]
            noise = noise.view(members.count, *[1] * (out.dim() - 1), -1)
            out = out + members.spread(noise)
        return out.to(y.dtype)

    @torch.no_grad()
    def _mixes_rows(self) -> bool:
        """Whether a row's result depends on the other rows, as with activations quantised by one scale.

        Then members run one after the other, so that none depends on its neighbours.
        """
        like = self.weight.tensor
        x = torch.randn(8, like.shape[1], generator=torch.Generator().manual_seed(0))
        x[-1] *= 1e4
        x = x.to(like.device, like.dtype)
        try:
            alone, beside = self.linear.forward(x[:-1]), self.linear.forward(x)[:-1]
        except Exception:  # it wants other activations: one by one is right for all
            return True
        return not bool((alone - beside).abs().max() <= MIXED * (alone - alone.mean(0)).abs().max())


def stand_in(weight: NamedParameter, memo: Mapping[int, Any]) -> nn.Module:
    """A module of the class of a packed weight's layer, which shares all but what `memo` has instead.

    Buffers of a perturbed weight are guards: the base's own forward reads the base's.
    """
    linear = weight.packed
    assert linear is not None
    twin = type(linear).__new__(type(linear))
    vars(twin).update(vars(linear))
    vars(twin).pop("forward", None)  # of a library's hook: the base's own forward runs it
    twin._parameters = {name: memo.get(id(tensor), tensor) for name, tensor in linear._parameters.items()}
    twin._buffers, twin._modules = dict(linear._buffers), dict(linear._modules)
    for name, buffer in linear._buffers.items():
        if weight.perturbed and type(buffer) is Tensor and buffer.layout == torch.strided:
            twin._buffers[name] = Guard(weight, buffer)
    return twin
