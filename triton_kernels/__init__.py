"""Triton kernels and their launch wrappers: the portable GPU backend, and the readable twin of csrc/."""

from triton import knobs

if knobs.runtime.interpret:
    from .interpreter import mend

    mend()

from .accumulate import accumulate
from .hadamard import hadamard_product
from .linear import dense_product
from .lowrank import lowrank_product
from .rows import perturbed_rows

__all__ = [
    "accumulate",
    "dense_product",
    "hadamard_product",
    "lowrank_product",
    "perturbed_rows",
]
