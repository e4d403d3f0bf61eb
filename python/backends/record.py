"""What a backend is: a name, the devices it serves, and one function per op.

`thickets.ops` calls these functions with checked arguments and takes care of the corners, so every backend
may rely on:

- nothing is empty: at least one member, row, output and column;
- tensors are on one device; vectors and biases are contiguous, all others have a contiguous last dimension
  and otherwise arbitrary strides, zero included;
- a tensor that is written has no two elements in one place; parameters of `perturb_`, `accumulate_` and
  `noise` come as matrix views (a vector as [1, H]), with the family that applies to them in the stream.

Sizes: N members, T rows in all, M rows per member, O outputs, K inputs, H vector length. Groups of rows come
in three forms: x [N, M, K], x [M, K] shared by all members, or x [T, K] with offsets int64 [N + 1]. W, x and
out are float32, bfloat16 or float16; seeds are int64 [N] (bit patterns), sigmas float32 [N]. The values in
seeds, sigmas and offsets stay on their device: only on the CPU have they been checked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..noise import Stream


class Linear(Protocol):
    """x (W + s eps)^T + bias, [N, M, O] or [T, O] in the dtype of x; a bias with a stream is perturbed."""

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        seeds: Tensor,
        sigmas: Tensor,
        offsets: Tensor | None,
        stream: Stream,
        bias_stream: Stream | None,
        precision: str,
    ) -> Tensor: ...


class NoiseLinear(Protocol):
    """y += s (x eps^T), the product in float32; y [N, M, O] or [T, O]."""

    def __call__(
        self, y: Tensor, x: Tensor, seeds: Tensor, sigmas: Tensor, offsets: Tensor | None, stream: Stream
    ) -> None: ...


class Embedding(Protocol):
    """Rows `ids` of W + s eps, in the dtype of W: ids [N, M], [M] shared, or [T] with offsets."""

    def __call__(
        self,
        ids: Tensor,
        weight: Tensor,
        seeds: Tensor,
        sigmas: Tensor,
        offsets: Tensor | None,
        stream: Stream,
        precision: str,
    ) -> Tensor: ...


class Vector(Protocol):
    """N perturbed copies of a vector [H]: [N, H], float32 for "exact", the dtype of it for "storage"."""

    def __call__(
        self, weight: Tensor, seeds: Tensor, sigmas: Tensor, stream: Stream, precision: str
    ) -> Tensor: ...


class Perturb(Protocol):
    """out = fma(s, eps, float32(W)) rounded to the dtype of out, which may be W; seed [1], sigma [1]."""

    def __call__(self, out: Tensor, weight: Tensor, seed: Tensor, sigma: Tensor, stream: Stream) -> None: ...


class Accumulate(Protocol):
    """W = round(float32(W) + d): d = fma(c_i, eps_i, d) from 0, i ascending, c_i times scale in float32."""

    def __call__(self, weight: Tensor, seeds: Tensor, coefficients: Tensor, stream: Stream) -> None: ...


class Noise(Protocol):
    """out [rows, cols] float32 = eps of the slice that begins at the stream's origin; seed [1]."""

    def __call__(self, out: Tensor, seed: Tensor, stream: Stream) -> None: ...


class GroupedLinear(Protocol):
    """Group n of x times weights[n]^T + bias[n]: the stored mode, bit for bit `linear` on those weights."""

    def __call__(self, x: Tensor, weights: Tensor, bias: Tensor | None, offsets: Tensor | None) -> Tensor: ...


@dataclass(frozen=True)
class Backend:
    """One implementation of every op. `why_not` says in words why it cannot run here, or returns None."""

    name: str
    devices: tuple[str, ...]
    why_not: Callable[[], str | None]
    linear: Linear
    noise_linear_: NoiseLinear
    embedding: Embedding
    vector: Vector
    perturb_: Perturb
    accumulate_: Accumulate
    noise: Noise
    grouped_linear: GroupedLinear
