"""The checks of `make gpu` without a GPU: repeats that find what differs, verdicts of NVIDIA's checkers."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # benchmarks/ is no part of the package

from benchmarks.gpu import __main__ as command  # noqa: E402
from benchmarks.gpu import measure, repeated, sanitizer, suite, tables  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where logs go."""
    monkeypatch.setattr(sanitizer, "WORK", tmp_path)
    return tmp_path


def test_every_op_is_repeated_for_every_family_and_dtype() -> None:
    names = [name for name, _ in repeated.calls("cpu", CPU, repeated.SMALL)]
    assert len(set(names)) == len(names)
    words = {word for name in names for word in name.split()}
    ops = {"linear", "noise_linear_", "embedding", "vector", "perturb_", "accumulate_", "sample_noise"}
    assert {*ops, "ragged", *repeated.FAMILIES, "float32", "bfloat16", "float16"} <= words


def test_repeats_are_the_same_bits(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(repeated, "SMALL", ((33, 40),))
    line = ["--backend", "cpu", "--device", "cpu", "--repeats", "3", "--small"]
    assert repeated.main(line) == 0
    assert "calls, 3 times each: the same bits" in capsys.readouterr().out


@pytest.mark.parametrize("value", [1e-3, float("nan")])
def test_one_repeat_that_differs_is_named(monkeypatch: pytest.MonkeyPatch, capsys: Any, value: float) -> None:
    right, times = repeated.thickets.perturbed_vector, 0

    def wrong(*args: Any, **tail: Any) -> torch.Tensor:
        nonlocal times
        y = right(*args, **tail)
        times += tail["noise"] == "normal4"
        if times == 3 and tail["noise"] == "normal4":
            y.view(-1)[-1] += value
        return y

    monkeypatch.setattr(repeated, "SMALL", ((33, 40),))
    monkeypatch.setattr(repeated, "DTYPES", (torch.float32,))
    monkeypatch.setattr(repeated.thickets, "perturbed_vector", wrong)
    assert repeated.main(["--backend", "cpu", "--device", "cpu", "--repeats", "4", "--small"]) == 1
    assert "1 of 90 calls differ or are not finite: normal4 vector 33x40 float32" in capsys.readouterr().out


CLEAN = "90 calls, 1 times each: the same bits\n========= ERROR SUMMARY: 0 errors\n"
FOUND = "========= Invalid __global__ read\n========= ERROR SUMMARY: 2 errors\n"


@pytest.mark.parametrize(
    ("name", "status", "text", "expected"),
    [
        ("memcheck", 0, CLEAN, ("passed", "90 calls, 1 times each: the same bits ERROR SUMMARY: 0 errors")),
        ("memcheck", sanitizer.FOUND, FOUND, ("failed", "ERROR SUMMARY: 2 errors")),
        ("memcheck", 0, "========= ERROR SUMMARY: 0 errors\n", ("failed", "ERROR SUMMARY: 0 errors")),
        ("racecheck", -11, "Segmentation fault\n", ("failed", "Segmentation fault")),
        ("planted", sanitizer.FOUND, FOUND, ("passed", "it was noticed")),
        ("planted", 1, f"torch.AcceleratorError: CUDA error\n{FOUND}", ("passed", "it was noticed")),
        ("planted", 1, "no such option\n", ("failed", "not noticed: no such option")),
        (
            "planted",
            0,
            "========= ERROR SUMMARY: 0 errors\n",
            ("failed", "not noticed: ERROR SUMMARY: 0 errors"),
        ),
        ("repeats", None, "", ("left out", "stopped, out of time")),
        ("racecheck", 1, "Error: Device not supported\n", ("left out", "the checker does not support")),
    ],
)
def test_verdicts(work: Path, name: str, status: int | None, text: str, expected: tuple[str, str]) -> None:
    log = work / "log"
    log.write_text(text)
    outcome, words = sanitizer.verdict(name, status, log)
    assert (outcome, words[: len(expected[1])]) == expected


def test_a_check_runs_with_a_log_of_its_own(work: Path) -> None:
    (work / "repeats.log").write_text("left by an earlier run: the same bits in its calls")
    command = ["sh", "-c", "echo 'difference'; exit 1"]
    assert sanitizer.run("repeats", command, time.monotonic() + 60) == ("failed", "difference\n (status 1)")


def test_commands_name_the_checkers_where_there_are_some() -> None:
    assert set(sanitizer.commands(None)) == {"repeats"}
    found = sanitizer.commands("/opt/compute-sanitizer")
    assert set(found) == {"repeats", "memcheck", "racecheck", "planted"}
    for name, line in found.items():
        assert ("/opt/compute-sanitizer" in line) == (name != "repeats")
        assert line[line.index("-m") + 1] == "benchmarks.gpu.repeated"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_the_cuda_backend_nothing_is_checked_and_that_is_said() -> None:
    found = sanitizer.checks(time.monotonic() + 60)
    assert [outcome for outcome, _ in found.values()] == ["left out"]


def test_checks_run_beside_the_tests(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = threading.Event()

    def checks(deadline: float) -> dict[str, tuple[str, str]]:
        begun.set()
        return {"memcheck": ("passed", "")}

    def tests(deadline: float, beside: list[list[str]]) -> dict[str, Any]:
        assert begun.wait(10)
        return {"failed": []}

    monkeypatch.setattr(sanitizer, "checks", checks)
    monkeypatch.setattr(suite, "suite", tests)
    run = command.Run(100.0, work)
    command.test(run, "tiny")
    assert run.facts["tests"] == {"failed": []}
    assert run.facts["checks"] == {"memcheck": ("passed", "")}


def test_only_triton_compiles_beside_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(measure, "compile_kernels", lambda plan, backends, *rest: asked.append(backends))
    measure.main(["--plan", "tiny", "--backends", "cuda", "triton", "--compile", "0/1"])
    assert asked == [["triton"]]


def test_the_report_names_checks_and_fails_for_those_that_failed() -> None:
    facts = {"checks": {"memcheck": ("failed", "2 errors"), "sanitizer": ("left out", "it was not found")}}
    report = tables.report(facts, complete=False)
    assert "| check memcheck | failed: 2 errors |" in report
    assert "| check sanitizer | left out: it was not found |" in report
    assert tables.failures(facts) == ["check memcheck: 2 errors"]
