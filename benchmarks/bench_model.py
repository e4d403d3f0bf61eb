"""Whole models: one forward of N members against the loop over in-place perturbations, and the floor."""

import copy
from functools import lru_cache
from itertools import pairwise

import pytest
import torch
from torch import nn

import thickets
from thickets.bench import FAMILIES, SIGMA

pytestmark = pytest.mark.benchmark(min_rounds=3, max_time=1.0)

MEMBERS = 16


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with a norm and an activation between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-2]).eval()


MODELS = {
    "digits 64-256-256-256-10": ((64, 256, 256, 256, 10), 200),
    "wide 512-2048-2048-512": ((512, 2048, 2048, 512), 8),
}


@lru_cache(maxsize=1)
def case(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    widths, batch = MODELS[name]
    return mlp(*widths), torch.randn(batch, widths[0])


@pytest.mark.parametrize("contender", ["loop", "floor", *FAMILIES, "normal, stored"])
@pytest.mark.parametrize("name", MODELS)
def test_model(benchmark, name: str, contender: str) -> None:
    model, x = case(name)
    benchmark.group = f"model {name}, {len(x)} rows, {MEMBERS} members, microseconds per member"
    benchmark.extra_info |= {"contender": contender, "members": MEMBERS}
    written, repeated = copy.deepcopy(model), x.repeat(MEMBERS, 1)

    def loop() -> None:
        for _ in range(MEMBERS):
            noises = [torch.randn_like(p) for p in written.parameters()]
            for parameter, noise in zip(written.parameters(), noises, strict=True):
                parameter.add_(noise, alpha=SIGMA)
            written(x)
            for parameter, noise in zip(written.parameters(), noises, strict=True):
                parameter.sub_(noise, alpha=SIGMA)

    family, _, stored = contender.partition(", ")

    def members() -> None:
        with perturbed.members(range(MEMBERS), [SIGMA] * MEMBERS, stored=bool(stored)):
            perturbed(x)

    calls = {"loop": loop, "floor": lambda: model(repeated)}
    if contender not in calls:
        perturbed = thickets.perturb(model, noise=family)
    with torch.no_grad():
        benchmark(calls.get(contender, members))
