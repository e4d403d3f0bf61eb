"""`make gpu`: build, measure and test on a machine with a GPU, with its own Python and without a network.

Builds the package into build/gpu (nothing is installed or fetched), measures copy bandwidth and the bfloat16
matrix product, runs the test suite (the reference backend on CUDA, every instruction set of this CPU), writes
benchmarks/results/gpu-NAME.json and .md, and prints the table last. Ends within nine minutes.

Exit status: 0 all is well, or there is no GPU (it says so and writes nothing); 1 a test failed or ran out of
time, the build failed, or a needed package is missing.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "build" / "gpu"
LOGS = ROOT / "build" / "gpu-tests"
RESULTS = ROOT / "benchmarks" / "results"
LIMIT = 530.0  # seconds for everything


def build() -> None:
    """Compile thickets with this Python into a folder of its own."""
    needed = ("setuptools", "pybind11", "ninja", "pytest")
    missing = [name for name in needed if not importlib.util.find_spec(name)]
    if missing:
        sys.exit(f"make gpu: {sys.executable} lacks {', '.join(missing)}")
    shutil.rmtree(SITE, ignore_errors=True)
    command = [sys.executable, "setup.py", "-q", "build", "--build-lib", str(SITE)]
    if subprocess.run(command, cwd=ROOT).returncode != 0:
        sys.exit("make gpu: the build failed")


def quantiles(run: Callable[[], Any], repeats: int = 30) -> tuple[float, float, float]:
    """Seconds of one call on the GPU: median, 20 % and 80 % quantile, after warming up."""
    import torch

    times = []
    for i in range(repeats + 5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        if i >= 5:
            times.append(start.elapsed_time(end) / 1e3)
    times.sort()
    return times[repeats // 2], times[repeats // 5], times[repeats * 4 // 5]


def copy_rate() -> list[float]:
    """GB/s of a device copy, read and written bytes counted: at median, 20 % and 80 % quantile of time."""
    import torch

    size = min(2 << 30, torch.cuda.mem_get_info()[0] // 4)
    source = torch.empty(size, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    times = quantiles(lambda: target.copy_(source))
    if not torch.equal(source, target):
        sys.exit("make gpu: the copy differs from its source")
    return [round(2 * size / 1e9 / t, 1) for t in times]


def product_rate(n: int = 8192) -> list[float]:
    """TFLOP/s of the bfloat16 product of two random n x n matrices, at the same quantiles."""
    import torch

    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    times = quantiles(lambda: torch.matmul(a, b, out=out))
    exact = a[:64].double() @ b.double()
    error = ((out[:64].double() - exact).norm() / exact.norm()).item()
    if error > 0.01:
        sys.exit(f"make gpu: the bfloat16 product is off by {error:.3g}")
    return [round(2 * n**3 / 1e12 / t, 1) for t in times]


def smi(query: str) -> str:
    """What nvidia-smi answers about the first GPU, or why it does not."""
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", "-i", "0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({error})"


def nvcc() -> str | None:
    """The version of this machine's CUDA compiler, or None."""
    path = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if path is None:
        return None
    text = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release ([\d.]+)", text)
    return found[1] if found else "unknown"


