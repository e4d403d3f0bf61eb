"""Builds thickets._C: writes a build.ninja into its own stable folder and lets ninja do the rest.

Read from the environment: CXX (compiler), MAX_JOBS (parallel compiles), THICKETS_CUDA (auto, 1, 0 or wheel).
"""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.egg_info import egg_info

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
# Machine code for Ampere and Hopper, and PTX for every later GPU, of one pass over the source.
ARCHITECTURES = ["sm_80", "sm_90", "compute_80"]
NVCC_FLAGS = ["-O3", "-std=c++17", "-fmad=false"]
NVCC_FLAGS += [f"-gencode=arch=compute_80,code=[{','.join(ARCHITECTURES)}]"]
NVCC_FLAGS += ["-Xfatbin=-compress-all"]  # half the size of the library
NVCC_FLAGS += ["-Xcompiler", "-fPIC,-fvisibility=hidden,-ffp-contract=off,-Wall,-Wextra"]
OLDEST = (12, 0)  # toolkit that serves
WHEELS = "13.0"  # the toolkit that THICKETS_CUDA=wheel fetches
PIN = f"cuda-toolkit[nvcc,cccl]=={WHEELS}.*"
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


class Toolkit(NamedTuple):
    """A CUDA toolkit: the path of nvcc, the version, the library to link."""

    nvcc: str
    version: str
    cudart: Path


def asked() -> str:
    """THICKETS_CUDA: auto (CUDA where a toolkit is found), 1 (on), 0 (off), wheel (on, from wheels)."""
    value = os.environ.get("THICKETS_CUDA", "auto")
    if value not in ("auto", "1", "0", "wheel"):
        sys.exit(f"error: THICKETS_CUDA must be auto, 1, 0 or wheel, got {value!r}")
    return value


def cuda() -> Toolkit | str:
    """The toolkit to build with, or why CUDA is off; stops a build that asks for CUDA and cannot have it."""
    found = "it was built with THICKETS_CUDA=0" if asked() == "0" else toolkit()
    if isinstance(found, Toolkit) or asked() in ("auto", "0"):
        return found
    fixes = "install a CUDA toolkit and set CUDA_HOME, or use wheel (a toolkit from wheels)"
    if asked() == "wheel":
        fixes = f"run `pip install '{PIN}'`, or use 1 (an installed toolkit)"
    sys.exit(f"error: THICKETS_CUDA={asked()} asks for CUDA, but {found}; {fixes} or 0 (no CUDA)")


def folders() -> tuple[str, str]:
    """Where nvcc is looked for: folders as in PATH, and how a message calls them."""
    if asked() == "wheel":  # nowhere else, so that no other toolkit gets in
        homes = getattr(find_spec("nvidia"), "submodule_search_locations", None) or []
        return os.pathsep.join(f"{home}/cu13/bin" for home in homes), "among the packages of this Python"
    if home := os.environ.get("CUDA_HOME"):
        return f"{home}/bin", f"in CUDA_HOME={home}"
    path = os.environ.get("PATH", "")
    return f"{path}{os.pathsep}/usr/local/cuda/bin", "on PATH or in /usr/local/cuda"


