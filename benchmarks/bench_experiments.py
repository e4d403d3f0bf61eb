"""Both experiments, from members to scores: `thickets.search` against a loop that perturbs in place.

The loop is what today's scripts do for each member: draw torch.randn for every parameter, add it, run the
model on the selection data, score, subtract. The search includes all else that it does, but for the file.
"""

import copy
from functools import lru_cache

import pytest
import torch

import thickets
from thickets.bench import FAMILIES
from thickets.tasks import digits, signals
from thickets.tasks.case import Case

pytestmark = pytest.mark.benchmark(min_rounds=3, max_time=1.0)

CASES = {  # name -> the case, members per run; pretraining changes no time, so there is little or none
    "signals, 1024 next values": (lambda: signals.case("haystack", horizon=1), 256),
    "signals, 128 roll-outs of 60": (lambda: signals.case("haystack", examples=128), 128),
    "signals, 1024 roll-outs of 60": (lambda: signals.case("haystack"), 32),
    "digits, 200 scans": (lambda: digits.case("rotation", model=digits.untrained()), 512),
}


@lru_cache(maxsize=1)
def built(name: str) -> tuple[Case, int]:
    make, members = CASES[name]
    return make(), members


@torch.no_grad()
def loop(case: Case, members: int) -> list[float]:
    """The members' scores, by a model whose weights are perturbed in place and restored by subtraction."""
    model, (inputs, targets) = copy.deepcopy(case.model), case.select
    arguments = tuple(inputs.values()) if isinstance(inputs, dict) else (inputs,)
    parameters, scores = list(model.parameters()), []
    for seed in range(members):
        for sign in (1, -1):
            torch.manual_seed(seed)
            for parameter in parameters:
                parameter.add_(torch.randn_like(parameter), alpha=sign * case.sigma)
            if sign > 0:
                scores.append(float(case.score(model(*arguments)[None], targets).mean()))
    return scores


@pytest.mark.parametrize("contender", ["loop", *FAMILIES])
@pytest.mark.parametrize("name", CASES)
def test_experiment(benchmark, name: str, contender: str) -> None:
    case, members = built(name)
    benchmark.group = f"{name}, {members} members, microseconds per member"
    benchmark.extra_info |= {"contender": contender, "members": members}
    settings = {
        "data": [case.select],
        "score": case.score,
        "sigma": case.sigma,
        "top_k": 1,
        "stored": case.stored,
    }

    def search() -> None:
        thickets.search(case.model, n=members, noise=contender, progress=False, **settings)

    benchmark((lambda: loop(case, members)) if contender == "loop" else search)
