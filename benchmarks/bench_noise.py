"""The noise alone, and the ops that touch every weight once: against torch.randn and against a plain copy."""

import pytest
import torch

import thickets
from thickets.bench import FAMILIES

pytestmark = pytest.mark.benchmark(min_rounds=3, max_time=0.5)

ROWS, COLS, MEMBERS = 1024, 4096, 8
WEIGHT = torch.randn(ROWS, COLS)
OUT = torch.empty_like(WEIGHT)


def entitle(benchmark, group: str, contender: str, **rates: float) -> None:
    benchmark.group = f"{group}, {ROWS} x {COLS}"
    benchmark.extra_info |= {"contender": contender, **rates}


@pytest.mark.parametrize("contender", ["loop", "floor", *FAMILIES])
def test_noise(benchmark, contender: str) -> None:
    """Entries a second: the column GFLOP/s counts each entry as one."""
    entitle(benchmark, "noise (loop: torch.normal_, floor: a copy)", contender, flops=WEIGHT.numel())
    calls = {"loop": lambda: OUT.normal_(), "floor": lambda: OUT.copy_(WEIGHT)}
    ours = lambda: thickets.sample_noise((ROWS, COLS), seed=1, name="w", noise=contender)  # noqa: E731
    benchmark(calls.get(contender, ours))


@pytest.mark.parametrize("contender", ["loop", "floor", *FAMILIES])
def test_perturb(benchmark, contender: str) -> None:
    entitle(benchmark, "perturb_, one member", contender, bytes=2 * WEIGHT.nbytes)
    calls = {
        "loop": lambda: torch.add(WEIGHT, torch.randn_like(WEIGHT), alpha=0.01, out=OUT),
        "floor": lambda: OUT.copy_(WEIGHT),
    }
    ours = lambda: thickets.perturb_(OUT, WEIGHT, seed=1, sigma=0.01, name="w", noise=contender)  # noqa: E731
    benchmark(calls.get(contender, ours))


@pytest.mark.parametrize("contender", ["loop", *FAMILIES])
def test_accumulate(benchmark, contender: str) -> None:
    entitle(benchmark, f"accumulate_, {MEMBERS} members", contender, flops=2 * MEMBERS * WEIGHT.numel())
    weight = WEIGHT.clone()
    seeds, coefficients = torch.arange(MEMBERS), torch.full((MEMBERS,), 1e-6)

    def loop() -> None:
        for coefficient in coefficients.tolist():
            weight.add_(torch.randn_like(weight), alpha=coefficient)

    ours = lambda: thickets.accumulate_(  # noqa: E731
        weight, seeds=seeds, coefficients=coefficients, name="w", noise=contender
    )
    benchmark(loop if contender == "loop" else ours)
