"""Triton kernels and their launch wrappers: the portable GPU backend, and the readable twin of csrc/."""

from triton import knobs

if knobs.runtime.interpret:
    from .interpreter import mend

    mend()

from .accumulate import accumulate
from .combine import combine
from .hadamard import hadamard_product
from .launch import Members, Noise
from .linear import dense_product
from .lowrank import lowrank_product
from .rows import perturbed_rows

__all__ = [
    "Members",
    "Noise",
    "accumulate",
    "combine",
    "dense_product",
    "hadamard_product",
    "lowrank_product",
    "perturbed_rows",
]
