"""A whole language model that generates and scores, against the loop with transformers.

`python -m benchmarks.generation` times the same contenders in alternating order, over N, B and lengths.
"""

from functools import lru_cache

import pytest
import torch

from benchmarks.generation import FAMILIES, Case, Contender, contenders

pytestmark = pytest.mark.benchmark(min_rounds=3, max_time=0.5)

GENERATES = Case("llama 512", 16, 8, 16, 8)
SCORES = Case("llama 512", 16, 8, 32, 0)
ROWS = [(GENERATES, name) for name in ("loop", "normal, stored", *FAMILIES)]
ROWS += [(SCORES, name) for name in ("loop", *FAMILIES)]


@lru_cache(maxsize=1)
def built(case: Case) -> dict[str, Contender]:
    return contenders(case, FAMILIES, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(("case", "contender"), ROWS, ids=lambda value: str(value))
def test_generation(benchmark, case: Case, contender: str) -> None:
    pytest.importorskip("transformers")
    with torch.no_grad():
        chosen = built(case)[contender]
        benchmark.group = f"{case}, microseconds per member"
        benchmark.extra_info |= {"contender": contender, "members": chosen.members, "tokens": case.made}
        benchmark(chosen.run)
