"""The per-row path: one continuous batch whose rows belong to any members, in any order and mix.

As an engine that serves many adapters calls one product for all of them, it calls these for its many members.
`owners` says whose each row is. With seeds and sigmas as tensors on its device, nothing waits for a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..functional import (
    Seeds,
    Sigmas,
    members_tensors,
    noise_linear_,
    perturbed_embedding,
    perturbed_linear,
    perturbed_vector,
)


class RowMembers:
    """The plan of one step: rows sorted by owner once, for all layers.

    owners: int64 [T], the member of each row, 0 <= owner < N, or -1 for the base model without noise; seeds,
    sigmas: the N members, as in `thickets.functional`. The methods take rows in the batch's order and return
    them in it; `options` are those of the function that a method names. TypeError or ValueError on bad owners
    or members; owners that lie in CUDA tensors are not looked at: there, one too small is -1, and one too
    large N - 1.
    """

    def __init__(self, owners: Tensor, seeds: Seeds, sigmas: Sigmas) -> None:
        if not isinstance(owners, Tensor) or owners.dtype != torch.int64:
            got = owners.dtype if isinstance(owners, Tensor) else type(owners).__name__
            raise TypeError(f"owners must be an int64 tensor, got {got}")
        if owners.dim() != 1:
            raise ValueError(f"owners must be [T], got {tuple(owners.shape)}")
        given = members_tensors(seeds, sigmas, owners.device)
        count = given[0].numel()
        if owners.device.type == "cpu" and owners.numel():
            low, high = (int(bound) for bound in owners.aminmax())
            if low < -1 or high >= count:
                raise ValueError(f"owners must be in [0, N={count}), or -1, got {low if low < -1 else high}")
        # The base is one more member, the first, whose sigma is 0: W' = fma(0, eps, W) = W.
        seeds, sigmas = (torch.cat([member.new_zeros(1), member]) for member in given)
        self._groups = owners.clamp(-1, count - 1) + 1
        ordered, self._order = self._groups.sort(stable=True)
        offsets = torch.full((count + 2,), owners.numel(), device=owners.device)
        offsets[:-1] = torch.searchsorted(ordered, torch.arange(count + 1, device=owners.device))
        self._members: dict[str, Any] = {"seeds": seeds, "sigmas": sigmas}
        self._grouped = {**self._members, "offsets": offsets}

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any) -> Tensor:
        """`perturbed_linear` of rows x [T, K], weight [O, K], bias [O]: [T, O] in the dtype of x.

        Equivalent::

            torch.stack([x[t] @ W_of[owners[t]].T for t in range(T)])
        """
        rows = self._sorted("x", x, 2)
        return self._in_order(perturbed_linear(rows, weight, bias, **self._grouped, **options))

    def noise_linear_(self, y: Tensor, x: Tensor, **options: Any) -> Tensor:
        """`noise_linear_`: add the noise product alone to y [T, O], the engine's own product; returns y.

        Equivalent::

            y += torch.stack([sigma_of[owners[t]] * (x[t] @ eps_of[owners[t]].T) for t in range(T)])
        """
        rows = self._sorted("y", y, 2)
        noise_linear_(rows, self._sorted("x", x, 2), **self._grouped, **options)
        return y.index_copy_(0, self._order, rows)

    def embedding(self, ids: Tensor, weight: Tensor, **options: Any) -> Tensor:
        """`perturbed_embedding` of ids [T] in weight [V, D]: [T, D] in the dtype of weight."""
        ids = self._sorted("ids", ids, 1)
        return self._in_order(perturbed_embedding(ids, weight, **self._grouped, **options))

    def vector(self, weight: Tensor, **options: Any) -> Tensor:
        """`perturbed_vector` of weight [H], such as a norm's gain, for every row: [T, H]."""
        vectors = perturbed_vector(weight, **self._members, **options)
        return vectors.index_select(0, self._groups)

    def _sorted(self, name: str, rows: Tensor, dims: int) -> Tensor:
        """The rows by owner; ValueError unless there are T."""
        count = self._order.numel()
        if rows.dim() != dims or rows.shape[0] != count:
            expected = f"[T={count}{', features' * (dims - 1)}]"
            raise ValueError(f"{name} must be {expected}, got {tuple(rows.shape)}")
        return rows.index_select(0, self._order)

    def _in_order(self, rows: Tensor) -> Tensor:
        """Sorted rows back in the order of the batch."""
        return torch.empty_like(rows).index_copy_(0, self._order, rows)


def perturbed_rows(
    x: Tensor,
    weight: Tensor,
    owners: Tensor,
    bias: Tensor | None = None,
    *,
    seeds: Seeds,
    sigmas: Sigmas,
    **options: Any,
) -> Tensor:
    """One layer's `RowMembers(owners, seeds, sigmas).linear(x, weight, bias, ...)`."""
    return RowMembers(owners, seeds, sigmas).linear(x, weight, bias, **options)


def noise_rows_(
    y: Tensor, x: Tensor, owners: Tensor, *, seeds: Seeds, sigmas: Sigmas, **options: Any
) -> Tensor:
    """One layer's `RowMembers(owners, seeds, sigmas).noise_linear_(y, x, ...)`; returns y."""
    return RowMembers(owners, seeds, sigmas).noise_linear_(y, x, **options)
