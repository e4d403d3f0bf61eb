"""Tile shapes, chosen on the device: the kernels take them as constants and know nothing of how.

On a GPU the first launch of a shape class times every configuration of the kernel and keeps the best for the
life of the process; so run a shape once before capturing it in a CUDA graph. The interpreter takes the first
configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import triton

from .noise import INTERPRETED

OPTIONS = {"enable_fp_fusion": False}  # a product and a sum are rounded one by one unless the contract says fma

Grid = Callable[[dict[str, Any]], tuple[int, ...]]


def config(warps: int, stages: int = 3, **tiles: int) -> triton.Config:
    """Tile shapes by the names of a kernel's constants, with warps per program and pipeline stages."""
    return triton.Config(tiles, num_warps=warps, num_stages=stages)


class Tuned:
    """A kernel with its configurations; `key` names the arguments that make a shape class.

    `written` names the arguments a launch overwrites: timing must leave them as they were.
    """

    def __init__(
        self, kernel: Any, configs: Sequence[triton.Config], key: Sequence[str], written: Sequence[str]
    ) -> None:
        self.kernel, self.configs = kernel, list(configs)
        if not INTERPRETED.value:
            self.tuner = triton.autotune(
                self.configs,
                key=list(key),
                restore_value=list(written),
                do_bench=partial(triton.testing.do_bench, warmup=3, rep=12),
            )(kernel)

    def __call__(self, grid: Grid, **arguments: Any) -> None:
        """Launch over grid(the chosen constants)."""
        if INTERPRETED.value:
            arguments |= self.configs[0].kwargs
            self.kernel[grid](**arguments)
        else:
            self.tuner[grid](**arguments, **OPTIONS)
