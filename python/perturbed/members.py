"""The members that a perturbed model runs as now, and the products of their weights with activations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional import grouped_linear, perturb_, perturbed_embedding, perturbed_linear, perturbed_vector
from .groups import Groups
from .parameters import NamedParameter
from .segments import Segment


class Members(Groups):
    """N members and what runs them; one object per perturbed model, read by all its layers.

    `alone` is set while one member, the one at `turn`, runs through ordinary forwards with its weights in
    place, on activations that were `widened` from a dtype.
    """

    def __init__(self, noise: str, precision: str, backend: str) -> None:
        self.noise = noise
        self.precision = precision
        self.backend = backend
        self.alone, self.turn = False, 0
        self.widened: torch.dtype | None = None
        self._transposed: dict[str, Tensor] = {}  # matrix views of weights that are stored otherwise, by name
        self.clear()

    def clear(self) -> None:
        """Run as none."""
        self.set(torch.empty(0, dtype=torch.int64), torch.empty(0), {})
        self.regroup([])

    def set(self, seeds: Tensor, sigmas: Tensor, stored: dict[str, Tensor]) -> None:
        """Run as these members from now on.

        seeds: int64 [N], bit patterns; sigmas: float32 [N]; stored: W' of all by name, [N, *shape] each,
        or nothing.
        """
        self.seeds, self.sigmas, self.stored = seeds, sigmas, stored
        self.count, self.device = seeds.shape[0], seeds.device

    @contextmanager
    def only(self, index: int) -> Iterator[None]:
        """Run as one of the members alone."""
        before, one = vars(self).copy(), slice(index, index + 1)
        rows = self.row_counts()[one]
        stored = {name: weights[one] for name, weights in self.stored.items()}
        self.set(self.seeds[one], self.sigmas[one], stored)
        self.regroup(rows)
        try:
            yield
        finally:
            vars(self).update(before)

    def linear(self, x: Tensor, weight: NamedParameter, bias: NamedParameter | None) -> Tensor:
        """x [R, ..., K] or [1, ..., K] times the members' matrices [O, K], plus their biases: [R, ..., O]."""
        if bias is not None and not weight.perturbed:  # then the bias is, or the layer would be the base's
            y = F.linear(x, self.matrix(weight))
            return self.scale_and_shift(y.float(), None, bias, -1).to(x.dtype)
        return self.ungroup(self._linear(*self.group(x, 1), weight, bias), x.shape[:-1])

    def _linear(
        self, x: Tensor, offsets: Tensor | None, weight: NamedParameter, bias: NamedParameter | None
    ) -> Tensor:
        if self.stored:
            stored = self.stored[weight.name]
            matrices = stored.mT if weight.transposed else stored.flatten(2)
            biases = None
            if bias is not None:
                biases = self.vector(bias).to(matrices.dtype).expand(self.count, -1)
            return grouped_linear(x, matrices, biases, offsets=offsets, backend=self.backend)
        return perturbed_linear(
            x,
            self.matrix(weight),
            None if bias is None else bias.tensor,
            seeds=self.seeds,
            sigmas=self.sigmas,
            name=weight.name,
            bias_name=bias.name if bias is not None and bias.perturbed else None,
            noise=self.noise,
            offsets=offsets,
            precision=self.precision,
            backend=self.backend,
        )

    def token_linear(self, x: Tensor, weight: NamedParameter, bias: NamedParameter | None) -> Tensor:
        """As `linear`, of tokens [T, K] too: those of the folded batch [R, T / R, K], in its order."""
        if x.dim() != 2 or not self.rows or x.shape[0] <= self.rows or x.shape[0] % self.rows:
            return self.linear(x, weight, bias)
        return self.linear(x.unflatten(0, (self.rows, -1)), weight, bias).flatten(0, 1)

    def block_linear(
        self, x: Tensor, offsets: Tensor, weight: NamedParameter, index: int, segments: Sequence[Segment]
    ) -> Tensor:
        """x [T, K] with offsets times the members' matrices [O, K] at an index of a stack: [T, O].

        segments: those of that matrix, in the order of its rows.
        """
        if not weight.perturbed:
            return F.linear(x, weight.tensor[index])
        if self.stored:
            stored = self.stored[weight.name][:, index]
            return grouped_linear(x, stored, offsets=offsets, backend=self.backend)
        parts = [
            perturbed_linear(
                x,
                segment.of(weight.tensor),
                seeds=self.seeds,
                sigmas=self.sigmas,
                name=segment.name,
                noise=self.noise,
                scale=float(segment.name in weight.chosen),
                origin=segment.origin,
                full_cols=segment.full_cols,
                offsets=offsets,
                precision=self.precision,
                backend=self.backend,
            )
            for segment in segments
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def matrix(self, weight: NamedParameter) -> Tensor:
        """The matrix view [O, K] of the base's weight; contiguous if `follow_base` made it so."""
        return self._transposed.get(weight.name, weight.shaped(weight.tensor))

    def follow_base(self, parameters: Iterable[NamedParameter]) -> None:
        """Copy what the base stores transposed, as no product takes it so, to addresses that stay."""
        for parameter in parameters:
            if parameter.transposed:
                matrix = self._transposed.setdefault(
                    parameter.name,
                    torch.empty_like(parameter.tensor.mT, memory_format=torch.contiguous_format),
                )
                matrix.copy_(parameter.tensor.mT)

    def embedding(self, ids: Tensor, weight: NamedParameter) -> Tensor:
        """Rows ids [R, ...] or [1, ...] of the members' tables [V, D]: [R, ..., D]."""
        groups, offsets = self.group(ids, 0)
        if self.stored:
            tables = self.stored[weight.name]
            each = self.split(ids) if ids.shape[0] == self.rows else [ids] * self.count
            found = [F.embedding(ids, table) for ids, table in zip(each, tables, strict=True)]
            rows = torch.cat(found).to(weight.tensor.dtype)
        else:
            rows = perturbed_embedding(
                groups,
                weight.tensor,
                seeds=self.seeds,
                sigmas=self.sigmas,
                name=weight.name,
                noise=self.noise,
                offsets=offsets,
                precision=self.precision,
                backend=self.backend,
            )
        return self.ungroup(rows, ids.shape)

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
        if shared:
            grouped = x[None]  # [1, 1, ...]
        elif self.counts is None:
            grouped = x.reshape(self.count, self.batch, *x.shape[1:])
        else:
            grouped = x[:, None]  # each row a group of its own

        def broadcast(vector: NamedParameter) -> Tensor:
            values = self.vector(vector).to(x.dtype)
            if vector.perturbed and self.counts is not None and not shared:
                values = values[self._owners]
            shape = [1] * grouped.dim()
            shape[0], shape[dim + 1 if dim > 0 else dim] = values.shape
            return values.view(shape)

        if weight is None:
            y = grouped if bias is None else grouped + broadcast(bias)
        else:
            scale = broadcast(weight)
            y = grouped * scale if bias is None else torch.addcmul(broadcast(bias), grouped, scale)
        return self.spread(y) if shared else y.reshape(x.shape)

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
        """Write W' of one member over `out`, contiguous or of `parameter.copies`."""
        source = parameter.tensor.contiguous()
        for segment in parameter.segments:
            block, base = segment.of(out), segment.of(source)
            if segment.name not in parameter.chosen:
                block.copy_(base)
                continue
            perturb_(
                block,
                base,
                seed=seed,
                sigma=sigma,
                name=segment.name,
                noise=self.noise,
                origin=segment.origin,
                full_cols=segment.full_cols,
                backend=self.backend,
            )

    def dtype_of(self, parameter: NamedParameter) -> torch.dtype:
        """The dtype of materialised weights."""
        return torch.float32 if self.precision == "exact" else parameter.tensor.dtype
