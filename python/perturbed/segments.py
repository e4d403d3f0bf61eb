"""Segments: which block of a stored tensor is which block of a parameter of the published checkpoint.

docs/noise.md, section 2: the noise of a parameter depends on its key in the checkpoint and on the position in
its matrix view. Libraries and engines store parameters stacked, fused, sharded or transposed; a segment says
where in such a tensor a checkpoint's parameter, or a part of it, lies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """A block of a stored tensor: (a part of) one parameter of the published checkpoint."""

    name: str  # canonical name: the checkpoint's key
    index: tuple[int, ...] = ()  # leading indices into the tensor (an expert of a stack)
    rows: tuple[int, int] | None = None  # [start, stop) of the indexed tensor's first dimension; None: all
    origin: tuple[int, int] = (
        0,
        0,
    )  # (row, column) of the block's first entry in the parameter's matrix view
    full_cols: int | None = None  # the parameter's whole column count, where the block is a column shard
    transposed: bool = False  # stored [K, O] (transformers' Conv1D): the view is its transpose
    vector: bool = False  # stored with at most one dimension in the checkpoint (contract, section 2)
    convolution: bool = False  # stored [O, C, ...]: the view is (O, the rest)

    def of(self, tensor: Tensor) -> Tensor:
        """The block of `tensor` as a matrix view [rows, cols], or as a vector [H] or []; it shares memory.

        RuntimeError if strides do not allow the view, IndexError for an index that is not there.
        """
        block = self.block(tensor)
        if self.transposed:
            return block.mT
        return block if self.vector or block.dim() == 2 else block.view(self.view(block.shape))

    def block(self, tensor: Tensor) -> Tensor:
        """The block of `tensor` in the shape that the checkpoint has."""
        block = tensor[self.index] if self.index else tensor
        return block if self.rows is None else block[self.rows[0] : self.rows[1]]

    def view(self, shape: Sequence[int]) -> tuple[int, int]:
        """(rows, columns) of the matrix view of a block of this shape; (1, H) for a vector."""
        if self.transposed:
            return shape[1], shape[0]
        split = 1 if self.convolution else max(0, len(shape) - 1)
        return math.prod(shape[:split]), math.prod(shape[split:])
