"""NVIDIA's checkers over the CUDA kernels, and the same calls again and again: repeated.py, looked after.

- `memcheck`: no access out of bounds or misaligned. torch's cache of memory is off, so that every tensor is
  an allocation whose end the checker knows.
- `racecheck`: no two accesses to shared memory without a barrier between them.
- `planted`: memcheck notices an access out of bounds; else it looks at the wrong kernels, and finding none
  means nothing.
- `repeats`: a hundred runs of each call give the same bits, without a checker.
"""

import os
import re
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .processes import WORK, run_until, tail

FOUND = 99  # exit status of a checker that found something
OPTIONS = ["--error-exitcode", str(FOUND), "--kernel-name", "kns=thickets"]  # only kernels of ours
MEMCHECK, RACECHECK = ["--tool", "memcheck", "--report-api-errors", "no"], ["--tool", "racecheck"]
Outcome = tuple[str, str]  # passed, failed or left out; in words


def checker() -> str | None:
    """The path of compute-sanitizer, or None: it is a part of the CUDA toolkit that may be missing."""
    homes = [home for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    folders = [f"{home}/{part}" for home in homes for part in ("bin", "compute-sanitizer")]
    return shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ.get("PATH", ""), *folders]))


def commands(tool: str | None) -> dict[str, list[str]]:
    """What is run, by name; without a checker only the repeats."""
    repeated = [sys.executable, "-m", "benchmarks.gpu.repeated"]
    found = {"repeats": repeated}
    if tool:
        begin = ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", tool, *OPTIONS]
        few = [*repeated, "--small", "--repeats", "1"]
        found["memcheck"] = [*begin, *MEMCHECK, *few]
        found["racecheck"] = [*begin, *RACECHECK, *few]
        found["planted"] = [*begin, *MEMCHECK, *repeated, "--plant"]
    return found


def checks(deadline: float) -> dict[str, Outcome]:
    """Run all side by side until the deadline (time.monotonic()); their outcomes by name."""
    import torch

    from thickets.backends import REGISTRY, refusal

    if reason := refusal(REGISTRY["cuda"], torch.device("cuda")):
        return {"repeats and sanitizer": ("left out", reason)}
    tool = checker()
    found: dict[str, Outcome] = {} if tool else {"sanitizer": ("left out", "compute-sanitizer was not found")}
    wanted = commands(tool)
    with ThreadPoolExecutor(len(wanted)) as pool:
        outcomes = pool.map(lambda name: run(name, wanted[name], deadline), wanted)
        return found | dict(zip(wanted, outcomes, strict=True))


def run(name: str, command: Sequence[str], deadline: float) -> Outcome:
    """One of the commands, its output in a log of its own."""
    log = WORK / f"{name}.log"
    log.unlink(missing_ok=True)
    return verdict(name, run_until(command, log, deadline, threads=1), log)


def verdict(name: str, status: int | None, log: Path) -> Outcome:
    """What an exit status (None: out of time) and the log say."""
    words = " ".join(line for line in tail(log, 4000).splitlines() if re.search(r"SUMMARY|calls", line))
    words = re.sub(r"=+ ", "", words) or tail(log, 300)
    if status is None:
        return "left out", f"stopped, out of time: {tail(log, 200)}"
    if "Device not supported" in tail(log, 10_000):  # as in some virtual machines
        return "left out", "the checker does not support this device"
    if name == "planted":  # the access ends the GPU context, so the program fails by a status of its own
        noticed = status == FOUND or re.search(r"ERROR SUMMARY: [1-9]", words)
        return ("passed", "it was noticed") if noticed else ("failed", f"not noticed: {words}")
    # Its last line says that the calls were made at all.
    return ("passed" if status == 0 and "the same bits" in words else "failed"), f"{words} (status {status})"
