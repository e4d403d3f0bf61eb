"""The one command for a bare machine with a GPU: python -m benchmarks.gpu, which is `make gpu`.

1. build: the package with its CUDA kernels into build/gpu (nothing is installed or fetched).
2. machine: hardware, versions, commit, clocks; copy bandwidth and the bfloat16 product as ceilings.
3. tests: those on the GPU first, then the others; beside them the Triton kernels of the benchmarks are
   compiled, and the CUDA kernels checked by compute-sanitizer and by a hundred repeats of each call.
4. benchmarks: until their time is up, the most important first; what was left out is named.
5. models: whole language models with random weights that generate and score, where transformers is installed.

After each phase it writes gpu-NAME.json and .md, so that a later one that fails or runs out of time costs
nothing of what was found; tables are printed last, and the targets at their end. Ends within nine minutes.

Exit status: 0 all is well, or there is no GPU (it says so and writes nothing); 1 a test failed or ran out of
time, a checker found something, a contender was wrong or crashed, the build failed, or a needed package is
missing.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from . import machine, tables  # what needs torch or pytest is imported where they are known to be there
from .processes import ROOT, SITE, WORK, crashed, run_until, tail

LIMIT = 525.0  # seconds for everything; the phases' shares of it end here
UNTIL = {"build": 200 / 525, "tests": 300 / 525, "benchmarks": 430 / 525, "models": 510 / 525}
COMPILERS = 5  # processes that compile the benchmarks' kernels beside the tests
MEASURED = WORK / "measured.json"
MODELS = WORK / "models.json"
PHASES = ("build", "machine", "tests", "benchmarks", "models")


class Run:
    """The facts found so far, the deadlines, and where to write."""

    def __init__(self, limit: float, to: Path) -> None:
        self.begin, self.limit, self.to = time.monotonic(), limit, to
        self.facts: dict[str, Any] = {"phases": {}, "trouble": {}, "clocks": {}}
        self.name = "gpu"

    def until(self, phase: str) -> float:
        """The deadline of a phase, of time.monotonic()."""
        return self.begin + UNTIL[phase] * self.limit

    def phase(self, name: str, work: Callable[[], None]) -> None:
        """Do the work, note its time or why it failed, and write what there is."""
        begin = time.monotonic()
        print(f"make gpu: {name} ...", flush=True)
        try:
            work()
        except Exception as error:  # the next phases still have something to tell
            traceback.print_exc()
            self.facts["trouble"][name] = f"{type(error).__name__}: {error}"
        self.facts["phases"][name] = f"{time.monotonic() - begin:.0f} s"
        self.write()

    def write(self) -> None:
        """Both files, as far as the facts go."""
        self.to.mkdir(parents=True, exist_ok=True)
        (self.to / f"{self.name}.json").write_text(json.dumps(self.facts, indent=1) + "\n")
        (self.to / f"{self.name}.md").write_text(tables.report(self.facts, complete=True))

    def clocks(self, when: str) -> None:
        self.facts["clocks"][when] = machine.smi(machine.CLOCKS)


def build(run: Run) -> None:
    """Compile thickets with this Python; where that fails, lay out its Python files alone and say so."""
    needed = ("setuptools", "pybind11", "ninja", "pytest")
    missing = [name for name in needed if not find_spec(name)]
    if missing:
        sys.exit(f"make gpu: {sys.executable} lacks {', '.join(missing)}")
    shutil.rmtree(SITE, ignore_errors=True)
    log = WORK / "build.log"
    command = [sys.executable, "setup.py", "-q", "build", "--build-lib", str(SITE)]
    status = run_until(command, log, run.until("build"), threads=1)
    if status != 0:
        plain = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(SITE)]
        subprocess.run(plain, cwd=ROOT, check=True)
        run.facts["build_log"] = tail(log, 10_000)
        why = "out of time" if status is None else f"status {status}"
        raise RuntimeError(f"no native code ({why}): {tail(log)}")


def look(run: Run) -> None:
    """What the machine is, and its ceilings."""
    run.facts["machine"] = machine.facts(run.facts["commit"])
    run.facts["ceilings"] = machine.ceilings()
    run.clocks("after the ceilings")


def test(run: Run, plan: str) -> None:
    """The suite, and beside it the checkers and the compilation of what the benchmarks need."""
    from . import sanitizer, suite

    command = [sys.executable, "-m", "benchmarks.gpu.measure", "--plan", plan, "--compile"]
    parts = [[*command, f"{part}/{COMPILERS}"] for part in range(COMPILERS)]
    with ThreadPoolExecutor(1) as pool:
        checks = pool.submit(sanitizer.checks, run.until("tests"))
        run.facts["tests"] = suite.suite(run.until("tests"), beside=parts)
        run.facts["checks"] = checks.result()


def measure(run: Run, plan: str) -> None:
    """The benchmarks in a process of their own, started again behind whatever takes it down."""
    deadline = run.until("benchmarks")
    log = WORK / "benchmarks.log"
    status: int | None = 1
    for _ in range(20):
        left = (
            deadline - time.monotonic() - 15
        )  # it ends by itself; the rest is for its start and a long case
        command = [sys.executable, "-m", "benchmarks.gpu.measure", "--plan", plan]
        command += ["--seconds", f"{left:.0f}", "--to", str(MEASURED)]
        status = run_until(command, log, deadline, threads=1)
        if not crashed(status):
            break
    if MEASURED.exists():
        run.facts["measured"] = json.loads(MEASURED.read_text())
    run.clocks("after the benchmarks")
    if status is None:
        raise TimeoutError("stopped, out of time")
    if status != 0:
        raise RuntimeError(f"status {status}: {tail(log)}")


def models(run: Run) -> None:
    """Whole language models, in a process of their own; without transformers this is left out, and said."""
    if not find_spec("transformers"):
        why = {"language models": "transformers is not installed"}
        run.facts["models"] = {"results": [], "failed": {}, "left_out": why}
        return
    deadline, log = run.until("models"), WORK / "models.log"
    command = [sys.executable, "-m", "benchmarks.generation", "--plan", "gpu", "--device", "cuda"]
    command += ["--dtype", "bfloat16", "--each", "1", "--to", str(MODELS)]
    command += [
        "--seconds",
        f"{(deadline - time.monotonic()) / 2:.0f}",
    ]  # no case begins later: one may be long
    status = run_until(command, log, deadline, threads=1)
    if MODELS.exists():
        run.facts["models"] = json.loads(MODELS.read_text())
    if status is None:
        raise TimeoutError("stopped, out of time")
    if status != 0:
        raise RuntimeError(f"status {status}: {tail(log)}")


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=PHASES)
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for everything")
    parser.add_argument(
        "--plan", default="chosen", help="chosen, or everything: the full sweep, which wants hours"
    )
    parser.add_argument(
        "--to", type=Path, default=ROOT / "benchmarks" / "results", help="where the tables go"
    )
    parser.add_argument("--commit", help="of the sources, where they come without their history")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the phases; returns the exit status of the module's docstring."""
    asked = parsed(arguments)
    reason = machine.no_gpu()
    if reason:
        print(f"make gpu: no GPU: {reason}; nothing was measured")
        return 0
    import torch

    run = Run(asked.limit, asked.to)
    run.name = "gpu-" + re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    run.facts["commit"] = asked.commit
    run.clocks("before")
    shutil.rmtree(WORK, ignore_errors=True)
    steps: dict[str, Callable[[], None]] = {
        "build": lambda: build(run),
        "machine": lambda: look(run),
        "tests": lambda: test(run, asked.plan),
        "benchmarks": lambda: measure(run, asked.plan),
        "models": lambda: models(run),
    }
    sys.path.insert(0, str(SITE))
    for name in PHASES:
        if name in asked.phases:
            run.phase(name, steps[name])
    print(
        f"\nWritten to {asked.to / run.name}.json and .md\n\n{tables.report(run.facts, complete=False)}",
        end="",
    )
    return 1 if tables.failures(run.facts) else 0


if __name__ == "__main__":
    sys.exit(main())