def toolkit() -> Toolkit | str:
    """The toolkit of the first nvcc that is found, or what is wrong with it."""

    def said(*arguments: str) -> str:
        run = subprocess.run([nvcc, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return run.stdout

    path, name = folders()
    nvcc = shutil.which("nvcc", path=path)
    if nvcc is None:
        return f"nvcc was not found {name}"
    release = re.search(r"release (\d+)\.(\d+)", said("--version"))
    if release is None or (int(release[1]), int(release[2])) < OLDEST:
        name = release[0] if release else "of an unknown release"
        return f"{nvcc} is {name}, and CUDA {OLDEST[0]}.{OLDEST[1]} is the oldest that serves"
    # nvcc may be a link or a wrapper: where its toolkit lies, it says itself.
    plan = said("--dryrun", "-c", "-x", "cu", os.devnull)
    top = re.search(r"^#\$ TOP=(.+)$", plan, re.MULTILINE)
    libraries = [*re.findall(r'"-L(.+?)"', plan), *([f"{top[1]}/lib64", f"{top[1]}/lib"] if top else [])]
    for library in libraries:
        if (cudart := Path(library, "libcudart_static.a").resolve()).exists():
            return Toolkit(nvcc, f"{release[1]}.{release[2]}", cudart)
    return f"the toolkit of {nvcc} has no libcudart_static.a"


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


def nvcc_flags(cxx: str) -> list[str]:
    """Flags of nvcc; its host compiler is the one that $CXX names."""
    words = [word for word in shlex.split(cxx) if Path(word).name not in ("ccache", "sccache")]
    return [*NVCC_FLAGS, *(["-ccbin", words[0]] if os.environ.get("CXX") else [])]


def write_ninja(suffix: str) -> Path:
    """Write build.ninja for this Python and return the path of the library that it links."""
    import pybind11

    gpu, cxx = cuda(), compiler()
    omp = openmp(cxx)
    common = [*FLAGS, *omp]
    once = [*common, *(["-DTHICKETS_X86=1"] if X86 else [])]
    why = gpu if isinstance(gpu, str) else ""
    # pybind11's folder differs from one isolated build to the next: bindings.cpp alone sees it.
    bindings = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    bindings += [f"-DTHICKETS_CUDA_WHY={json.dumps(why)}"]
    libraries = [*omp, *(["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else [])]
    if isinstance(gpu, Toolkit):
        bindings += [f'-DTHICKETS_CUDA="{" ".join([gpu.version, *ARCHITECTURES])}"']
        # Static: the module loads where there is no CUDA. Hidden: it never calls the CUDA run time of torch.
        libraries += [str(gpu.cudart), f"-Wl,--exclude-libs,{gpu.cudart.name}", "-ldl", "-lrt", "-lpthread"]
    text, objects = [RULES], []

    def edge(rule: str, out: Path, sources: list[Path], flags: list[str], command: str = cxx) -> None:
        paths = [re.sub(r"([$: ])", r"$\1", str(path)) for path in (out, *sources)]
        quoted = shlex.join(flags).replace("$", "$$")
        text.append(f"build {paths[0]}: {rule} {' '.join(paths[1:])}\n  cxx = {command}\n  flags = {quoted}")

    def compiled(source: Path, out: str, flags: list[str], command: str = cxx) -> None:
        objects.append(BUILD / out)
        edge("compile", objects[-1], [source], flags, command)

    for source in sorted((ROOT / "csrc").glob("*.cpp")):
        if source.name == "bindings.cpp":
            compiled(source, f"bindings{suffix}.o", [*once, *bindings])
        else:
            compiled(source, f"{source.stem}.o", once)
    if isinstance(gpu, Toolkit):
        for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
            compiled(source, f"cuda/{source.stem}.o", nvcc_flags(cxx), shlex.quote(gpu.nvcc))
    # Portable objects come before the wider ones: of an inline function that several objects hold the linker
    # keeps the first, and that one must run on any CPU.
    for isa, flags in ISAS.items():
        for source in sorted((ROOT / "csrc" / "cpu").glob("*.cpp")):
            compiled(source, f"cpu/{source.stem}.{isa}.o", [*common, *flags, f"-DTHICKETS_ISA={isa}"])
    library = BUILD / f"_C{suffix}"
    edge("link", library, objects, libraries)
    BUILD.mkdir(parents=True, exist_ok=True)
    (BUILD / "build.ninja").write_text("\n".join([*text, ""]))
    return library


class NinjaBuild(build_ext):
    """setuptools' build_ext with ninja in place of its compiler."""

    def build_extension(self, ext: Extension) -> None:
        """Build the library and put a copy where setuptools wants it."""
        library = write_ninja(sysconfig.get_config_var("EXT_SUFFIX"))
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        if subprocess.run([ninja(), "-C", str(BUILD), *jobs, str(library)]).returncode != 0:
            sys.exit(
                "error: the native build failed; the compiler's messages are above "
                "(THICKETS_CUDA=0 leaves out the CUDA kernels)"
            )
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(library), str(target))


class EggInfo(egg_info):
    """setuptools' egg_info; what was asked for with CUDA is a version of its own, such as 0.1.0+cu130."""

    def finalize_options(self) -> None:
        """Tag wheels, not source distributions."""
        if asked() in ("1", "wheel") and "sdist" not in sys.argv:
            found = cuda() if asked() == "1" else None  # wheels come only after an egg_info that names them
            version = found.version if isinstance(found, Toolkit) else WHEELS
            self.tag_build = f"+cu{version.replace('.', '')}"
        super().finalize_options()


setup(
    ext_modules=[Extension("thickets._C", sources=[])],
    cmdclass={"build_ext": NinjaBuild, "egg_info": EggInfo},
    # Build front ends ask by egg_info what a build needs; `python setup.py build_ext` shall fetch nothing.
    setup_requires=[PIN] if asked() == "wheel" and "egg_info" in sys.argv else [],
)
