"""What the Triton kernels compile to, without a GPU: no spills, tensor cores, few instructions per entry."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("triton")

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

# Instructions of a thread per noise entry in the best configuration, on sm_80 and sm_90: what Triton 3.7.1
# makes, plus a tenth. A case here is compiled with all its configurations.
BUDGETS = {
    "linear normal exact 128 rows": (48.7, 46.0),
    "linear normal4 exact 16 rows": (7.2, 7.2),
    "linear normal4 float32 16 rows": (34.7, 34.7),
    "linear rademacher storage 128 rows": (17.6, 11.8),
    "rows normal4 bfloat16 member": (15.7, 15.9),
    "rows hadamard bfloat16 member": (63.2, 58.6),
    "accumulate rademacher float32": (10.8, 10.8),
    "hadamard 16384 bfloat16 1 rows": (84.3, 72.7),
    "lowrank-1 project bfloat16": (14.9, 15.0),
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows of benchmarks/static.py, from a process that compiles: this one may interpret."""
    file = tmp_path_factory.mktemp("static") / "table.json"
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(BENCHMARKS / "static.py"), *BUDGETS, "--json", str(file)]
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(file.read_text())["rows"]


def named(row: dict[str, Any]) -> str:
    return f"{row['case']} on sm_{row['arch']} with {row['config']}"


def test_every_case_was_compiled_for_both(table: list[dict[str, Any]]) -> None:
    expected = {(case, arch) for case in BUDGETS for arch in (80, 90)}
    assert {(row["case"], row["arch"]) for row in table} == expected


def test_nothing_spills(table: list[dict[str, Any]]) -> None:
    assert [f"{named(row)}: {row['stack']} bytes" for row in table if row["stack"] or row["spills"]] == []


def test_everything_fits(table: list[dict[str, Any]]) -> None:
    assert [f"{named(row)}: {row['shared']} bytes" for row in table if not row["warps"]] == []


def products(table: list[dict[str, Any]], wide: bool) -> list[dict[str, Any]]:
    found = [row for row in table if row["product"] and ("float32" in row["case"]) == wide]
    assert found
    return found


def test_16_bit_products_use_tensor_cores(table: list[dict[str, Any]]) -> None:
    without = [
        named(row) for row in products(table, wide=False) if not any("BF16" in one for one in row["tensor"])
    ]
    assert without == []


def test_float32_products_are_not_rounded_to_tf32(table: list[dict[str, Any]]) -> None:
    assert [named(row) for row in products(table, wide=True) if row["tensor"]] == []


def test_counts_can_be_trusted(table: list[dict[str, Any]]) -> None:
    """Kernels that only write tiles have no loop and are counted whole; nothing else may be in doubt."""
    looping = ("linear", "accumulate")
    expected = {"no main loop: the whole kernel"}
    doubts = [
        (named(row), row["warnings"])
        for row in table
        if set(row["warnings"]) - (set() if row["case"].startswith(looping) else expected)
    ]
    assert doubts == []


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("case", BUDGETS)
def test_instructions_per_entry(table: list[dict[str, Any]], case: str, arch: int) -> None:
    counts = {row["config"]: row["per_entry"] for row in table if (row["case"], row["arch"]) == (case, arch)}
    assert min(counts.values()) <= BUDGETS[case][arch == 90], counts


@pytest.fixture(scope="module")
def sass() -> ModuleType:
    """benchmarks/sass.py."""
    spec = importlib.util.spec_from_file_location("sass", BENCHMARKS / "sass.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def listing(*lines: str) -> str:
    """SASS as nvdisasm prints it: labels as they are, instructions behind their addresses."""
    return "\n".join(
        f"{line}:" if line.startswith(".") else f"        /*{16 * i:04x}*/  {line} ;"
        for i, line in enumerate(lines)
    )


LOOP = (
    "MOV R1, c[0x0][0x28]",
    ".L_x_0",
    "IMAD.HI.U32 R2, R3, -0x2daee0ad, RZ",
    "@P1 BRA `(.L_x_2)",  # to a slow path out of line
    ".L_x_1",
    "IMAD.WIDE.U32 R4, R5, -0x326172a9, RZ",
    "@P0 BRA `(.L_x_0)",
    "STG.E.128 desc[UR4][R2.64], R4",
    "@!P2 EXIT",
    "STL [R1+0x4], R7",
    "EXIT",
    ".L_x_2",
    "FADD R2, R2, R2",
    "BRA `(.L_x_1)",  # backwards, but no loop of its own
    ".L_x_3",
    "BRA `(.L_x_3)",  # what ends every kernel, and is never reached
)


def test_reader_finds_the_loop_with_its_slow_path(sass: ModuleType) -> None:
    code = sass.parsed(listing(*LOOP))
    assert [len(body) for body in sass.loops(code)] == [6]
    ptx = "mov.b32 %r7, -766435501;\nmul.hi.u32 %r1, %r2, %r7;\nmul.wide.u32 %rd1, %r70, -845247145;"
    loop = sass.main_loop(code, ptx)
    assert (len(loop.instructions), loop.steps, loop.warning) == (6, 1, "")
    assert (sass.local(code), sass.widths(code)) == (1, {"STG 128": 1})


def test_reader_divides_by_unrolling_and_says_when_it_cannot(sass: ModuleType) -> None:
    code = sass.parsed(listing(*LOOP))
    assert sass.main_loop(code, "mul.hi.u32 %r1, %r2, -766435501;").steps == 2
    lost = sass.main_loop(code, "mul.hi.u32 %r1, %r2, %r7;")
    assert (lost.steps, lost.warning) == (1, "steps unknown: PTX shows no such work")
    straight = sass.main_loop(sass.parsed(listing("FADD R0, R0, R0", "EXIT")), "")
    assert straight.warning.startswith("no main loop")


def test_reader_keeps_the_innermost_loop(sass: ModuleType) -> None:
    product = "HMMA.16816.F32.BF16 R0, R4, R8, R0"
    nested = [
        ".L_x_0",
        "FADD R0, R0, R0",
        ".L_x_1",
        product,
        "@P0 BRA `(.L_x_1)",
        "@P1 BRA `(.L_x_0)",
        "EXIT",
    ]
    code = sass.parsed(listing(*nested))
    assert [len(body) for body in sass.loops(code)] == [2]


def test_reader_knows_serialised_products(sass: ModuleType) -> None:
    product, wait = "HGMMA.64x16x16.F32.BF16 R8, R4, gdesc[UR8], R8, gsb0", "WARPGROUP.DEPBAR.LE gsb0, 0x{}"
    for pending, expected in ((0, True), (7, False)):
        code = sass.parsed(listing(*[product, wait.format(pending)] * 3))
        assert sass.serialised(code.instructions) is expected


@pytest.mark.parametrize(
    ("arch", "registers", "shared", "warps", "expected"),
    [
        (80, 255, 0, 4, 8),  # registers
        (90, 168, 0, 4, 12),
        (90, 32, 0, 4, 64),  # warps
        (80, 32, 0, 1, 32),  # programs
        (80, 32, 81 * 1024, 4, 8),  # shared memory
        (90, 32, 81 * 1024, 4, 8),
        (80, 32, 200 * 1024, 4, 0),  # more than a program may have
        (90, 32, 200 * 1024, 4, 4),
    ],
)
def test_occupancy(
    sass: ModuleType, arch: int, registers: int, shared: int, warps: int, expected: int
) -> None:
    assert sass.occupancy(arch, registers, shared, warps) == expected
