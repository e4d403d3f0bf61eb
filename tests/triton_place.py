"""Where tests of Triton launch wrappers run: a CUDA device, else the interpreter; skipped without either."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from thickets.backends import REGISTRY, refusal

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if reason := refusal(REGISTRY["triton"], torch.device(DEVICE)):
    pytest.skip(f"backend triton: {reason}", allow_module_level=True)
