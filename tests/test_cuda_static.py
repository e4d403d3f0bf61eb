"""What the CUDA C++ kernels of the built library compile to: spills, tensor cores, work per noise entry."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")  # whose tools read the library
_C = pytest.importorskip("thickets._C")
if not hasattr(_C, "cuda"):
    pytest.skip(f"thickets._C has no CUDA kernels: {_C.cuda_why()}", allow_module_level=True)

ROOT = Path(__file__).parents[1]
BUILT, ASSEMBLED = ("80", "90"), ("90a", "100")  # architectures: code in the library; what its PTX becomes

# Instructions of a lane per noise entry (or weight, or element of a transform) in a pass of the main loop, on
# sm_80 and sm_90, by CUDA 13.0. Both sides of every branch count, but for rows only the fast path. A tenth
# more is allowed.
NOW = {
    "linear normal exact bfloat16 8 rows": (16.8, 16.8),
    "linear normal4 exact bfloat16 8 rows": (3.52, 3.55),
    "linear rademacher exact bfloat16 8 rows": (2.03, 1.97),
    "linear normal storage bfloat16 8 rows": (19.5, 19.5),
    "linear normal4 storage bfloat16 8 rows": (7.52, 7.52),
    "linear rademacher storage bfloat16 8 rows": (6.73, 6.60),
    "linear normal4 exact float16 8 rows": (3.52, 3.55),
    "linear none plain bfloat16 8 rows": (1.32, 1.34),
    "linear normal4 exact bfloat16 64 rows": (7.78, 7.97),
    "linear normal4 storage bfloat16 64 rows": (11.7, 11.9),
    "linear_float32 normal4 storage 8 rows": (23.3, 22.6),
    "linear_float32 normal4 storage 32 rows": (49.3, 48.4),
    "rows normal": (22.4, 22.7),
    "rows normal4": (10.8, 10.8),
    "rows rademacher": (6.88, 7.03),
    "accumulate normal": (19.4, 19.2),
    "accumulate normal4": (8.06, 7.88),
    "accumulate rademacher": (3.56, 3.31),
    "hadamard product small": (82.9, 83.5),
    "hadamard product large": (89.1, 89.3),
    "hadamard rows small": (65.8, 66.2),
    "hadamard accumulate small 64": (44.8, 44.8),
    "lowrank project 1 ranks": (22.4, 13.1),
    "lowrank expand 1 ranks": (66.6, 70.5),
    "lowrank accumulate 4 ranks": (20.6, 20.7),
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows of benchmarks/static_cuda.py about the library that this process has loaded."""
    file = tmp_path_factory.mktemp("static") / "table.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "static_cuda.py"), "--library", str(_C.__file__)]
    command += ["--arch", *BUILT, *ASSEMBLED, "--json", str(file)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(file.read_text())["rows"]


def named(row: dict[str, Any]) -> str:
    return f"{row['case']} on sm_{row['arch']}"


@pytest.mark.parametrize("arch", [*BUILT, *ASSEMBLED])
def test_every_kernel_is_in_the_library(table: list[dict[str, Any]], arch: str) -> None:
    cases = {row["case"] for row in table if row["arch"] == arch}
    kinds = itertools.product(("normal", "normal4", "rademacher"), ("exact", "storage"))
    left = ["none plain", *map(" ".join, kinds)]
    products = itertools.product(left, ("bfloat16", "float16"), (8, 64))
    assert {f"linear {kind} {dtype} {rows} rows" for kind, dtype, rows in products} <= cases
    sources = [path for path in (ROOT / "csrc" / "cuda").glob("*.cu") if "__global__" in path.read_text()]
    words = {path.stem.partition("_rows")[0] for path in sources}
    assert words == {case.partition(" ")[0] for case in cases}


def test_nothing_spills(table: list[dict[str, Any]]) -> None:
    assert [f"{named(row)}: {row['stack']} bytes" for row in table if row["stack"] or row["spills"]] == []


def test_everything_fits(table: list[dict[str, Any]]) -> None:
    assert [f"{named(row)}: {row['shared']} bytes" for row in table if not row["warps"]] == []


def test_16_bit_products_use_tensor_cores(table: list[dict[str, Any]]) -> None:
    """float32 sums of bfloat16 or of float16 products, and nothing else does."""
    wrong = []
    for row in table:
        suffix = ".BF16" if "bfloat16" in row["case"] else ""
        expected = {f"HMMA.16816.F32{suffix}"} if row["product"] else set()
        if set(row["tensor"]) != expected:
            wrong.append((named(row), row["tensor"]))
    assert wrong == []


def test_counts_can_be_trusted(table: list[dict[str, Any]]) -> None:
    """Loops draw the noise of their entries, less what does not change from pass to pass."""
    drawn = {named(row): row["drawn"] for row in table if row["drawn"] is not None}
    assert {name: share for name, share in drawn.items() if not 0.6 < share <= 1} == {}
    assert any("linear" in name for name in drawn)


@pytest.mark.parametrize("arch", BUILT)
@pytest.mark.parametrize("case", NOW)
def test_instructions_per_entry(table: list[dict[str, Any]], case: str, arch: str) -> None:
    found = next(row for row in table if (row["case"], row["arch"]) == (case, arch))
    assert (found["fast"] or found["per_entry"]) <= 1.1 * NOW[case][BUILT.index(arch)]


def test_no_assembler_may_fuse_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Products and sums of the PTX name their rounding: a driver that assembles it keeps them apart."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from static_cuda import extracted

    texts = [path.read_text() for path in extracted(Path(_C.__file__), "ptx", tmp_path)]
    found = {step for text in texts for step in re.findall(r"\b(?:mul|add|sub|mad)[.\w]*\.f32", text)}
    assert found
    assert [step for step in found if ".rn" not in step] == []
