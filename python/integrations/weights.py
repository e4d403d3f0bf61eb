"""The weights that an engine computes with, perturbed where they are and restored bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from ..functional import accumulate_, members_tensors, perturb_
from ..noise import family
from ..perturbed.segments import Segment


class LiveWeights:
    """An engine's weights as a base plus the perturbations that are active.

    tensors: the weights by name, all on one device, written in place (their addresses stay); segments: what
    each of them holds; noise: the family; base_on: where the copy of the base lies, "device" or "host"
    (pinned). The copy is made before the first perturbation and again after the base has changed.

    The weights are a function of the base and the list of active perturbations alone, however often either
    was changed and back: each is added in float32 and rounded once, in the order in which they came. One
    kernel is launched per segment; nothing waits for the device.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        segments: Mapping[str, Sequence[Segment]],
        *,
        noise: str = "normal",
        base_on: str = "device",
        backend: str = "auto",
    ) -> None:
        if base_on not in ("device", "host"):
            raise ValueError(f"base_on must be 'device' or 'host', got {base_on!r}")
        if not segments:
            raise ValueError("segments must be of one parameter at least, got none")
        self.tensors = {name: tensors[name] for name in segments}
        self.segments = segments
        self._blocks = [
            (name, segment, segment.of(self.tensors[name]))
            for name, parts in segments.items()
            for segment in parts
        ]
        self._device = next(iter(self.tensors.values())).device
        self._noise = str(family(noise))
        self._backend = backend
        self._on_host = base_on == "host"
        self._base: dict[str, Tensor] = {}
        self._kept = False  # the copy holds the base; without perturbations the weights themselves are it
        # Coefficients by seeds; in fractions, so that sums of what is undone are exactly 0.
        self._active: dict[tuple[int, ...], tuple[Fraction, ...]] = {}

    @property
    def active(self) -> list[tuple[int, float]]:
        """Seed and coefficient of every active perturbation."""
        pairs = [pair for seeds, given in self._active.items() for pair in zip(seeds, given, strict=True)]
        return [(seed, float(coefficient)) for seed, coefficient in pairs]

    def add(self, seed: int, coefficient: float) -> None:
        """Perturb the weights as they are: W += coefficient * eps(seed); coefficients of one seed add up."""
        members_tensors([seed], [coefficient], "cpu")
        if (seed,) not in self._active:
            self._keep()
            self._active[(seed,)] = (Fraction(coefficient),)
            self._add((seed,), (coefficient,))
            return
        total = self._active[(seed,)][0] + Fraction(coefficient)
        members_tensors([seed], [float(total)], "cpu")
        if total:
            self._active[(seed,)] = (total,)
        else:
            del self._active[(seed,)]
        self._write()

    def remove(self, seed: int, coefficient: float) -> None:
        """Undo `add(seed, coefficient)`; RuntimeError if the seed is not active."""
        if (seed,) not in self._active:
            raise RuntimeError(f"seed {seed} must be active to be restored, active are {self.active}")
        self.add(seed, -coefficient)

    def set(self, seeds: Sequence[int], coefficients: Sequence[float]) -> None:
        """Make the weights base + sum_i coefficients[i] * eps(seeds[i]), rounded once."""
        members_tensors(seeds, coefficients, "cpu")
        self._keep()
        self._active = {tuple(seeds): tuple(map(Fraction, coefficients))} if seeds else {}
        self._write()

    def reset(self) -> None:
        """Make the weights the base."""
        if self._active:
            self._active.clear()
            self._write()

    def update(self, seeds: Sequence[int], coefficients: Sequence[float]) -> None:
        """Change the base: W += sum_i coefficients[i] * eps(seeds[i]), rounded once; the active ones stay."""
        members_tensors(seeds, coefficients, "cpu")
        active, self._active = self._active, {}
        if active:
            self._write()
        self._kept = False
        if seeds:
            self._add(seeds, coefficients)
        if active:
            self._keep()
            self._active = active
            self._write()

    def settle(self) -> None:
        """Take the weights as they are for the base."""
        self._active.clear()
        self._kept = False

    def keep(self) -> None:
        """Take the weights as they are for the base, and copy them now."""
        self.settle()
        self._keep()

    def free(self) -> None:
        """Take the weights as they are for the base, and free the copy."""
        self.settle()
        self._base.clear()

    @torch.inference_mode(False)
    @torch.no_grad()
    def _keep(self) -> None:
        if self._kept or self._active:
            return
        for name, tensor in self.tensors.items():
            if name not in self._base:
                pinned = self._on_host and tensor.is_cuda
                device = "cpu" if self._on_host else tensor.device
                self._base[name] = torch.empty_like(tensor, device=device, pin_memory=pinned)
            self._base[name].copy_(tensor, non_blocking=True)
        self._kept = True

    def _write(self) -> None:
        """Make the weights the base with the active perturbations, in their order."""
        steps = [(seeds, list(map(float, given))) for seeds, given in self._active.items()]
        if steps and len(steps[0][0]) == 1 and not self._on_host:
            self._add(*steps.pop(0), from_base=True)
        else:
            for name, tensor in self.tensors.items():
                tensor.copy_(self._base[name], non_blocking=True)
        for seeds, coefficients in steps:
            self._add(seeds, coefficients)

    def _add(self, seeds: Sequence[int], coefficients: Sequence[float], from_base: bool = False) -> None:
        """Add noise to the weights, or of one seed to the base, written over the weights."""
        patterns, strengths = members_tensors(seeds, coefficients, "cpu")
        if self._device.type == "cuda":  # from pageable memory a copy would wait for the device
            patterns = patterns.pin_memory().to(self._device, non_blocking=True)
            strengths = strengths.pin_memory().to(self._device, non_blocking=True)
        for name, segment, block in self._blocks:
            place: dict[str, Any] = {
                "name": segment.name,
                "noise": self._noise,
                "origin": segment.origin,
                "full_cols": segment.full_cols,
                "backend": self._backend,
            }
            if len(seeds) == 1:
                source = segment.of(self._base[name]) if from_base else block
                perturb_(block, source, seed=patterns, sigma=strengths, **place)
            else:
                accumulate_(block, seeds=patterns, coefficients=strengths, **place)
