"""Members through a model: predictions and per-example scores of any group of members, in chunks that fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..votes import Predictions, join
from .batches import Batch
from .chunks import ChunkSize, memory_limit, run_in_chunks

if TYPE_CHECKING:
    from ..perturbed import PerturbedModule

Predict = Callable[["PerturbedModule", Any], Any]
Score = Callable[[Any, Any], Any]


class SeedAndSigma(Protocol):
    """What makes a member: a `Member` of a run or a `Record` of a store."""

    @property
    def seed(self) -> int: ...
    @property
    def sigma(self) -> float: ...


@dataclass(frozen=True)
class Member:
    """One perturbed copy of the base model: its place in the run, 64-bit seed and sigma."""

    index: int
    seed: int
    sigma: float


BASE_MEMBER = Member(-1, 0, 0.0)  # W + 0 * eps is W bit for bit: the base runs through the members' own code


def call(pm: PerturbedModule, inputs: Any) -> Any:
    """The default `predict`: pm(inputs); a tuple is passed as positional, a dict as keyword arguments."""
    if isinstance(inputs, tuple):
        return pm(*inputs)
    if isinstance(inputs, dict):
        return pm(**inputs)
    return pm(inputs)


@dataclass(frozen=True)
class Evaluator:
    """A perturbed model and how to run it: `predict`, and the options of `pm.members`."""

    pm: PerturbedModule
    predict: Predict = call
    fold: bool = True
    stored: bool = False

    def predictions(self, members: Sequence[SeedAndSigma], inputs: Any, size: ChunkSize) -> Predictions:
        """Predictions of N members for one batch: a tensor [N, B, ...] or N lists of B answers."""
        parts: list[Predictions] = []
        for outcome in run_in_chunks(members, lambda chunk: self.together(chunk, inputs), size):
            if outcome.result is None:
                raise outcome.error or TypeError("predict must return predictions, got None")
            parts.append(outcome.result)
        return join(parts)

    def examples(self, members: Sequence[SeedAndSigma], batches: Sequence[Batch], score: Score) -> Tensor:
        """Per-example scores of N members at once over all batches, float32 [N, B] on the CPU."""
        with self._active(members):
            parts = [score_batch(score, self.predict(self.pm, x), y, len(members)) for x, y in batches]
        return torch.cat(parts, dim=1)

    def size(self, inputs: Sequence[Any], chunk: int | None, memory: int | str) -> ChunkSize:
        """Chunks of `chunk` members, or as many as `memory` holds, from a run of one on the largest."""
        if chunk is not None:
            return ChunkSize(chunk)
        largest = max(inputs, key=_bytes)
        device = next((p.device for p in self.pm.base.parameters()), torch.device("cpu"))
        weights = sum(p.nbytes for p in self.pm.base.parameters()) if self.stored else 0
        limit = memory_limit(lambda: self.together([BASE_MEMBER], largest), memory, device, weights)
        return ChunkSize(None, limit)

    def together(self, members: Sequence[SeedAndSigma], inputs: Any) -> Any:
        """Predictions of N members for one batch, all at once."""
        with self._active(members):
            return self.predict(self.pm, inputs)

    @contextmanager
    def _active(self, members: Sequence[SeedAndSigma]) -> Iterator[None]:
        seeds, sigmas = [m.seed for m in members], [m.sigma for m in members]
        with torch.no_grad(), self.pm.members(seeds, sigmas, fold=self.fold, stored=self.stored):
            yield


def score_batch(score: Score, predictions: Any, targets: Any, n: int) -> Tensor:
    """score(predictions, targets) checked to be [N, B] and brought to the CPU in float32."""
    scores = torch.as_tensor(score(predictions, targets))
    if scores.dim() != 2 or len(scores) != n or scores.shape[1] == 0:
        raise ValueError(
            f"score must return [N={n}, B], one score per member and example, got {tuple(scores.shape)}"
        )
    return scores.detach().to("cpu", torch.float32)


def check_chunking(chunk: int | None, memory: int | str) -> None:
    """ValueError unless chunk is None or a count and memory "auto" or bytes."""
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
        raise ValueError(f"chunk must be None or a number of members >= 1, got {chunk!r}")
    if memory != "auto" and (isinstance(memory, bool) or not isinstance(memory, int) or memory < 1):
        raise ValueError(f"memory must be 'auto' or bytes >= 1, got {memory!r}")


def _bytes(inputs: Any) -> int:
    return sum(leaf.nbytes for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor))
