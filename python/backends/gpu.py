"""What backends on a GPU share: every op of a backend, made from its kernels and a table of thresholds.

Under `exact`, 16-bit activations with weights of their dtype take a base product and a noise product, both
summed in float32; eps alone is rounded to that dtype (s eps where bfloat16 goes through scratch memory). All
other products form W' in registers or in scratch memory. Products agree with the CPU's within the rounding of
their float32 sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..noise import Stream
from ..operands import SIXTEEN_BITS, Members, Noise, multiplied_in
from .kernels import Kernels, Product
from .record import Backend
from .scratch import exact_product, grouped, materialised, product32, sum_of_products


def _members(seeds: Tensor, sigmas: Tensor, scale: float, offsets: Tensor | None, x: Tensor) -> Members:
    """x [N, M, K], [M, K] shared by all members, or [T, K] with offsets."""
    rows = x.shape[-2]
    return Members(seeds, sigmas, scale, offsets, rows, rows if offsets is not None else len(seeds) * rows)


def _shape(x: Tensor, count: int, offsets: Tensor | None, outputs: int) -> tuple[int, ...]:
    shared = offsets is None and x.dim() == 2
    return (count, len(x), outputs) if shared else (*x.shape[:-1], outputs)


@dataclass(frozen=True)
class Ops:
    """The ops of a backend, as record.py says; kernels are imported at the first call.

    `scratch_from`: rows per member, by family, from which one layer's noise or W' goes through scratch memory
    to the vendor's product.
    """

    kernels: Callable[[], Kernels]
    scratch_from: Mapping[str, int]

    def _many(self, members: Members, family: str) -> bool:
        """Whether groups are equal and large enough for scratch memory."""
        return members.offsets is None and members.rows >= self.scratch_from[family]

    def _vendor(self, members: Members) -> bool:
        """Whether groups are large enough for the vendor's product with weights that are there."""
        return members.rows >= min(self.scratch_from.values())

    def _structured(self, family: str) -> Product:
        kernels = self.kernels()
        return kernels.hadamard_product if family == "hadamard" else kernels.lowrank_product

    def linear(
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
    ) -> Tensor:
        kernels, dense = self.kernels(), stream.family.dense
        members = _members(seeds, sigmas, stream.scale, offsets, x)
        noise = Noise.of(stream, x.shape[-1])
        if bias is not None and bias_stream is not None:
            bias = self.vector(bias, seeds, sigmas, bias_stream, precision)
        y = x.new_empty(_shape(x, len(seeds), offsets, len(weight)))
        to, rows = y.view(-1, len(weight)), x.reshape(-1, x.shape[-1])
        storage = precision == "storage" and weight.dtype in SIXTEEN_BITS
        many = dense and self._many(members, noise.family)
        if dense and not storage and multiplied_in(x, weight) != torch.float32:
            if not many:
                kernels.dense_product(to, rows, None, product32(rows, weight), bias, members, noise)
            elif x.dtype == torch.bfloat16:
                exact_product(kernels, to, rows, weight, bias, members, noise)
            else:  # s eps would underflow in float16
                sum_of_products(kernels, to, rows, weight, bias, members, noise)
        elif dense and not (many and x.dtype == weight.dtype):
            kernels.dense_product(to, rows, weight, None, bias, members, noise, storage)
        elif dense or storage:
            materialised(kernels, to, rows, weight, bias, members, noise, self._vendor(members))
        else:
            self._structured(noise.family)(to, rows, product32(rows, weight), bias, members, noise)
        return y

    def noise_linear_(
        self, y: Tensor, x: Tensor, seeds: Tensor, sigmas: Tensor, offsets: Tensor | None, stream: Stream
    ) -> None:
        members = _members(seeds, sigmas, stream.scale, offsets, x)
        noise = Noise.of(stream, x.shape[-1])
        rows, sums = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        if not stream.family.dense:
            self._structured(noise.family)(sums, rows, sums, None, members, noise)
        elif self._many(members, noise.family):
            sum_of_products(self.kernels(), sums, rows, None, None, members, noise)
        else:
            self.kernels().dense_product(sums, rows, None, sums, None, members, noise)
        if sums.data_ptr() != y.data_ptr():
            y.copy_(sums.view(y.shape))

    def grouped_linear(
        self, x: Tensor, weights: Tensor, bias: Tensor | None, offsets: Tensor | None
    ) -> Tensor:
        count, outputs = weights.shape[:2]
        y = x.new_empty(_shape(x, count, offsets, outputs))
        unused = torch.empty(count, device=x.device)  # a plain product reads neither seeds nor sigmas
        members = _members(unused, unused, 1.0, offsets, x)
        rows = x.reshape(-1, x.shape[-1])
        grouped(self.kernels(), y.view(-1, outputs), rows, weights, bias, members, self._vendor(members))
        return y

    def embedding(
        self,
        ids: Tensor,
        weight: Tensor,
        seeds: Tensor,
        sigmas: Tensor,
        offsets: Tensor | None,
        stream: Stream,
        precision: str,
    ) -> Tensor:
        cols, lines = weight.shape[1], ids[..., None]
        members = _members(seeds, sigmas, stream.scale, offsets, lines)
        out = weight.new_empty(_shape(lines, len(seeds), offsets, cols))
        self.kernels().perturbed_rows(
            out.view(-1, cols), weight, members, Noise.of(stream, cols), ids.reshape(-1).long().contiguous()
        )
        return out

    def vector(self, weight: Tensor, seeds: Tensor, sigmas: Tensor, stream: Stream, precision: str) -> Tensor:
        dtype = torch.float32 if precision == "exact" else weight.dtype
        out = torch.empty(len(seeds), 1, len(weight), dtype=dtype, device=weight.device)
        members = Members(seeds, sigmas, stream.scale)
        self.kernels().perturbed_rows(out, weight[None], members, Noise.of(stream, len(weight)))
        return out[:, 0]

    def perturb_(self, out: Tensor, weight: Tensor, seed: Tensor, sigma: Tensor, stream: Stream) -> None:
        members = Members(seed, sigma, stream.scale)
        self.kernels().perturbed_rows(out[None], weight, members, Noise.of(stream, weight.shape[1]))

    def accumulate_(self, weight: Tensor, seeds: Tensor, coefficients: Tensor, stream: Stream) -> None:
        members = Members(seeds, coefficients, stream.scale)
        self.kernels().accumulate(weight, members, Noise.of(stream, weight.shape[1]))

    def noise(self, out: Tensor, seed: Tensor, stream: Stream) -> None:
        self.kernels().perturbed_rows(
            out[None], None, Members(seed, seed, 1.0), Noise.of(stream, out.shape[1])
        )


def backend(
    name: str,
    devices: tuple[str, ...],
    why_not: Callable[[], str | None],
    kernels: Callable[[], Kernels],
    scratch_from: Mapping[str, int],
) -> Backend:
    """The record of a backend with these kernels and thresholds."""
    ops = Ops(kernels, scratch_from)
    return Backend(
        name=name,
        devices=devices,
        why_not=why_not,
        linear=ops.linear,
        noise_linear_=ops.noise_linear_,
        embedding=ops.embedding,
        vector=ops.vector,
        perturb_=ops.perturb_,
        accumulate_=ops.accumulate_,
        noise=ops.noise,
        grouped_linear=ops.grouped_linear,
    )
