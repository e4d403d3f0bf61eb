"""The test suite in many processes: Triton compiles for seconds per kernel, on one core each."""

import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from .outcomes import BEGUN, read
from .processes import ROOT, WORK, crashed, run_until, tail

LOGS = WORK / "tests"
PARTS = 3  # processes for a file with tests on the GPU
DETAILS = 50  # failures whose text is kept
RESTARTS = 5  # of a process that crashes
GPU_ALONE = re.compile(r"^(pytestmark = |@)pytest\.mark\.gpu", re.MULTILINE)
USES_GPU = re.compile(r"\bplace\b|\bnoise_sources\b|\bDEVICES\b|mark\.gpu")
GROUPS = {"cuda", "cpu", "triton", "reference", "portable", "avx2", "avx512"}  # parameters counted apart


class Job(NamedTuple):
    """Part `part` of `parts` of a test file."""

    file: Path
    part: int = 0
    parts: int = 1

    def __str__(self) -> str:
        return f"{self.file.name} ({self.part + 1} of {self.parts})"


def jobs(files: Sequence[Path]) -> list[Job]:
    """Files with tests on the GPU first, in parts, the likely longest ahead; then the others whole."""
    texts = {file: file.read_text() for file in files}
    uses = {
        file: len(USES_GPU.findall(text)) + 1000 * bool(GPU_ALONE.search(text))
        for file, text in texts.items()
    }
    gpu = sorted((file for file in files if uses[file]), key=lambda file: -uses[file])
    split = [Job(file, part, PARTS) for file in gpu for part in range(PARTS)]
    return split + [Job(file) for file in files if not uses[file]]


def suite(deadline: float, beside: Sequence[Sequence[str]] = ()) -> dict[str, Any]:
    """Run all tests and, at the same time, the commands `beside`, until the deadline (time.monotonic()).

    Returns seconds, outcomes counted by group, the names of what failed, and what was left out and why.
    """
    begin, workers = time.monotonic(), max(1, (os.cpu_count() or 1) - 1 - len(beside))
    files = sorted((ROOT / "tests").glob("test_*.py"))
    shutil.rmtree(LOGS, ignore_errors=True)
    with ThreadPoolExecutor(workers) as pool, ThreadPoolExecutor(len(beside) or 1) as others:
        for i, command in enumerate(beside):
            others.submit(run_until, command, WORK / f"beside-{i}.log", deadline, 1)
        troubles = list(pool.map(lambda job: run(job, deadline), jobs(files)))
    notes = [note for file in sorted(LOGS.glob("*.jsonl")) for note in read(file).values()]
    return {"seconds": round(time.monotonic() - begin), **summary(notes, [t for t in troubles if t])}


def run(job: Job, deadline: float) -> tuple[str, str] | None:
    """Run a part of a file, again behind what crashes it; what went wrong beside the tests: (kind, words)."""
    if time.monotonic() > deadline:
        return "left out", f"no time left for {job.file.name}"
    stem = f"{job.file.stem}-{job.part}"
    notes, log = LOGS / f"{stem}.jsonl", LOGS / f"{stem}.log"
    command = [sys.executable, "-m", "pytest", str(job.file), "-p", "no:cacheprovider"]
    command += ["-p", "benchmarks.gpu.outcomes", "--outcomes", str(notes)]
    command += ["--part", f"{job.part}/{job.parts}"]
    for _ in range(RESTARTS):
        status = run_until(command, log, deadline, threads=1)
        if not crashed(status):
            break
    if status is None:
        return "failed", f"{job}: stopped, out of time"
    if status not in (0, 1, 2, 5):  # all well, a test failed, a file cannot be collected, nothing to run here
        return "failed", f"{job}: pytest ended with status {status}: {tail(log, 300)}"
    return None


def summary(notes: Sequence[dict[str, Any]], troubles: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Counts by group, names of failures, reasons for what was left out."""
    outcomes: dict[str, Counter[str]] = {"all": Counter()}
    failed, details = [words for kind, words in troubles if kind == "failed"], {}
    left_out = Counter(words for kind, words in troubles if kind == "left out")
    for note in notes:
        outcome, reason = verdict(note)
        if outcome == "left out":
            left_out[reason] += 1
        if outcome == "failed":
            failed.append(f"{note['test']}: {reason}")
            details[note["test"]] = note["text"]
        parameters = note["test"].partition("[")[2]
        words = set(re.findall(r"[a-z0-9]+", parameters)) & GROUPS
        groups = {"all", *words, *(["gpu, by mark or parameter"] if note["gpu"] else [])}
        if note["gpu"]:  # a place, or in a test that is marked the backend alone
            place = re.search(r"(triton|cuda)-cuda", parameters)
            groups |= {f"{name} on cuda" for name in ([place[1]] if place else {"triton", "cuda"} & words)}
        for group in sorted(groups):
            outcomes.setdefault(group, Counter())[outcome] += 1
    kept = dict(list(details.items())[:DETAILS])
    return {"outcomes": outcomes, "failed": failed, "left_out": left_out, "details": kept}


def verdict(note: dict[str, Any]) -> tuple[str, str]:
    """A test's outcome (passed, failed, skipped, or left out for want of a package), and why."""
    outcome, text = note["outcome"], note["text"]
    if outcome == BEGUN:
        return "failed", "the process ended in it"
    missing = re.search(r"(?:No module named|could not import) '([\w.]+)'", text)
    if outcome != "passed" and missing and missing[1].partition(".")[0] != "thickets":
        whole = "" if "::" in note["test"] else f", so all of {note['test']} is missing"
        return "left out", f"{missing[1]} is not installed{whole}"
    errors = [line[2:].strip() for line in text.splitlines() if line.startswith("E ")]
    return outcome, (errors or text.strip().splitlines() or [""])[0][:200] if outcome == "failed" else ""
