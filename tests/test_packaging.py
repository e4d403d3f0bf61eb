"""What is shipped and how it is built: public names, light imports, packages, sdist, THICKETS_CUDA."""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import thickets

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


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("yes", "THICKETS_CUDA must be auto, 1, 0 or wheel, got 'yes'"),
        ("1", "THICKETS_CUDA=1 asks for CUDA, but this version has no CUDA source yet"),
        ("wheel", "THICKETS_CUDA=wheel asks for CUDA, but this version has no CUDA source yet"),
    ],
)
def test_cuda_switch_refuses(value, message, tmp_path):
    run = setup("build_ext", "--build-lib", str(tmp_path), THICKETS_CUDA=value)
    assert run.returncode != 0
    assert message in run.stderr
    assert "Traceback" not in run.stderr


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
    run = setup("egg_info", "--egg-base", str(tmp_path), "sdist", "--dist-dir", str(tmp_path))
    assert run.returncode == 0, run.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        shipped = {name.partition("/")[2] for name in tar.getnames()}
    folders = [ROOT / name for name in ("csrc", "python", "triton_kernels", "tests", "benchmarks", "docs")]
    sources = [
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix in (".h", ".cpp", ".py", ".md")
    ]
    assert {str(path.relative_to(ROOT)) for path in sources} <= shipped
    assert {"LICENSE", "README.md", "constraints.txt", "setup.py", "pyproject.toml"} <= shipped
