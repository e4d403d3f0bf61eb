"""Tile shapes, chosen on the device: the kernels take them as constants and know nothing of how.

On a GPU the first launch of a shape class times every configuration of the kernel and keeps the best for the
life of the process; so run a shape once before capturing it in a CUDA graph. The interpreter takes the first
configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor
from triton import knobs

OPTIONS = {"enable_fp_fusion": False}  # products and sums are rounded one by one unless the contract says fma

Grid = Callable[[dict[str, Any]], tuple[int, ...]]


def config(warps: int, stages: int = 3, **tiles: int) -> triton.Config:
    """Tile shapes by the names of a kernel's constants, with warps per program and pipeline stages."""
    return triton.Config(tiles, num_warps=warps, num_stages=stages)


class Tuned:
    """A kernel with its configurations; `key` names the arguments that make a shape class.

    `written` names the arguments a launch overwrites: timing must leave them as they were. `fits` says
    whether a configuration serves the arguments of a launch; at least one must.
    """

    def __init__(
        self,
        kernel: Any,
        configs: Sequence[triton.Config],
        key: Sequence[str],
        written: Sequence[str],
        fits: Callable[[triton.Config, dict[str, Any]], bool] = lambda shape, arguments: True,
    ) -> None:
        self.kernel, self.configs, self.fits = kernel, list(configs), fits
        if not knobs.runtime.interpret:
            self.tuner = triton.autotune(
                self.configs,
                key=list(key),
                restore_value=list(written),
                prune_configs_by={"early_config_prune": self._fitting},
                do_bench=partial(triton.testing.do_bench, warmup=3, rep=12),
            )(kernel)

    def __call__(self, grid: Grid, **arguments: Any) -> None:
        """Launch over grid(the chosen constants), on the device of the arguments and its current stream."""
        if knobs.runtime.interpret:
            self.kernel[grid](**arguments, **self._fitting(self.configs, arguments)[0].kwargs)
            return
        with torch.cuda.device(next(a.device for a in arguments.values() if isinstance(a, Tensor))):
            self.tuner[grid](**arguments, **OPTIONS)

    def _fitting(
        self, configs: list[triton.Config], arguments: dict[str, Any], **rest: Any
    ) -> list[triton.Config]:
        return [c for c in configs if self.fits(c, arguments | rest)]
