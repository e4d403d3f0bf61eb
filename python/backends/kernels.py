"""The kernels that a backend on a GPU brings, as functions of tensors; gpu.py makes the ops of them.

y is [T, O], the rows of all members; x [T, K], or [M, K] shared by all members; base [T, O] (it may be y
itself), or as x [M, O]; bias [O] or [N, O]. All are float32, bfloat16 or float16 with a contiguous last
dimension. Sums are float32, rounded once.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ..operands import Members, Noise


class Product(Protocol):
    """y = base + s (x eps^T) + bias for structured noise."""

    def __call__(
        self, y: Tensor, x: Tensor, base: Tensor | None, bias: Tensor | None, members: Members, noise: Noise
    ) -> None: ...


class Kernels(Protocol):
    """What a module or an object must have."""

    def dense_product(
        self,
        y: Tensor,
        x: Tensor,
        w: Tensor | None,
        base: Tensor | None,
        bias: Tensor | None,
        members: Members,
        noise: Noise,
        storage: bool = False,
    ) -> None:
        """y = x W'^T + bias, or without a W: y = base + s (x eps^T) + bias, for dense noise or none.

        w [O, K], or one per member [N, O, K]. Factors are rounded to operands.multiplied_in(x, w); `storage`
        rounds W' to the dtype of w first.
        """

    @property
    def hadamard_product(self) -> Product: ...

    @property
    def lowrank_product(self) -> Product: ...

    def perturbed_rows(
        self, out: Tensor, weight: Tensor | None, members: Members, noise: Noise, ids: Tensor | None = None
    ) -> None:
        """out = fma(s, eps, float32(W)) rounded to the dtype of `out`, or eps unscaled without a weight.

        Without `ids` out is [N, R, C], all rows of every member, for weight [R, C], which one member may
        overwrite. ids int64 [L], or [M] shared by all members: out is [L, C], line l its member's row ids[l].
        """

    def accumulate(self, weight: Tensor, members: Members, noise: Noise) -> None:
        """weight += sum of s_i eps_i: a float32 fma chain from +0 over ascending i, one sum, rounded once."""
