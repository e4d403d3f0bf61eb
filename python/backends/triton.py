"""The Triton kernels of thickets.triton_kernels: any GPU that Triton knows, or a CPU by its interpreter.

Noise is the contract's exact form, so materialised weights have the CPU's bits.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

import torch

from .gpu import backend
from .kernels import Kernels

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's own switch: its kernels run on the CPU

# The fused kernel makes the noise anew for every 64 rows. Predicted from instructions and bytes, not yet
# measured (docs/performance.md).
SCRATCH_FROM = {"normal": 128, "normal4": 256, "rademacher": 512}


@cache
def why_not() -> str | None:
    """Why these kernels cannot run here."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if not INTERPRETED and not torch.cuda.is_available():
        return "torch sees no GPU (TRITON_INTERPRET=1 runs the kernels on a CPU, slowly)"
    return None


def kernels() -> Kernels:
    """Imported at the first call: `import thickets` loads torch alone."""
    from .. import triton_kernels

    return triton_kernels


BACKEND = backend("triton", ("cpu",) if INTERPRETED else ("cuda",), why_not, kernels, SCRATCH_FROM)
