"""Builds thickets._C: writes a build.ninja into its own stable folder and lets ninja do the rest.

Read from the environment: CXX (compiler), MAX_JOBS (parallel compiles), THICKETS_CUDA (auto, 1, 0 or wheel).
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
BUILD = ROOT / "build" / f"native-{sysconfig.get_platform()}"  # stable: a second build compiles what changed
X86 = platform.machine().lower() in ("x86_64", "amd64")
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
# Each file of csrc/cpu is compiled once per entry, with -DTHICKETS_ISA=<key> and these flags.
ISAS: dict[str, list[str]] = {"portable": ["-fno-tree-vectorize"]}  # why: csrc/cpu/simd_portable.h
if X86:
    ISAS |= {"avx2": AVX2, "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", *AVX2]}
FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
FLAGS += ["-Wno-maybe-uninitialized"]  # false: GCC 12 warns of its own AVX-512 intrinsics
FLAGS += ["-ffp-contract=off", "-fno-math-errno"]  # same bits everywhere: no fused step but those written
NO_CUDA_SOURCE = "this version has no CUDA source yet"
RULES = """\
rule compile
  command = $cxx -MMD -MF $out.d $flags -c $in -o $out
  description = compile $out
  depfile = $out.d
  deps = gcc
rule link
  command = $cxx -shared $in -o $out $flags
  description = link $out
"""


def cuda_off() -> str:
    """Why CUDA is off, by THICKETS_CUDA; stops the build where CUDA is asked for and cannot be had."""
    asked = os.environ.get("THICKETS_CUDA", "auto")
    if asked not in ("auto", "1", "0", "wheel"):
        sys.exit(f"error: THICKETS_CUDA must be auto, 1, 0 or wheel, got {asked!r}")
    if asked in ("1", "wheel"):
        sys.exit(f"error: THICKETS_CUDA={asked} asks for CUDA, but {NO_CUDA_SOURCE}; use auto or 0")
    return NO_CUDA_SOURCE if asked == "auto" else "it was built with THICKETS_CUDA=0"


def compiler() -> str:
    """The C++ compiler command: $CXX, else g++, else c++."""
    command = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or "g++"
    if shutil.which(shlex.split(command)[0]) is None:
        sys.exit(f"error: no C++17 compiler: {command!r} was not found; install g++ or set CXX")
    return command


def ninja() -> str:
    """The path of ninja: the build requirement of that name, else the one on PATH."""
    try:
        from ninja import BIN_DIR
    except ImportError:
        BIN_DIR = ""
    path = shutil.which("ninja", path=os.pathsep.join([str(BIN_DIR), os.environ.get("PATH", "")]))
    return path or sys.exit("error: ninja was not found; run `pip install ninja`")


def openmp(cxx: str) -> list[str]:
    """-fopenmp, or nothing on a Mac whose clang has no OpenMP: the kernels then run on one thread."""
    probe = [*shlex.split(cxx), "-fopenmp", "-include", "omp.h", "-x", "c++", "-fsyntax-only", os.devnull]
    if sys.platform == "darwin" and subprocess.run(probe, capture_output=True).returncode != 0:
        print("warning: this compiler has no OpenMP, so thickets._C will run on one thread")
        return ["-Wno-unknown-pragmas"]
    return ["-fopenmp"]


def write_ninja(suffix: str) -> Path:
    """Write build.ninja for this Python and return the path of the library that it links."""
    import pybind11

    cuda_why, cxx = cuda_off(), compiler()
    omp = openmp(cxx)
    common = [*FLAGS, *omp]
    once = [*common, *(["-DTHICKETS_X86=1"] if X86 else [])]
    # pybind11's folder differs from one isolated build to the next: bindings.cpp alone sees it.
    includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    text, objects = [RULES], []

    def edge(rule: str, out: Path, sources: list[Path], flags: list[str]) -> None:
        paths = [re.sub(r"([$: ])", r"$\1", str(path)) for path in (out, *sources)]
        quoted = shlex.join(flags).replace("$", "$$")
        text.append(f"build {paths[0]}: {rule} {' '.join(paths[1:])}\n  cxx = {cxx}\n  flags = {quoted}\n")

    def compiled(source: Path, out: str, flags: list[str]) -> None:
        objects.append(BUILD / out)
        edge("compile", objects[-1], [source], flags)

    for source in sorted((ROOT / "csrc").glob("*.cpp")):
        if source.name == "bindings.cpp":
            compiled(source, f"bindings{suffix}.o", [*once, f'-DTHICKETS_CUDA_WHY="{cuda_why}"', *includes])
        else:
            compiled(source, f"{source.stem}.o", once)
    # Portable objects come first: of an inline function that several objects hold the linker keeps the first,
    # and that one must run on any CPU.
    for isa, flags in ISAS.items():
        for source in sorted((ROOT / "csrc" / "cpu").glob("*.cpp")):
            compiled(source, f"cpu/{source.stem}.{isa}.o", [*common, *flags, f"-DTHICKETS_ISA={isa}"])
    library = BUILD / f"_C{suffix}"
    apple = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
    edge("link", library, objects, [*omp, *apple])
    BUILD.mkdir(parents=True, exist_ok=True)
    (BUILD / "build.ninja").write_text("\n".join(text))
    return library


class NinjaBuild(build_ext):
    """setuptools' build_ext with ninja in place of its compiler."""

    def build_extension(self, ext: Extension) -> None:
        """Build the library and put a copy where setuptools wants it."""
        library = write_ninja(sysconfig.get_config_var("EXT_SUFFIX"))
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        if subprocess.run([ninja(), "-C", str(BUILD), *jobs, str(library)]).returncode != 0:
            sys.exit("error: the C++ build failed; the compiler's messages are above")
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(library), str(target))


setup(ext_modules=[Extension("thickets._C", sources=[])], cmdclass={"build_ext": NinjaBuild})
