"""What an experiment hands over: a base network, data to select members on, other data to judge them by."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn

from thickets.statistics import Interval

Pair = tuple[Any, Tensor]


@dataclass(frozen=True)
class Case:
    """One experiment of one task, ready for RandOpt.

    options: what the task's `case` function was given besides the name, seed included, as JSON values. model:
    the pretrained base, in eval mode.   select, held_out: (inputs, targets [B, ...]), disjoint; `pm(inputs)`
    gives predictions [N, B, ...].   score(predictions, targets) -> [N, B], higher is better. metric: what the
    reports call it ("accuracy": the mean score; "MSE": its negative).   how: the rule of the vote. sigma,
    top_k: this experiment's defaults.   stored: the model is run many times over per member.
    """

    task: str
    name: str
    options: dict[str, Any]
    model: nn.Module
    select: Pair
    held_out: Pair
    score: Callable[[Tensor, Tensor], Tensor]
    metric: str
    how: str
    sigma: float
    top_k: int
    stored: bool = False

    @property
    def sign(self) -> int:
        """-1 where the metric is an error, the negative of the score; else 1."""
        return sign(self.metric)

    @property
    def seed(self) -> int:
        """The seed of data and pretraining."""
        return int(self.options["seed"])


def sign(metric: str) -> int:
    """-1 for an error, which is the negative of the score; 1 for what is the score."""
    return -1 if metric == "MSE" else 1


def in_metric(scores: Interval, metric: str) -> Interval:
    """An interval of scores as one of the metric."""
    return scores if sign(metric) > 0 else Interval(-scores.value, -scores.high, -scores.low)


def plain(interval: Interval) -> dict[str, float | None]:
    """{"value", "low", "high"} as JSON values: a bound that does not exist is None."""
    return {key: value if math.isfinite(value) else None for key, value in vars(interval).items()}


def generator(seed: int, role: str) -> torch.Generator:
    """A generator of its own for each use of randomness: changing one leaves the others as they are."""
    mixed = blake2b(f"{seed} {role}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(mixed, "little") >> 1)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch and our kernels on one thread.

    Layers of 128 inputs are done in microseconds. Measured on two cores, 32 members of 128 roll-outs: 0.49 s
    on two threads and 0.54 s on one while the machine is quiet, 4.6 to 57 s and 2.0 s beside two busy
    processes, since the threads of a parallel region then wait for each other's turn.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fit(
    model: nn.Module,
    batch: Callable[[], tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    steps: int,
    lr: float,
) -> None:
    """Train in place by Adam with a cosine schedule, `batch()` giving the (inputs, targets) of each step.

    One thread: the trained bits then do not depend on their number.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with one_thread(), torch.enable_grad():
        for _ in range(steps):
            inputs, targets = batch()
            optimizer.zero_grad()
            loss(model(inputs), targets).backward()
            optimizer.step()
            schedule.step()
