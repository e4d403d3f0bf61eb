"""Handwritten digits: a network pretrained on upright clean scans, adapted by RandOpt to others.

The data are the 1797 scans of 8x8 pixels that ship in scikit-learn (UCI, Alpaydin and Kaynak 1998): 900 to
pretrain on, 200 to select members by, 697 to judge by, without overlap (but a writer may appear in several).
A member's score is its accuracy; the ensemble is a majority vote.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from thickets.tasks.case import Case, fit, generator

PRETRAIN, SELECT = 900, 200
METRIC, HOW = "accuracy", "majority"


def rotate(images: Tensor, degrees: float = 20.0) -> Tensor:
    """images [B, 8, 8] turned about their centre, bilinear, zeros outside."""
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    turn = torch.tensor([[cosine, -sine, 0.0], [sine, cosine, 0.0]]).expand(len(images), 2, 3)
    grid = nn.functional.affine_grid(turn, [len(images), 1, *images.shape[1:]], align_corners=False)
    return nn.functional.grid_sample(images[:, None], grid, align_corners=False)[:, 0]


def blur(images: Tensor, width: float = 0.8) -> Tensor:
    """images [B, 8, 8] convolved with a Gaussian of that many pixels."""
    row = torch.exp(-torch.arange(-2.0, 3.0).square() / (2 * width**2))
    kernel = (row[:, None] * row / row.sum() ** 2)[None, None]
    return nn.functional.conv2d(images[:, None], kernel, padding=2)[:, 0]


def add_noise(images: Tensor, amount: float = 0.3) -> Tensor:
    """images [B, 8, 8] plus independent Gaussian noise of that standard deviation (white is 1)."""
    rng = torch.Generator().manual_seed(len(images))
    return images + amount * torch.randn(images.shape, generator=rng)


SHIFTS: dict[str, Callable[[Tensor], Tensor]] = {"rotation": rotate, "blur": blur, "noise": add_noise}


def scans() -> tuple[Tensor, Tensor]:
    """All images, float32 [1797, 8, 8] in [0, 1], and their labels, int64 [1797]."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise RuntimeError(f"the digits need scikit-learn: pip install 'thickets[tasks]' ({error})") from None
    bunch = load_digits()
    return torch.tensor(bunch.images / 16, dtype=torch.float32), torch.tensor(bunch.target, dtype=torch.int64)


def split(seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """`pretrain`, `select`, `held out`: upright images [B, 8, 8] and labels [B], disjoint, by seed."""
    images, labels = scans()
    order = torch.randperm(len(images), generator=generator(seed, "split"))
    parts = order.split([PRETRAIN, SELECT, len(order) - PRETRAIN - SELECT])
    names = ("pretrain", "select", "held out")
    return {name: (images[part], labels[part]) for name, part in zip(names, parts, strict=True)}


def untrained(seed: int = 0) -> nn.Sequential:
    """The network before pretraining: 64-256-256-256-10 with ReLU, on images [B, 8, 8]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise((64, 256, 256, 256, 10)):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def network(seed: int = 0, steps: int = 270) -> nn.Sequential:
    """The base network, pretrained on upright clean scans in seconds; deterministic in seed."""
    model = untrained(seed)
    images, labels = split(seed)["pretrain"]
    rng = generator(seed, "pretrain")

    def batch() -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(images), (100,), generator=rng)
        return images[rows], labels[rows]

    fit(model, batch, nn.functional.cross_entropy, steps=steps, lr=1e-3)
    return model.eval()


def score(predictions: Tensor, targets: Tensor) -> Tensor:
    """1 where the most likely class is the label, 0 elsewhere and for NaN: [N, B, 10], [B] -> [N, B]."""
    return ((predictions.argmax(-1) == targets) & ~predictions.isnan().any(-1)).float()


def case(name: str = "rotation", *, seed: int = 0, model: nn.Module | None = None) -> Case:
    """One shift with its data; `model` is the base if it was pretrained before."""
    if name not in SHIFTS:
        raise ValueError(f"shift must be one of {', '.join(SHIFTS)}, got {name!r}")
    parts = split(seed)
    select, held_out = ((SHIFTS[name](parts[part][0]), parts[part][1]) for part in ("select", "held out"))
    return Case(
        task="digits",
        name=name,
        options={"seed": seed},
        model=network(seed) if model is None else model,
        select=select,
        held_out=held_out,
        score=score,
        metric=METRIC,
        how=HOW,
        sigma=0.03,
        top_k=20,
    )


def as_inputs(values: Tensor) -> Tensor:
    """Scans from a user's file, [B, 8, 8] or [B, 64], ink 1 on paper 0; ValueError for other shapes."""
    if values.dim() not in (2, 3) or tuple(values.shape[1:]) not in ((64,), (8, 8)):
        raise ValueError(f"inputs must be scans [B, 8, 8] or [B, 64], got {tuple(values.shape)}")
    return values.reshape(-1, 8, 8)
