"""A pytest plugin that notes each outcome at once: nothing is lost when a run is stopped or crashes.

    pytest FILE -p benchmarks.gpu.outcomes --outcomes NOTES --part I/N

Runs every N-th test of the file, those on the GPU first, and none that NOTES already speaks of: started again
after a crash, it goes on behind the culprit. When an error has killed the process's GPU context it ends the
run with status BROKEN, since every later test would fail of it.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.processes import BROKEN

BEGUN = "begun"  # the outcome of a test that has none yet


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outcomes", type=Path, required=True, help="the file of notes, a JSON object per line")
    parser.addoption("--part", default="0/1", help="I/N: every N-th test from the I-th")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    index, parts = map(int, config.getoption("--part").split("/"))
    known = read(config.getoption("--outcomes"))
    kept = [item for item in items[index::parts] if item.nodeid not in known]
    chosen = set(map(id, kept))
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in chosen])
    items[:] = sorted(kept, key=lambda item: not on_gpu(item))


def on_gpu(item: pytest.Item) -> bool:
    """Whether a test is marked `gpu` or has a parameter on cuda; "cuda-cpu" is that backend without a GPU."""
    parameters = item.name.partition("[")[2].replace("cuda-cpu", "")
    return item.get_closest_marker("gpu") is not None or "cuda" in parameters


class Notes:
    """Writes a line when a test begins, when it ends and when a file cannot be collected."""

    def __init__(self, config: pytest.Config) -> None:
        self.file = config.getoption("--outcomes").open("a")
        self.gpu: dict[str, bool] = {}

    def write(self, test: str, outcome: str, text: str = "") -> None:
        note = {"test": test, "outcome": outcome, "gpu": self.gpu.get(test, False), "text": text[-3000:]}
        self.file.write(json.dumps(note) + "\n")
        self.file.flush()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.gpu = {item.nodeid: on_gpu(item) for item in session.items}

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if not report.passed:
            self.write(report.nodeid, report.outcome, str(report.longrepr))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.write(nodeid, BEGUN)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            self.write(report.nodeid, report.outcome, str(report.longrepr or ""))
        if report.failed and context_is_broken():
            pytest.exit(f"{report.nodeid} broke the GPU context", returncode=BROKEN)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Notes(config), "thickets-outcomes")


def context_is_broken() -> bool:
    """Whether the GPU context of this process answers every call with an error."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def read(notes: Path) -> dict[str, dict[str, Any]]:
    """The last note of every test, a failure before any other."""
    found: dict[str, dict[str, Any]] = {}
    if notes.exists():
        for line in notes.read_text().splitlines():
            try:
                note = json.loads(line)
            except ValueError:  # cut off as its process was killed
                continue
            if found.get(note["test"], note)["outcome"] != "failed":
                found[note["test"]] = note
    return found
