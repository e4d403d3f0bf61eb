"""The CUDA C++ kernels of thickets._C.cuda (csrc/cuda/): NVIDIA GPUs from sm_80 on.

Normals come from the special-function unit, within the bounds of docs/noise.md, section 4; the noise of all
other families has the CPU's bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..long_rows import accumulate_long_rows, long_hadamard_product, perturbed_long_rows
from ..noise import hadamard_order
from ..operands import Members, Noise, multiplied_in
from . import gpu
from .native import DTYPES, FAMILIES, NO_MATRIX, matrix
from .record import Backend

# The fused kernels make the noise anew for every 64 rows (float32: 32) and multiply at 0.6 of the vendor's
# rate; scratch memory costs 0.9 to 1.4 ps an entry. Predicted, not yet measured (docs/performance.md).
SCRATCH_FROM = {"normal": 128, "normal4": 256, "rademacher": 384}


def _find() -> tuple[Any, str | None]:
    """The module of CUDA kernels, or why there is none."""
    try:
        from .. import _C
    except ImportError as error:
        return None, f"the native module thickets._C is not built ({error})"
    native = getattr(_C, "cuda", None)
    return native, None if native else f"thickets._C has no CUDA kernels: {_C.cuda_why()}"


NATIVE, NOT_BUILT = _find()


@cache
def why_not() -> str | None:
    """Why these kernels cannot run here."""
    return NOT_BUILT or NATIVE.why_not() or (None if torch.cuda.is_available() else "torch sees no GPU")


@contextmanager
def _on(device: torch.device) -> Iterator[tuple[int, int]]:
    """The device's index and its current stream, as the kernels take them; 0, 0 on a CPU."""
    if device.type != "cuda":
        yield 0, 0
        return
    with torch.cuda.device(device):
        yield torch.cuda.current_device(), torch.cuda.current_stream().cuda_stream


def _noise(noise: Noise) -> tuple[int, ...]:
    return FAMILIES[noise.family], *noise[1:]


def _members(members: Members) -> tuple[int, int, float, int, int, int, int]:
    offsets = 0 if members.offsets is None else members.offsets.data_ptr()
    return (members.seeds.data_ptr(), members.sigmas.data_ptr(), members.scale, offsets, len(members.seeds),
            members.rows, members.total)  # fmt: skip


def _result(y: Tensor, base: Tensor | None, bias: Tensor | None) -> tuple[Any, ...]:
    of_bias = NO_MATRIX
    if bias is not None:
        of_bias = bias.data_ptr(), DTYPES[bias.dtype], bias.stride(0) if bias.dim() == 2 else 0
    return matrix(y), matrix(base), base is not None and len(base) != len(y), of_bias


class Kernels:
    """The launch wrappers of a native module (csrc/cuda/args.h), as kernels.py describes them."""

    def __init__(self, native: Any) -> None:
        self.native = native

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
        fused = self.native.linear
        if multiplied_in(x, w) == torch.float32:
            fused = self.native.linear_float32
        w_member = w.stride(0) if w is not None and w.dim() == 3 else 0
        with _on(y.device) as place:
            fused(_noise(noise), _members(members), matrix(x), len(x) != len(y), matrix(w), w_member,
                  _result(y, base, bias), y.shape[1], x.shape[1], storage, place)  # fmt: skip

    def hadamard_product(
        self, y: Tensor, x: Tensor, base: Tensor | None, bias: Tensor | None, members: Members, noise: Noise
    ) -> None:
        with _on(y.device) as place:
            if self._too_long(noise, place):
                long_hadamard_product(y, x, base, bias, members, noise)
                return
            self.native.hadamard_product(*self._product(y, x, base, bias, members, noise), y.shape[1],
                                         x.shape[1], place)  # fmt: skip

    def lowrank_product(
        self, y: Tensor, x: Tensor, base: Tensor | None, bias: Tensor | None, members: Members, noise: Noise
    ) -> None:
        product = self._product(y, x, base, bias, members, noise)
        with _on(y.device) as place:
            rest = y.shape[1], x.shape[1], place
            scratch = torch.empty(self.native.lowrank_scratch(*product, *rest), device=y.device)
            self.native.lowrank_product(*product, scratch.data_ptr(), *rest)

    def perturbed_rows(
        self, out: Tensor, weight: Tensor | None, members: Members, noise: Noise, ids: Tensor | None = None
    ) -> None:
        with _on(out.device) as place:
            if self._too_long(noise, place):
                perturbed_long_rows(out, weight, members, noise, ids)
                return
            if ids is None:
                rows, out_member = out.shape[1], out.stride(0)
                members = members._replace(offsets=None, rows=rows, total=len(out) * rows)
            else:
                rows, out_member = 0 if weight is None else len(weight), 0
            at, shared = (0, False) if ids is None else (ids.data_ptr(), len(ids) != len(out))
            self.native.rows(_noise(noise), _members(members), at, shared, matrix(weight), matrix(out),
                             out_member, rows, out.shape[-1], place)  # fmt: skip

    def accumulate(self, weight: Tensor, members: Members, noise: Noise) -> None:
        with _on(weight.device) as place:
            if self._too_long(noise, place):
                accumulate_long_rows(weight, members, noise)
                return
            self.native.accumulate(_noise(noise), _members(members), matrix(weight), *weight.shape, place)

    def _too_long(self, noise: Noise, place: tuple[int, int]) -> bool:
        """Whether rows of hadamard noise exceed what a block's memory holds."""
        hadamard = noise.family == "hadamard"
        return hadamard and hadamard_order(noise.full_cols) > self.native.longest_transform(place[0])

    @staticmethod
    def _product(
        y: Tensor, x: Tensor, base: Tensor | None, bias: Tensor | None, members: Members, noise: Noise
    ) -> tuple[Any, ...]:
        return _noise(noise), _members(members), matrix(x), len(x) != len(y), _result(y, base, bias)


def backend(
    native: Any,
    devices: tuple[str, ...] = ("cuda",),
    why_not: Callable[[], str | None] = lambda: None,
) -> Backend:
    """The record of the kernels of a native module."""
    kernels = Kernels(native)
    return gpu.backend("cuda", devices, why_not, lambda: kernels, SCRATCH_FROM)


BACKEND = backend(NATIVE, why_not=why_not)
