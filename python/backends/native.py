"""How thickets._C takes tensors and families: integers, with the codes of csrc/noise.h and csrc/ops.h."""

from __future__ import annotations

import torch
from torch import Tensor

FAMILIES = {"none": 0, "normal": 1, "normal4": 2, "rademacher": 3, "hadamard": 4, "lowrank": 5}
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
NO_MATRIX = (0, 0, 0)


def matrix(tensor: Tensor | None) -> tuple[int, int, int]:
    """Pointer, dtype and leading dimension of [..., rows, cols], or NO_MATRIX where there is none."""
    return NO_MATRIX if tensor is None else (tensor.data_ptr(), DTYPES[tensor.dtype], tensor.stride(-2))
