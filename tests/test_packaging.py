"""What is shipped and how it is built: public names, light imports, packages, sdist, THICKETS_CUDA."""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

import thickets
from thickets import info
from thickets.backends import cuda, refusal

ROOT = Path(__file__).resolve().parent.parent


def setup(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run setup.py as a build front end does."""
    pytest.importorskip("setuptools")
    pytest.importorskip("pybind11")
    command = [sys.executable, "setup.py", "-q", *args]
    return subprocess.run(command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True)


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_version_is_the_same_everywhere():
    stated = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert stated is not None
    assert thickets.__version__ == stated[1]


@pytest.mark.parametrize("name", thickets.__all__)
def test_public_name_is_there_and_documented(name):
    value = getattr(thickets, name)
    assert name in dir(thickets)
    assert not callable(value) or value.__doc__, f"{name} has no docstring"


def test_public_names_agree():
    assert thickets.__all__ == sorted(thickets._HOME)


def test_unknown_name():
    with pytest.raises(AttributeError, match="module 'thickets' has no attribute 'perturbed_lineer'"):
        thickets.perturbed_lineer  # noqa: B018


def test_import_loads_nothing_but_itself():
    loaded = python(
        "import sys, torch; old = set(sys.modules); import thickets; print(*set(sys.modules) - old)"
    )
    assert loaded == "thickets"


def test_perturb_needs_torch_alone():
    others = ["matplotlib", "numpy", "pydantic", "rich", "safetensors", "scipy", "sklearn", "triton", "typer"]
    code = f"""
import sys, torch
sys.modules.update(dict.fromkeys({others}))  # None: importing it raises
import thickets, thickets.ops, thickets.backends
pm = thickets.perturb(torch.nn.Linear(3, 2))
with pm.members([1, 2], [0.1, 0.2]):
    print(*pm(torch.ones(4, 3)).shape)
"""
    assert python(code) == "2 4 2"


def fake_toolkit(home: Path, release: str) -> Path:
    """A folder that setup.py takes for a CUDA toolkit of that release."""
    (home / "bin").mkdir(parents=True)
    (home / "lib").mkdir()
    (home / "lib" / "libcudart_static.a").touch()
    nvcc = home / "bin" / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}'\necho '#$ TOP={home}'\n")
    nvcc.chmod(0o755)
    return home


def decided(cuda: str, home: Path, **env: str) -> str:
    """What setup.py decides about CUDA under THICKETS_CUDA and CUDA_HOME; nothing is built."""
    pytest.importorskip("setuptools")
    code = "import setuptools; setuptools.setup = lambda **_: None; import setup; print(setup.cuda())"
    env = os.environ | {"THICKETS_CUDA": cuda, "CUDA_HOME": str(home)} | env
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert "Traceback" not in run.stderr
    return run.stdout + run.stderr


def test_cuda_is_off_where_there_is_no_toolkit(tmp_path):
    assert decided("auto", tmp_path) == f"nvcc was not found in CUDA_HOME={tmp_path}\n"
    assert decided("0", tmp_path) == "it was built with THICKETS_CUDA=0\n"


@pytest.mark.parametrize(("release", "serves"), [("11.8", False), ("12.0", True), ("13.0", True)])
def test_toolkit_must_be_new_enough(release, serves, tmp_path):
    found = decided("auto", fake_toolkit(tmp_path, release))
    assert found.startswith("Toolkit(") == serves
    assert serves or "is release 11.8, and CUDA 12.0 is the oldest that serves" in found


def test_toolkit_must_have_the_static_run_time(tmp_path):
    (fake_toolkit(tmp_path, "13.0") / "lib" / "libcudart_static.a").unlink()
    assert decided("auto", tmp_path) == f"the toolkit of {tmp_path}/bin/nvcc has no libcudart_static.a\n"


def test_wheel_mode_looks_among_packages_alone(tmp_path):
    (tmp_path / "empty" / "nvidia").mkdir(parents=True)
    (tmp_path / "empty" / "nvidia" / "__init__.py").touch()  # hides the packages of this environment
    installed = fake_toolkit(tmp_path / "installed", "12.0")
    refusal = decided("wheel", installed, PYTHONPATH=str(tmp_path / "empty"))
    assert "THICKETS_CUDA=wheel asks for CUDA, but nvcc was not found among the packages" in refusal
    assert "run `pip install 'cuda-toolkit[nvcc,cccl]==13.0.*'`" in refusal
    fake_toolkit(tmp_path / "packages" / "nvidia" / "cu13", "13.0")
    (tmp_path / "packages" / "nvidia" / "__init__.py").touch()
    found = decided("wheel", installed, PYTHONPATH=str(tmp_path / "packages"))
    assert f"nvcc='{tmp_path}/packages/nvidia/cu13/bin/nvcc', version='13.0'" in found


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("yes", "THICKETS_CUDA must be auto, 1, 0 or wheel, got 'yes'"),
        (
            "1",
            "THICKETS_CUDA=1 asks for CUDA, but nvcc was not found in CUDA_HOME=.*; "
            "install a CUDA toolkit and set CUDA_HOME, or use wheel .* or 0",
        ),
    ],
)
def test_cuda_switch_refuses(value, message, tmp_path):
    run = setup("build_ext", "--build-lib", str(tmp_path), THICKETS_CUDA=value, CUDA_HOME=str(tmp_path))
    assert run.returncode != 0
    assert re.search(message, run.stderr)
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(("cuda", "version"), [("auto", ""), ("0", ""), ("1", "+cu128"), ("wheel", "+cu130")])
def test_version_says_which_cuda_was_asked_for(cuda, version, tmp_path):
    home = fake_toolkit(tmp_path / "cuda", "12.8")
    run = setup("dist_info", "--output-dir", str(tmp_path), THICKETS_CUDA=cuda, CUDA_HOME=str(home))
    assert run.returncode == 0, run.stderr
    (found,) = tmp_path.glob("*.dist-info")
    assert found.name == f"thickets-{thickets.__version__}{version}.dist-info"


def test_front_ends_learn_of_the_toolkit_in_wheels():
    code = "import setuptools, sys; setuptools.setup = lambda **k: print(*k['setup_requires'])\nimport setup"
    for argument, asked, needed in [
        ("egg_info", "wheel", "cuda-toolkit[nvcc,cccl]==13.0.*"),
        ("egg_info", "auto", ""),
        ("build_ext", "wheel", ""),
    ]:
        env = os.environ | {"THICKETS_CUDA": asked}
        command = [sys.executable, "-c", code, argument]
        run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        assert run.stdout.strip() == needed, run.stderr


def test_module_says_whether_it_has_cuda():
    native = pytest.importorskip("thickets._C")
    assert hasattr(native, "cuda") == (native.cuda_why() == "")
    facts = info.cuda()
    assert facts["why_not"] or facts["architectures"] == ["sm_80", "sm_90", "compute_80"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_module_with_cuda_loads_without_a_device():
    native = pytest.importorskip("thickets._C")
    if not hasattr(native, "cuda"):
        pytest.skip(f"no CUDA kernels: {native.cuda_why()}")
    assert "driver" in native.cuda.why_not()
    with pytest.raises(RuntimeError, match=r"^CUDA: .* failed: .*driver"):
        native.cuda.accumulate((1, 0, 0, 0, 0, 4), (1, 1, 1.0, 0, 1, 0, 0), (1, 0, 4), 1, 4, (0, 0))
    assert "driver" in refusal(cuda.BACKEND, torch.device("cuda"))  # the emulator is registered in its place


def test_missing_compiler(tmp_path):
    run = setup("build_ext", "--build-lib", str(tmp_path), CXX="no-such-compiler -O2")
    assert run.returncode != 0
    assert "no C++17 compiler: 'no-such-compiler -O2' was not found" in run.stderr


def test_every_module_is_packaged(tmp_path):
    run = setup("build_py", "--build-lib", str(tmp_path))
    assert run.returncode == 0, run.stderr
    shipped = {path.relative_to(tmp_path / "thickets") for path in tmp_path.rglob("*.py")}
    kernels = {path.relative_to(ROOT) for path in (ROOT / "triton_kernels").rglob("*.py")}
    assert shipped == kernels | {
        path.relative_to(ROOT / "python") for path in (ROOT / "python").rglob("*.py")
    }
    assert all((tmp_path / "thickets" / name).exists() for name in ("py.typed", "_C.pyi"))


def test_source_distribution_is_complete(tmp_path):
    command = ["egg_info", "--egg-base", str(tmp_path), "sdist", "--dist-dir", str(tmp_path)]
    run = setup(*command, THICKETS_CUDA="1", CUDA_HOME=str(tmp_path))  # sources are the same, toolkit or not
    assert run.returncode == 0, run.stderr
    archive = tmp_path / f"thickets-{thickets.__version__}.tar.gz"
    with tarfile.open(archive) as tar:
        shipped = {name.partition("/")[2] for name in tar.getnames()}
    folders = [ROOT / name for name in ("csrc", "python", "triton_kernels", "tests", "benchmarks", "docs")]
    sources = [
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix in (".h", ".cpp", ".cu", ".py", ".md")
    ]
    assert {str(path.relative_to(ROOT)) for path in sources} <= shipped
    assert {"LICENSE", "README.md", "constraints.txt", "setup.py", "pyproject.toml"} <= shipped