def suite(deadline: float) -> dict[str, Any]:
    """Run every test file in a process of its own, some at a time: a crash or the deadline costs one file.

    Counts outcomes in all, per device and per instruction set; names failures, and what was left out and why.
    """
    start, cores = time.monotonic(), os.cpu_count() or 1
    workers = max(1, cores // 4)
    shutil.rmtree(LOGS, ignore_errors=True)
    with ThreadPoolExecutor(workers) as pool:
        files = sorted((ROOT / "tests").glob("test_*.py"))
        reports = list(pool.map(lambda file: one_file(file, deadline, cores // workers), files))
    outcomes: dict[str, Counter[str]] = {"all": Counter()}
    failed = [trouble for _, trouble in reports if trouble]
    left_out: Counter[str] = Counter()
    for case in (case for cases, _ in reports for case in cases):
        outcome, reason = verdict(case)
        if outcome == "left out":
            left_out[reason] += 1
        if outcome == "failed":
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        words = set(re.findall(r"[a-z0-9]+", str(case.get("name")).partition("[")[2]))
        for group in ("all", *sorted(words & {"cuda", "portable", "avx2", "avx512"})):
            outcomes.setdefault(group, Counter())[outcome] += 1
    seconds = round(time.monotonic() - start)
    return {"seconds": seconds, "outcomes": outcomes, "failed": failed, "left_out": left_out}


def one_file(file: Path, deadline: float, threads: int) -> tuple[list[ET.Element], str | None]:
    """The test cases of one file as JUnit writes them, and what went wrong beside them."""
    log = LOGS / f"{file.stem}.xml"
    path = os.pathsep.join([str(SITE), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "pytest", str(file), f"--junitxml={log}"]
    left = deadline - time.monotonic()
    try:
        run = subprocess.run(command, cwd=ROOT, env=env, timeout=max(left, 1), capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        return [], f"{file.name}: stopped, out of time"
    if run.returncode not in (0, 5):  # 5: it holds no test for this machine
        print(run.stdout[-4000:], run.stderr[-2000:], sep="\n", flush=True)
    if not log.exists():
        return [], f"{file.name}: pytest ended with status {run.returncode}"
    return list(ET.parse(log).getroot().iter("testcase")), None


def verdict(case: ET.Element) -> tuple[str, str]:
    """A test's outcome (passed, failed, skipped, or left out for want of a package), and why left out."""
    trouble = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
    if trouble is None:
        return "passed", ""
    text = f"{trouble.get('message', '')}\n{trouble.text or ''}"
    missing = re.search(r"(?:No module named|could not import) '([\w.]+)'", text)
    if missing and missing[1].partition(".")[0] != "thickets":
        whole = "" if case.get("classname") else f", so all of {case.get('name')} is missing"
        return "left out", f"{missing[1]} is not installed{whole}"
    return ("skipped" if trouble.tag == "skipped" else "failed"), ""


def table(facts: dict[str, Any]) -> str:
    """The result as Markdown."""
    info, tests = facts["info"], facts["tests"]
    rows = [
        ("GPU", facts["gpu"]),
        ("clocks: sm, its maximum, memory, its maximum", facts["clocks"]),
        ("CPU", f"{info['cpu']['model']}, {info['cpu']['cores']} cores"),
        ("versions", ", ".join(f"{name} {v}" for name, v in info["versions"].items() if v)),
        ("CUDA of torch, nvcc", f"{facts['torch_cuda']}, {facts['nvcc'] or 'no nvcc'}"),
        ("commit", facts["commit"] or "not a checkout"),
        ("thickets' CUDA kernels", f"off: {info['off']['cuda']}" if info["off"]["cuda"] else "on"),
        ("copy, GB/s", "{} ({} to {})".format(*facts["copy_GB_per_s"])),
        ("bfloat16 product of 8192, TFLOP/s", "{} ({} to {})".format(*facts["bf16_TFLOP_per_s"])),
        ("tests, time", f"{tests['seconds']} s"),
    ]
    for group, counts in tests["outcomes"].items():
        rows.append((f"tests, {group}", ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items()))))
    rows += [("tests left out", f"{n}: {reason}") for reason, n in tests["left_out"].items()]
    rows += [("FAILED", name) for name in tests["failed"]]
    body = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"| what | value: median (20 % to 80 % quantile of time) |\n| --- | --- |\n{body}\n"


def main() -> int:
    """Build, measure, test, write; returns the exit status of the module's docstring."""
    begin = time.monotonic()
    if not importlib.util.find_spec("torch"):
        if shutil.which("nvidia-smi") is None:
            print("make gpu: no GPU: this machine has no nvidia-smi; nothing was measured")
            return 0
        sys.exit(f"make gpu: {sys.executable} lacks torch; name another with `make gpu PYTHON=...`")
    import torch

    if not torch.cuda.is_available():
        print(
            f"make gpu: no GPU: torch {torch.__version__} of {sys.executable} sees none; nothing was measured"
        )
        return 0
    build()
    sys.path.insert(0, str(SITE))
    from thickets import info

    facts = {
        "gpu": smi("name,memory.total,driver_version"),
        "torch_cuda": torch.version.cuda,
        "nvcc": nvcc(),
        "commit": info.commit(ROOT),
        "info": info.report(),
        "copy_GB_per_s": copy_rate(),
        "bf16_TFLOP_per_s": product_rate(),
        "clocks": smi("clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem"),
    }
    torch.cuda.empty_cache()
    facts["tests"] = suite(begin + LIMIT)
    name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"gpu-{name}.json").write_text(json.dumps(facts, indent=1) + "\n")
    (RESULTS / f"gpu-{name}.md").write_text(table(facts))
    print(f"\nWritten to benchmarks/results/gpu-{name}.md and .json\n\n{table(facts)}", end="")
    return 1 if facts["tests"]["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
