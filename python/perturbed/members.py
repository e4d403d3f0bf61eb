"""The members that a perturbed model runs as now, and the products of their weights with activations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional import grouped_linear, perturb_, perturbed_embedding, perturbed_linear, perturbed_vector
from .parameters import NamedParameter


class FoldError(RuntimeError):
    """An input that a layer cannot split among the members: its rows are not those of the folded batch."""


class Members:
    """N members and what runs them; one object per perturbed model, read by all its layers.

    Folded activations are [R, ...] with R = N * B rows, or [1, ...] where all rows are equal so far.
    `alone` is set while one member runs through ordinary forwards with its weights in place.
    """

    def __init__(self, noise: str, precision: str, backend: str) -> None:
        self.noise = noise
        self.precision = precision
        self.backend = backend
        self.rows = 0
        self.alone = False
        self.clear()

    def clear(self) -> None:
        """Run as none."""
        self.set(torch.empty(0, dtype=torch.int64), torch.empty(0), {})

    def set(self, seeds: Tensor, sigmas: Tensor, stored: dict[str, Tensor]) -> None:
        """Run as these members from now on.

        seeds: int64 [N], bit patterns; sigmas: float32 [N]; stored: W' of all by name, [N, *shape] each,
        or nothing.
        """
        self.seeds, self.sigmas, self.stored, self.count = seeds, sigmas, stored, seeds.shape[0]

    @contextmanager
    def first(self) -> Iterator[None]:
        """Run as the first of the members alone."""
        seeds, sigmas, stored = before = self.seeds, self.sigmas, self.stored
        self.set(seeds[:1], sigmas[:1], {name: weights[:1] for name, weights in stored.items()})
        try:
            yield
        finally:
            self.set(*before)

    @property
    def batch(self) -> int:
        """B, the rows of one member."""
        return self.rows // self.count

    def linear(self, x: Tensor, weight: NamedParameter, bias: NamedParameter | None) -> Tensor:
        """x [R, ..., K] or [1, ..., K] times the members' matrices [O, K], plus their biases: [R, ..., O]."""
        return self._ungroup(self._linear(self._group(x, 1), weight, bias), x.shape[:-1])

    def _linear(self, x: Tensor, weight: NamedParameter, bias: NamedParameter | None) -> Tensor:
        matrix = weight.shaped(weight.tensor)
        if bias is not None and not weight.perturbed:  # then the bias is, or the layer would be the base's
            return (F.linear(x, matrix) + self.vector(bias)[:, None]).to(x.dtype)
        if self.stored:
            matrices = self.stored[weight.name].flatten(2)
            biases = None
            if bias is not None:
                biases = self.vector(bias).to(matrices.dtype).expand(self.count, -1)
            return grouped_linear(x, matrices, biases, backend=self.backend)
        return perturbed_linear(
            x,
            matrix,
            None if bias is None else bias.tensor,
            seeds=self.seeds,
            sigmas=self.sigmas,
            name=weight.name,
            bias_name=bias.name if bias is not None and bias.perturbed else None,
            noise=self.noise,
            precision=self.precision,
            backend=self.backend,
        )

    def embedding(self, ids: Tensor, weight: NamedParameter) -> Tensor:
        """Rows ids [R, ...] or [1, ...] of the members' tables [V, D]: [R, ..., D]."""
        groups = self._group(ids, 0)
        if self.stored:
            tables = self.stored[weight.name]
            each = groups if groups.dim() == 2 else [groups] * self.count
            rows = torch.stack([F.embedding(ids, table) for ids, table in zip(each, tables, strict=True)])
            rows = rows.to(weight.tensor.dtype)
        else:
            rows = perturbed_embedding(
                groups,
                weight.tensor,
                seeds=self.seeds,
                sigmas=self.sigmas,
                name=weight.name,
                noise=self.noise,
                precision=self.precision,
                backend=self.backend,
            )
        return self._ungroup(rows, ids.shape)

    def vector(self, vector: NamedParameter) -> Tensor:
        """A vector parameter of all members, [N, H], or [1, H] if it is not perturbed."""
        if not vector.perturbed:
            return vector.tensor[None]
        if self.stored:
            return self.stored[vector.name]
        return perturbed_vector(
            vector.tensor,
            seeds=self.seeds,
            sigmas=self.sigmas,
            name=vector.name,
            noise=self.noise,
            precision=self.precision,
            backend=self.backend,
        )

    def scale_and_shift(
        self, x: Tensor, weight: NamedParameter | None, bias: NamedParameter | None, dim: int
    ) -> Tensor:
        """x [R, ...] times the members' vectors along dimension `dim`, plus their biases."""
        self.check_rows(x, 1)
        shared = x.shape[0] != self.rows
        grouped = x[None] if shared else x.reshape(self.count, self.batch, *x.shape[1:])

        def broadcast(vector: NamedParameter) -> Tensor:
            values = self.vector(vector).to(x.dtype)
            shape = [1] * grouped.dim()
            shape[0], shape[dim + 1 if dim > 0 else dim] = values.shape
            return values.view(shape)

        if weight is None:
            y = grouped if bias is None else grouped + broadcast(bias)
        else:
            scale = broadcast(weight)
            y = grouped * scale if bias is None else torch.addcmul(broadcast(bias), grouped, scale)
        return y.expand(self.count, self.batch, *y.shape[2:]).flatten(0, 1)

    def check_rows(self, x: Tensor, features: int) -> None:
        """FoldError unless x is [R, ...] or [1, ..., features]."""
        if x.dim() <= features:
            raise FoldError(f"its input {tuple(x.shape)} has no batch dimension")
        shared = x.shape[0] == 1 and x.dim() > 1  # [1] may be a single position
        if x.shape[0] != self.rows and not shared:
            got, expected = tuple(x.shape), f"N * B = {self.count} * {self.batch}"
            raise FoldError(
                f"its input {got} does not have the leading size {expected} of the batch "
                "(positions, for one, need a leading dimension of 1)"
            )

    def _group(self, x: Tensor, features: int) -> Tensor:
        """[R, ..., f] -> [N, M, f]; [1, ..., f], shared by all members, -> [M, f]."""
        self.check_rows(x, features)
        inner = x.shape[x.dim() - features :]
        if x.shape[0] != self.rows:
            return x.reshape(math.prod(x.shape[: x.dim() - features]), *inner)
        return x.reshape(self.count, math.prod(x.shape[: x.dim() - features]) // self.count, *inner)

    def _ungroup(self, y: Tensor, lead: torch.Size) -> Tensor:
        """[N, M, f] -> [R, ..., f], `lead` being the input's leading shape, [R, ...] or [1, ...]."""
        if lead[0] == self.rows:
            return y.reshape(*lead, y.shape[-1])
        each = y.reshape(self.count, 1, *lead[1:], y.shape[-1])
        return each.expand(-1, self.batch, *each.shape[2:]).flatten(0, 1)

    def weights_of(self, index: int, parameters: Iterable[NamedParameter]) -> list[Tensor]:
        """W' of one member: views of the stored ones, or fresh tensors."""
        if self.stored:
            return [self.stored[parameter.name][index] for parameter in parameters]
        seed, sigma = self.seeds[index], self.sigmas[index]
        return [self.materialized(parameter, seed, sigma) for parameter in parameters]

    def materialized(self, parameter: NamedParameter, seed: int | Tensor, sigma: float | Tensor) -> Tensor:
        """W' of one member in the parameter's shape: float32 for "exact", W's dtype for "storage"."""
        tensor = parameter.tensor
        out = torch.empty(tensor.shape, dtype=self.dtype_of(parameter), device=tensor.device)
        self.write(out, parameter, seed, sigma)
        return out

    def write(
        self, out: Tensor, parameter: NamedParameter, seed: int | Tensor, sigma: float | Tensor
    ) -> None:
        """Write W' of one member over the contiguous `out`."""
        perturb_(
            parameter.shaped(out),
            parameter.shaped(parameter.tensor),
            seed=seed,
            sigma=sigma,
            name=parameter.name,
            noise=self.noise,
            backend=self.backend,
        )

    def dtype_of(self, parameter: NamedParameter) -> torch.dtype:
        """The dtype of materialised weights."""
        return torch.float32 if self.precision == "exact" else parameter.tensor.dtype
