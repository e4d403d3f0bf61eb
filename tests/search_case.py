"""A small search that the tests share, and that they start as a process of its own to interrupt it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import thickets
from thickets.randopt.store import Record

SETTINGS = {"n": 40, "sigma": (0.1, 0.3), "top_k": 5, "seed": 11, "progress": False}


def network() -> nn.Module:
    """The same small classifier on every call."""
    generator = torch.Generator().manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return net.eval()


def batches(count: int = 2, first: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Batches of 25 examples of three classes."""
    result = []
    for i in range(first, first + count):
        x = torch.randn(25, 4, generator=torch.Generator().manual_seed(100 + i))
        result.append((x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()))
    return result


def margin(predictions: Tensor, targets: Tensor) -> Tensor:
    """A score without ties: the log-probability of the right class, [N, B]."""
    return predictions.log_softmax(-1).gather(-1, targets.expand(len(predictions), -1)[..., None])[..., 0]


def accuracy(predictions: Tensor, targets: Tensor) -> Tensor:
    """1 where the class with the highest score is the right one, else 0, [N, B]."""
    return (predictions.argmax(-1) == targets).float()


def contents(records: tuple[Record, ...] | list[Record]) -> list[tuple]:
    """What must be equal in two runs: everything but the time."""
    return [
        (
            r.index,
            r.seed,
            r.sigma,
            r.score,
            None if r.examples is None else tuple(r.examples.tolist()),
            r.failure,
        )
        for r in records
    ]


def slow_search(store: str) -> None:
    """Scores two members at a time with a pause, until ctrl-C, which ends it as a command line would."""

    def slow(predictions: Tensor, targets: Tensor) -> Tensor:
        time.sleep(0.02)
        return margin(predictions, targets)

    slow.__qualname__ = margin.__qualname__  # it is the same score
    try:
        thickets.search(network(), data=batches(), score=slow, store=store, chunk=2, **SETTINGS)
    except KeyboardInterrupt:
        sys.exit(130)


def vote(thicket: str, output: str) -> None:
    """Loads a thicket in this process and writes its answers."""
    x = batches(1, first=9)[0][0]
    loaded = thickets.Thicket.load(thicket)
    votes = loaded.vote(network(), x, "probabilities")
    torch.save({"predictions": loaded.predictions(network(), x), "votes": tuple(votes)}, output)


if __name__ == "__main__":
    {"search": slow_search, "vote": vote}[sys.argv[1]](*map(str, map(Path, sys.argv[2:])))
