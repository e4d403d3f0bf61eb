"""`make gpu` without a GPU: its cases, timing, checks, tables, verdicts; what it does when things crash."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # benchmarks/ is no part of the package

from benchmarks.gpu import __main__ as command  # noqa: E402
from benchmarks.gpu import contenders, measure, outcomes, suite, tables, targets, timing  # noqa: E402
from benchmarks.gpu.cases import FAMILIES, LAYERS, PLANS, Layer, Linear, Update  # noqa: E402
from benchmarks.gpu.processes import BROKEN, crashed, run_until  # noqa: E402
from benchmarks.gpu.record import INPUTS, TIMING, Record  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
LAYER = Layer("tiny", 40, 96)
CASE = Linear(LAYER, 3, 2)


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return Record(tmp_path / "measured.json", {"backends": ["cpu"]})


def fake(us: dict[str, float], failed: tuple[str, ...] = (), case: Any = CASE) -> dict[str, Any]:
    """The result of a case with these microseconds per member."""
    keys = ("low", "high", "GB_per_s", "TFLOP_per_s")
    row = dict.fromkeys(keys, 1.0) | {"launch_us": None, "peak_MB": None, "error": None, "timed": "graph"}
    found = {name: {"us": value, **row} for name, value in us.items()}
    return {
        "name": str(case), "case": case.as_dict(), "contenders": found, "failed": dict.fromkeys(failed, "why")
    }  # fmt: skip


def test_the_plan_covers_every_target_and_names_each_case_once() -> None:
    for plan in (PLANS["chosen"](), PLANS["everything"]()):
        names = [str(case) for case in plan]
        assert len(set(names)) == len(names)
        for target in targets.TARGETS:
            assert any(target.where(case.as_dict()) for case in plan), target.text
    linear = {case for case in PLANS["everything"]() if isinstance(case, Linear)}
    assert len(linear) == len(LAYERS) * 3 * 5
    assert set(PLANS["chosen"]()) <= set(PLANS["everything"]())


def test_every_contender_is_right_and_timed(record: Record) -> None:
    plan = [CASE, Update(LAYER, "perturb_", 1), Update(LAYER, "accumulate_", 2, "float32")]
    measure.run(record, plan, ["cpu"], CPU, torch.bfloat16, seconds=0.0, deadline=time.monotonic() + 60)
    linear, *updates = json.loads(record.path.read_text())["results"]
    forms = [f"cpu {family} {how}" for family in FAMILIES for how in ("exact", "storage", "scratch")]
    assert set(linear["contenders"]) == {"loop", "floor A", "floor B", *forms}
    for update in updates:
        assert set(update["contenders"]) == {"loop", "copy", *(f"cpu {family}" for family in FAMILIES)}
    for result in (linear, *updates):
        assert result["failed"] == {}
        for name, contender in result["contenders"].items():
            assert 0 < contender["low"] <= contender["us"] <= contender["high"], name
            assert (contender["error"] is not None) == name.startswith("cpu"), name
    assert linear["contenders"]["cpu normal exact"]["error"] < 5e-3
    assert updates[1]["contenders"]["cpu normal"]["error"] < 1e-6
    assert not record.attempt.exists()


@pytest.mark.parametrize("spoil", ["other noise", "one row unwritten", "error"])
def test_what_is_wrong_is_named_and_not_timed(record: Record, monkeypatch: Any, spoil: str) -> None:
    right = contenders.thickets.perturbed_linear

    def wrong(x: torch.Tensor, *args: Any, **tail: Any) -> torch.Tensor:
        if tail["noise"] != "normal4":
            return right(x, *args, **tail)
        if spoil == "error":
            raise RuntimeError("it does not compile")
        if spoil == "other noise":
            return right(x, *args, **tail | {"name": "another"})
        y = right(x, *args, **tail)
        y[1, 0] = float("nan")
        return y

    monkeypatch.setattr(contenders.thickets, "perturbed_linear", wrong)
    measure.run(record, [CASE], ["cpu"], CPU, torch.bfloat16, 0.0, time.monotonic() + 60)
    result = record.results[0]
    assert set(result["failed"]) == {"cpu normal4 exact", "cpu normal4 storage"}
    word = "it does not compile" if spoil == "error" else "against float64"
    assert all(word in why for why in result["failed"].values())
    assert "us" in result["contenders"]["cpu normal exact"]
    assert tables.failures({"measured": {"results": [result]}})


def test_what_the_time_or_the_memory_does_not_allow_is_named(record: Record) -> None:
    huge = Linear(Layer("huge", 1 << 20, 1 << 20), 1, 1)
    clock = iter([0.0, 0.0, 100.0])
    plan = [huge, CASE, Update(LAYER, "perturb_", 1)]
    measure.run(record, plan, ["cpu"], CPU, torch.bfloat16, 0.0, deadline=50, now=lambda: next(clock))
    assert [result["name"] for result in record.results] == [str(CASE)]
    left_out = json.loads(record.path.read_text())["left_out"]
    assert left_out == {str(huge): "does not fit into memory", str(plan[2]): "no time left"}
    words = tables.left_out(left_out)
    assert "no time left (1): perturb_ tiny 40x96 bfloat16: N=1" in words
    assert "huge 1048576x1048576: N=1 M=1" in words


@pytest.mark.parametrize("culprit", ["cpu hadamard exact", INPUTS, TIMING])
def test_a_crash_costs_one_contender(record: Record, culprit: str) -> None:
    record.resume()
    record.trying(CASE, culprit)  # and then the process ends
    again = Record(record.path, record.settings)
    again.resume()
    measure.run(again, [CASE], ["cpu"], CPU, torch.bfloat16, 0.0, time.monotonic() + 60)
    assert again.results[0]["failed"] == {culprit: "the process ended"}
    assert ("cpu normal exact" in again.results[0]["contenders"]) == (culprit not in (INPUTS, TIMING))
    third = Record(record.path, record.settings)
    third.resume()
    assert third.results == again.results
    other = Record(record.path, {"backends": ["another"]})
    other.resume()
    assert other.results == []


def test_kernels_are_compiled_once_in_one_of_the_parts(monkeypatch: Any) -> None:
    called: list[str] = []
    right = contenders.thickets.perturbed_linear

    def noted(*args: Any, **tail: Any) -> torch.Tensor:
        called.append(f"{tail['noise']} {tail['precision']}")
        return right(*args, **tail)

    monkeypatch.setattr(contenders.thickets, "perturbed_linear", noted)
    for part in range(3):
        measure.compile_kernels([CASE, CASE], ["cpu"], CPU, torch.bfloat16, part, 3)
    assert sorted(called) == sorted(f"{family} {how}" for family in FAMILIES for how in ("exact", "storage"))


def test_contenders_take_turns() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    found = timing.measure(calls, CPU, seconds=0.0)
    assert "".join(order).startswith("ab" + "abba")
    assert len(order) == 2 * (1 + timing.LEAST)
    assert found["a"].how == "host"
    assert timing.quantiles([5, 1, 2, 3, 4, 6]) == (4, 2, 5)


def test_verdicts() -> None:
    base = {"floor B": 10.0, "loop": 100.0, "floor A": 1.0}
    good = {"cpu normal4 exact": 2.0, "cpu rademacher exact": 4.0}
    case = Linear(LAYER, 16, 8)
    found = targets.verdicts([fake(base | good, ("cpu normal4 storage",), case)], ["cpu"])
    decode = found[0]
    assert decode.ratios == {f"{case}, normal4 exact": 5.0, f"{case}, rademacher exact": 2.5}
    assert (decode.met, decode.word, decode.failed) == (2, "met in 2 of 3", (f"{case}, normal4 storage",))
    assert decode.mean == pytest.approx(12.5**0.5)
    assert {v.word for v in found if v.target.baseline == "copy"} == {"not measured"}
    met = targets.verdicts([fake(base | good, case=case)], ["cpu"])
    assert (met[0].word, met[1].word) == ("met", "not measured")
    slow = targets.verdicts([fake(base | {"cpu normal exact": 100.0}, case=case)], ["cpu"])
    assert slow[1].word == "not met"
    table = tables.targets([fake(base | good, case=case)], ["cpu"])
    assert f"| >= 2.5 x floor B | met | 2.50 | {case}, rademacher exact | 3.54 |" in table


def test_the_report_holds_whatever_there_is() -> None:
    facts: dict[str, Any] = {
        "phases": {"build": "3 s"},
        "trouble": {"machine": "no\nluck | at all"},
        "clocks": {},
    }
    assert "| FAILED | phase machine: no luck \\| at all |" in tables.report(facts, complete=False)
    case = Linear(LAYER, 16, 8)
    result = fake({"loop": 100.0, "floor A": 1.0, "cpu normal exact": 50.0}, case=case)
    left_out, settings = {"x, N=1": "no time left"}, {"backends": ["cpu"]}
    facts["measured"] = {"results": [result], "left_out": left_out, "settings": settings}
    facts["tests"] = suite.summary([], [("failed", "a: stopped"), ("left out", "no time left for b")])
    short, full = (tables.report(facts, complete) for complete in (False, True))
    assert "| 100 | 1 | - | 50/-/- |" in short
    assert "| 2.00 | 0.02 |" in full
    assert "2.00 | 0.02" not in short
    for text in (short, full):
        assert "no time left (1): x: N=1" in text
        assert "| FAILED | a: stopped |" in text
        assert text.rstrip().splitlines()[-1].startswith("| cpu | accumulate_ of 16")


TESTS = """
import os, pytest, signal
def test_plain(): pass
@pytest.mark.parametrize("place", ["triton-cuda", "cuda-cuda", "cuda-cpu", "cpu-cpu"])
def test_place(place): pass
def test_crashes(): os.kill(os.getpid(), signal.SIGKILL)
def test_after(): pass
def test_needs(): import nowhere_to_be_found
def test_fails(): assert 1 == 2
needs_gpu = pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("backend", ["triton"])
def test_marked(backend): pytest.skip("no GPU")
"""


def test_the_suite_goes_on_behind_a_crash(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(suite, "LOGS", tmp_path / "logs")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    file = tmp_path / "test_file.py"
    file.write_text(TESTS)
    assert suite.jobs([file]) == [suite.Job(file, part, suite.PARTS) for part in range(suite.PARTS)]
    deadline = time.monotonic() + 60
    assert [suite.run(suite.Job(file, part, 2), deadline) for part in range(2)] == [None, None]
    notes = [n for log in sorted((tmp_path / "logs").glob("*.jsonl")) for n in outcomes.read(log).values()]
    found = suite.summary(notes, [])
    assert found["outcomes"]["all"] == {"passed": 6, "failed": 2, "left out": 1, "skipped": 1}
    assert found["outcomes"]["triton on cuda"] == {"passed": 1, "skipped": 1}
    assert found["outcomes"]["cuda on cuda"] == {"passed": 1}
    assert found["outcomes"]["gpu, by mark or parameter"] == {"passed": 2, "skipped": 1}
    assert found["left_out"] == {"nowhere_to_be_found is not installed": 1}
    assert [name.partition("::")[2] for name in sorted(found["failed"])] == [
        "test_crashes: the process ended in it",
        "test_fails: assert 1 == 2",
    ]
    assert suite.run(suite.Job(file), 0.0) == ("left out", "no time left for test_file.py")


def test_a_command_is_stopped_with_its_children(tmp_path: Path) -> None:
    log = tmp_path / "log"
    begin = time.monotonic()
    assert run_until(["sh", "-c", "echo begun; sleep 60 & wait"], log, begin + 0.3, threads=1) is None
    assert time.monotonic() - begin < 10
    assert log.read_text() == "begun\n"
    statuses = [
        run_until(["sh", "-c", code], log, begin + 60, 1) for code in ("exit 3", "kill -9 $$", "exit 17")
    ]
    assert statuses == [3, -9, BROKEN]
    assert [crashed(status) for status in (*statuses, None)] == [False, True, True, False]


def test_a_phase_that_fails_costs_only_itself(tmp_path: Path) -> None:
    run = command.Run(100.0, tmp_path)
    run.phase("build", lambda: 1 / 0)
    run.phase("machine", lambda: run.facts.update(commit="abc"))
    facts = json.loads((tmp_path / "gpu.json").read_text())
    assert facts["trouble"] == {"build": "ZeroDivisionError: division by zero"}
    assert facts["commit"] == "abc"
    assert set(facts["phases"]) == {"build", "machine"}
    assert "FAILED" in (tmp_path / "gpu.md").read_text()
    assert run.until("build") < run.until("tests") < run.until("benchmarks") < run.begin + 100


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_said_clearly(tmp_path: Path, capsys: Any) -> None:
    assert command.main(["--to", str(tmp_path)]) == 0
    assert "make gpu: no GPU: torch" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("smi", [False, True])
def test_no_torch_is_said_clearly(tmp_path: Path, smi: bool) -> None:
    if smi:
        (tmp_path / "nvidia-smi").touch(mode=0o755)
    line = [
        sys.executable,
        "-S",
        "-m",
        "benchmarks.gpu",
    ]  # -S: without torch, pytest and all that is installed
    run = subprocess.run(line, cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    words = "lacks torch; name another" if smi else "make gpu: no GPU: this machine has no nvidia-smi"
    assert words in (run.stderr if smi else run.stdout)
    assert run.returncode == smi


def test_the_benchmarks_run_alone(tmp_path: Path) -> None:
    to = tmp_path / "tiny.json"
    line = ["--plan", "tiny", "--device", "cpu", "--backends", "cpu", "--each", "0", "--to", str(to)]
    subprocess.run([sys.executable, "-m", "benchmarks.gpu.measure", *line], cwd=ROOT, check=True)
    measured = json.loads(to.read_text())
    assert [result["name"] for result in measured["results"]] == [str(case) for case in PLANS["tiny"]()]
    assert "| cpu |" in tables.report({"measured": measured}, complete=True)
