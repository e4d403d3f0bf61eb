"""`thickets bench`: contenders that are right, in tables that say what was measured."""

from __future__ import annotations

import pytest
import torch

from thickets import bench
from thickets.bench import Case, Result, Timing

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES = ("normal", "hadamard")


def result(case: Case, **microseconds: float) -> Result:
    timings = {name.replace("_", ", "): Timing(us, us, us) for name, us in microseconds.items()}
    return Result(case, timings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_contender_is_checked_and_timed(dtype: torch.dtype) -> None:
    cases = bench.cases([(40, 24)], [3], members=5, tokens=[1, 2])
    once, twice = bench.run(cases, families=FAMILIES, dtype=dtype, seconds=0.0)
    assert set(once.timings) == {"loop", "floor", *FAMILIES}
    assert set(twice.timings) == {"loop", "floor", *FAMILIES, "normal, stored", "hadamard, stored"}
    assert str(twice.case) == "40x24, 3 rows x 2 tokens"
    assert twice.case.flops == 2 * once.case.flops
    for timing in (*once.timings.values(), *twice.timings.values()):
        assert 0 < timing.low <= timing.median <= timing.high
    assert twice.as_dict()["case"]["tokens"] == 2
    assert "hadamard, stored" in twice.as_dict()["ratios"]


@pytest.mark.parametrize("op", ["perturbed_linear", "grouped_linear"])
def test_what_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch, op: str) -> None:
    right = getattr(bench, op)
    monkeypatch.setattr(bench, op, lambda *args, **tail: 1.01 * right(*args, **tail))
    with pytest.raises(RuntimeError, match=r"normal: error .* against float64, expected below 1e-05"):
        bench.run([Case(8, 8, 1, 2, tokens=2)], families=["normal"], seconds=0.0)


def test_tables_say_what_generation_chooses() -> None:
    once = result(Case(8, 8, 1), loop=6.0, floor=1.0, normal=2.0)
    few = result(Case(8, 8, 1, tokens=2), loop=6.0, floor=1.0, normal=2.0, normal_stored=3.0)
    many = [
        result(Case(8, 8, 1, tokens=64), loop=6.0, floor=1.0, normal=2.0, normal_stored=3.0),
        result(Case(9, 9, 1, tokens=64), loop=8.0, floor=1.0, normal=2.0, normal_stored=1.0),
    ]
    lines = bench.generation([once, few, *many]).splitlines()
    assert lines[0] == "| rows per member | normal |"
    assert lines[2:] == [
        "| 1 x 2 tokens | 3.00, worst 3.00 |",
        "| 1 x 64 tokens | 4.00, worst 2.00, stored |",
    ]
    assert bench.summary([few, *many]).splitlines()[-1] == "| 1 x 64 tokens | 3.5 / 0.50 | 4.0 / 0.58 |"
    assert bench.summary([few, once]).splitlines()[0] == "| rows per member | normal |"
    assert "| 8x8, 1 rows x 2 tokens | normal, stored | 3000000 |" in bench.table([few])
