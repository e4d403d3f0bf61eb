"""One perturbed linear layer: every family against the loop and the floor (docs/performance.md).

`thickets bench` times the same contenders in alternating order; this is the pytest-benchmark view of them.
"""

from functools import lru_cache

import pytest
import torch

from thickets.bench import BASELINES, FAMILIES, Case, Contenders, cases, contenders

pytestmark = pytest.mark.benchmark(min_rounds=3, max_time=0.5)


@lru_cache(maxsize=1)
def built(case: Case) -> Contenders:
    return contenders(case)


@pytest.mark.parametrize("contender", [*BASELINES, *FAMILIES])
@pytest.mark.parametrize("case", cases(), ids=str)
def test_linear(benchmark, case: Case, contender: str) -> None:
    benchmark.group = f"linear {case}, {case.members} members, microseconds per member"
    benchmark.extra_info |= {"contender": contender, "members": case.members, "flops": case.flops}
    with torch.no_grad():
        benchmark(built(case)[contender])
