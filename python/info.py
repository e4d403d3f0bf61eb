"""What this installation is and can use: the data of `thickets info` and the header of every benchmark."""

import os
import platform
import subprocess
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from thickets import CONTRACT_VERSION, __version__

CHECKOUT = Path(__file__).resolve().parent.parent  # of an editable install; a wheel's has no .git
LIBRARIES = (
    "torch",
    "triton",
    "transformers",
    "numpy",
    "pydantic",
    "safetensors",
    "scikit-learn",
    "matplotlib",
    "math-verify",
)


def report() -> dict[str, Any]:
    """Everything worth knowing about this installation, as plain values that `json.dumps` takes.

    Keys: thickets (version, noise contract, commit of a checkout), versions (None: not installed), cpu, gpu
    (name or None), native (instruction sets), cuda (what the CUDA kernels were built with and for, or why
    there are none), backends (each with the reason why it cannot run, or None).
    """
    return {
        "thickets": {"version": __version__, "contract": CONTRACT_VERSION, "commit": commit()},
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in LIBRARIES},
        "cpu": {
            "system": platform.platform(),
            "model": cpu_model(),
            "cores": _cores(),
            "threads": torch.get_num_threads(),
        },
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "native": native(),
        "cuda": cuda(),
        "backends": backends(),
    }


def header() -> str:
    """The lines above a benchmark's table: commit, versions, processor, instruction set, threads, GPU."""
    facts = report()
    at = f" at {facts['thickets']['commit']}" if facts["thickets"]["commit"] else ""
    versions = [f"{name} {facts['versions'][name]}" for name in ("python", "torch", "triton")]
    cpu, isa = facts["cpu"], facts["native"]["chosen"] or facts["native"]["why_not"]
    lines = [
        f"thickets {__version__}{at}, {', '.join(v for v in versions if not v.endswith('None'))}",
        f"{cpu['model']}, {cpu['cores']} cores, {cpu['threads']} threads, {isa}",
    ]
    return "\n".join([*lines, facts["gpu"]] if facts["gpu"] else lines)


def text() -> str:
    """The report for a reader: the header, a line for each backend, what was built, the libraries."""
    facts = report()
    cuda = facts["cuda"]
    kernels = f"by CUDA {cuda['toolkit']} for {', '.join(cuda['architectures'])}"
    if cuda["why_not"]:
        kernels = f"none ({cuda['why_not']})"
    backends = [(f"backend {b['name']} ({', '.join(b['devices'])})", b["why_not"]) for b in facts["backends"]]
    built = [
        f"{isa} ({'here' if here else 'not on this CPU'})" for isa, here in facts["native"]["built"].items()
    ]
    return "\n".join(
        [
            header(),
            *(f"{name}: {why or 'ready'}" for name, why in backends),
            f"instruction sets built: {', '.join(built) or 'none'}",
            f"CUDA kernels built: {kernels}",
            ", ".join(f"{name} {found or 'not installed'}" for name, found in facts["versions"].items()),
        ]
    )


def native() -> dict[str, Any]:
    """thickets._C: its instruction sets, whether this CPU has them, the chosen one, or why it cannot load."""
    try:
        module = import_module("thickets._C")
    except ImportError as error:
        return {"built": {}, "chosen": None, "why_not": f"thickets._C was not built: {error}"}
    return {"built": module.isas(), "chosen": module.isa(), "why_not": None}


def backends() -> list[dict[str, Any]]:
    """Every registered backend: its name, its device types, and why it cannot run here (None: it can)."""
    from thickets.backends import REGISTRY

    return [{"name": b.name, "devices": list(b.devices), "why_not": b.why_not()} for b in REGISTRY.values()]


def cuda() -> dict[str, Any]:
    """The CUDA toolkit that thickets._C.cuda was built with, its architectures, or why it was not built."""
    try:
        module = import_module("thickets._C")
    except ImportError as error:
        return {"toolkit": None, "architectures": [], "why_not": f"thickets._C was not built: {error}"}
    toolkit, *architectures = module.cuda.built.split() if hasattr(module, "cuda") else [None]
    return {"toolkit": toolkit, "architectures": architectures, "why_not": module.cuda_why() or None}


def commit(root: Path = CHECKOUT) -> str | None:
    """The commit of the checkout at `root`, marked -dirty where files differ from it; None if it is none."""
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def cpu_model() -> str:
    """The processor's name as its maker writes it, else the machine's architecture."""
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
