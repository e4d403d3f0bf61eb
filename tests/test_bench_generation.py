"""Benchmarks of whole language models: right contenders, named failures, tables; the phase of `make gpu`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # benchmarks/ is no part of the package

import thickets  # noqa: E402
from benchmarks import generation  # noqa: E402
from benchmarks.generation import PLANS, Case  # noqa: E402
from benchmarks.gpu import __main__ as command  # noqa: E402
from benchmarks.gpu import tables  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

GENERATES, SCORES = Case("tiny", 2, 2, 3, 8), Case("tiny", 2, 2, 3, 0)


@torch.no_grad()
def measured(*cases: Case, seconds: float = 60.0, to: Path | None = None) -> dict[str, Any]:
    arguments = ["normal", "hadamard"], torch.device("cpu"), torch.float32, 0.0
    return generation.run(cases, *arguments, deadline=time.monotonic() + seconds, to=to)


def test_plans_name_each_case_once() -> None:
    for plan in PLANS.values():
        names = [str(case) for case in plan()]
        assert len(set(names)) == len(names) > 1


def test_members_are_checked_and_timed(tmp_path: Path) -> None:
    found = measured(GENERATES, SCORES, to=tmp_path / "found.json")
    assert found["failed"] == found["left_out"] == {}
    generated, scored = found["results"]
    assert set(generated["contenders"]) == {"loop", "normal", "normal, stored", "hadamard"}
    assert set(scored["contenders"]) == {"loop", "normal", "hadamard"}
    assert (generated["made"], scored["made"]) == (2 * 8, 2 * 3)
    assert generated["name"] == "tiny, N=2, B=2, 3 + 8 tokens"
    for contender in (*generated["contenders"].values(), *scored["contenders"].values()):
        assert 0 < contender["low"] <= contender["median"] <= contender["high"]
        assert contender["peak"] is None
    assert json.loads((tmp_path / "found.json").read_text()) == found


def test_what_is_wrong_or_late_is_named_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = thickets.PerturbedModule.materialize
    monkeypatch.setattr(
        thickets.PerturbedModule, "materialize", lambda pm, seed, sigma: right(pm, seed + 1, sigma)
    )
    found = measured(SCORES)
    assert found["results"] == []
    assert "normal: error" in found["failed"][str(SCORES)]
    assert tables.failures({"models": found}) == [f"{SCORES}: {found['failed'][str(SCORES)]}"]
    late = measured(SCORES, seconds=-1)
    assert late["left_out"] == {str(SCORES): "no time left"}


def test_the_table_has_rates_of_members_and_tokens() -> None:
    times = {"loop": (4.0, 2.0, 8.0), "normal": (0.5, 0.25, 1.0)}
    contenders = {
        name: {"median": median, "low": low, "high": high, "peak": 3_000_000}
        for name, (median, low, high) in times.items()
    }
    result = {"name": "a model", "made": 16, "contenders": contenders}
    found = {"results": [result], "failed": {"b": "it is wrong"}, "left_out": {"c, N=1": "no time left"}}
    text = tables.report({"models": found}, complete=False)
    assert "| a model | normal | 2 | 1-4 | 32 | 8.00 | 3 |" in text
    assert "Failed: b: it is wrong." in text
    assert "no time left (1): c: N=1" in text


def test_without_transformers_the_phase_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    run = command.Run(100.0, tmp_path)
    run.phase("models", lambda: command.models(run))
    assert run.facts["trouble"] == {}
    assert "transformers is not installed (1): language models" in (tmp_path / "gpu.md").read_text()


def test_the_phase_takes_over_what_its_process_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[list[str]] = []
    found = {"results": [], "failed": {}, "left_out": {"a": "no time left"}}

    def process(line: list[str], log: Path, deadline: float, threads: int) -> int:
        lines.append(line)
        Path(line[line.index("--to") + 1]).write_text(json.dumps(found))
        return 3

    monkeypatch.setattr(command, "MODELS", tmp_path / "models.json")
    monkeypatch.setattr(command, "run_until", process)
    run = command.Run(100.0, tmp_path)
    run.phase("models", lambda: command.models(run))
    assert run.facts["models"] == found
    assert "status 3" in run.facts["trouble"]["models"]
    assert lines[0][1:3] == ["-m", "benchmarks.generation"]
    assert float(lines[0][lines[0].index("--seconds") + 1]) <= 50
