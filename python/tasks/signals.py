"""The paper's 1-D experiment: forecast a signal from its last 10 values, after three kinds of pretraining.

Regimes: `thicket`, pretrained on a mixture of signal families; `plateau`, on lines only; `haystack`, not at
all. RandOpt then adapts the network to one family. The network predicts the next value and is rolled out: it
sees 10 values and forecasts the following ones, its forecasts fed back. A member's score is the negative mean
squared error of its roll-outs over `horizon` steps; horizon = 1 scores the next value alone (teacher
forcing). The ensemble is the mean of its members' roll-outs, and everything is judged on roll-outs of 60
steps from signals never seen before.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from thickets.tasks.case import Case, fit, generator

CONTEXT, STEPS, WIDTH = 10, 60, 128
HELD_OUT = 256
METRIC, HOW = "MSE", "mean"

WAVES: dict[str, Callable[[Tensor], Tensor]] = {  # value at a phase in [0, 1)
    "sine": lambda phase: torch.sin(2 * math.pi * phase),
    "triangle": lambda phase: 4 * (phase - 0.5).abs() - 1,
    "sawtooth": lambda phase: 2 * phase - 1,
    "square": lambda phase: torch.sign(phase - 0.5),
}
FAMILIES = ("lines", *WAVES)
REGIMES = {"thicket": FAMILIES, "plateau": ("lines",), "haystack": ()}
SIGMAS = {"thicket": 0.002, "plateau": 0.002, "haystack": 0.05}


class Forecaster(nn.Module):
    """Five linear layers that predict a signal's next value from the last 10, and their roll-out."""

    def __init__(self, steps: int = STEPS) -> None:
        super().__init__()
        sizes = (CONTEXT, WIDTH, WIDTH, WIDTH, WIDTH, 1)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.next_value = nn.Sequential(*layers[:-1])
        self.steps = steps

    def forward(self, context: Tensor, steps: int | None = None) -> Tensor:
        """The next `steps` values [B, steps] after each context [B, 10]."""
        values = []
        for _ in range(self.steps if steps is None else steps):
            values.append(self.next_value(context))
            context = torch.cat([context[:, 1:], values[-1]], dim=1)
        return torch.cat(values, dim=1)


def draw(family: str, n: int, rng: torch.Generator, length: int = CONTEXT + STEPS) -> Tensor:
    """n signals of one family, float32 [n, length], of random amplitude, period (8 to 20) and phase."""
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    amplitude, period, phase = torch.rand(3, n, 1, generator=rng)
    t = torch.arange(length)
    if family == "lines":
        return 1.6 * (phase - 0.5) + 0.04 * (amplitude - 0.5) * t
    return (0.3 + 0.7 * amplitude) * WAVES[family]((t / (8 + 12 * period) + phase) % 1)


def untrained(seed: int = 0) -> Forecaster:
    """The network before pretraining, initialised from seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Forecaster()


def network(regime: str, seed: int = 0, steps: int = 2000) -> Forecaster:
    """The regime's base network, pretrained in seconds on next values; deterministic in seed."""
    if regime not in REGIMES:
        raise ValueError(f"regime must be one of {', '.join(REGIMES)}, got {regime!r}")
    model = untrained(seed)
    if REGIMES[regime]:
        rng = generator(seed, "pretrain")
        pool = torch.cat([draw(family, 2048, rng) for family in REGIMES[regime]])

        def batch() -> tuple[Tensor, Tensor]:
            rows = torch.randint(len(pool), (512, 1), generator=rng)
            start = torch.randint(pool.shape[1] - CONTEXT, (512, 1), generator=rng)
            window = pool[rows, start + torch.arange(CONTEXT + 1)]
            return window[:, :CONTEXT], window[:, CONTEXT:]

        fit(model.next_value, batch, nn.functional.mse_loss, steps=steps, lr=2e-3)
    return model.eval()


def score(predictions: Tensor, targets: Tensor) -> Tensor:
    """Each example's negative mean squared error: [N, B, steps], [B, steps] -> [N, B]."""
    return -(predictions - targets).square().mean(-1)


def case(
    name: str = "thicket",
    *,
    seed: int = 0,
    target: str = "sine",
    examples: int = 1024,
    horizon: int = STEPS,
    model: nn.Module | None = None,
) -> Case:
    """One regime with its data: `examples` signals of the target family to select on, 256 others to judge by.

    model: the regime's base if it was pretrained before. ValueError names the argument at fault.
    """
    if examples < 1:
        raise ValueError(f"examples must be at least 1, got {examples}")
    if not 1 <= horizon <= STEPS:
        raise ValueError(f"horizon must be in [1, {STEPS}], got {horizon}")
    model = network(name, seed) if model is None else model
    select = draw(target, examples, generator(seed, "select"))
    held_out = draw(target, HELD_OUT, generator(seed, "held out"))
    return Case(
        task="signals",
        name=name,
        options={"seed": seed, "target": target, "examples": examples, "horizon": horizon},
        model=model,
        select=({"context": select[:, :CONTEXT], "steps": horizon}, select[:, CONTEXT : CONTEXT + horizon]),
        held_out=({"context": held_out[:, :CONTEXT], "steps": STEPS}, held_out[:, CONTEXT:]),
        score=score,
        metric=METRIC,
        how=HOW,
        sigma=SIGMAS[name],
        top_k=10,
        stored=horizon > 1,
    )


def as_inputs(values: Tensor) -> dict[str, Tensor]:
    """Contexts from a user's file, [B, 10]; ValueError for any other shape."""
    if values.dim() != 2 or values.shape[1] != CONTEXT:
        raise ValueError(f"inputs must be contexts [B, {CONTEXT}], got {tuple(values.shape)}")
    return {"context": values}
