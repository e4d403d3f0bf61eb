"""The CUDA kernels as a Python module that runs them on the CPU: csrc/cuda compiled by g++ with the emulator.

`module()` builds what changed and imports it. Several processes may call it at once.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shlex
import shutil
import subprocess
import sysconfig
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "emulated"
EMULATOR = ROOT / "tests" / "native" / "emulator"
FLAGS = ["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra"]
RULES = """\
rule compile
  command = $cxx $flags -MMD -MF $out.d -x c++ -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = $cxx -shared $in -o $out
"""


def why_not() -> str | None:
    """Why the module cannot be built here, in words; None: it can."""
    if shutil.which(shlex.split(_compiler())[0]) is None:
        return f"no C++ compiler: {_compiler()!r} was not found"
    missing = [name for name in ("ninja", "pybind11") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} not installed" if missing else None


@cache
def module() -> ModuleType:
    """The functions of thickets._C.cuda over CPU memory; RuntimeError if they do not compile."""
    library = BUILD / f"emulated{sysconfig.get_config_var('EXT_SUFFIX')}"
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _build(library)
    spec = importlib.util.spec_from_file_location("emulated", library)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def _build(library: Path) -> None:
    import ninja
    import pybind11

    # csrc/cuda/machine.cu asks the CUDA driver; the emulator has answers of its own.
    kernels = [path for path in sorted((ROOT / "csrc/cuda").glob("*.cu")) if path.name != "machine.cu"]
    python = [f"-isystem{path}" for path in (pybind11.get_include(), sysconfig.get_path("include"))]
    text, objects = [RULES, f"cxx = {_compiler()}"], []
    for source in [*kernels, *sorted(EMULATOR.glob("*.cpp"))]:
        flags = [*FLAGS, f"-I{EMULATOR}", f"-I{ROOT / 'csrc'}", *(python if source.stem == "module" else [])]
        objects.append(f"{source.stem}.o")
        text.append(f"build {objects[-1]}: compile {_escaped(source)}\n  flags = {shlex.join(flags)}")
    text.append(f"build {library.name}: link {' '.join(objects)}\n")
    (BUILD / "build.ninja").write_text("\n".join(text))
    command = [os.path.join(ninja.BIN_DIR, "ninja"), "-C", str(BUILD)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the emulated CUDA kernels do not compile:\n{done.stdout}")


def _compiler() -> str:
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or "g++"


def _escaped(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
