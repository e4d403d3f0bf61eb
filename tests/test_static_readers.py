"""The readers behind the figures of compiled CUDA kernels, on listings small enough to count by hand."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("triton")  # whose tools they call


@pytest.fixture(scope="module")
def cuda() -> ModuleType:
    """benchmarks/static_cuda.py."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    try:
        import static_cuda
    finally:
        sys.path.pop(0)
    return static_cuda


# A loop over lines: 16-byte accesses where they are aligned, else an inner loop over elements.
STREAM = (
    "MOV R1, c[0x0][0x28]",
    ".L_x_0",
    "FFMA R4, R5, R6, R7",
    "@P0 BRA `(.L_x_2)",
    "LDG.E.128 R8, desc[UR4][R2.64]",
    "STG.E.128 desc[UR4][R2.64], R8",
    ".L_x_1",
    "@P1 BRA `(.L_x_0)",
    "EXIT",
    ".L_x_2",
    "LDG.E.U16 R8, desc[UR4][R2.64]",
    "STG.E.U16 desc[UR4][R2.64], R8",
    "@P2 BRA `(.L_x_2)",
    "BRA `(.L_x_1)",
)


def listing(lines: tuple[str, ...]) -> str:
    """SASS as nvdisasm prints it."""
    return "\n".join(f"{line}:" if line[0] == "." else f"  /*0000*/  {line} ;" for line in lines)


def test_loops_are_read_with_and_without_those_around(cuda: ModuleType) -> None:
    code = cuda.sass.parsed(listing(STREAM))
    assert [len(body) for body in cuda.sass.loops(code)] == [3]
    assert sorted(len(body) for body in cuda.sass.loops(code, inner=False)) == [3, 6]
    assert len(cuda.main_loop(code)) == 6  # the one that multiplies, out-of-line parts and all


def test_the_fast_path_has_the_wide_accesses(cuda: ModuleType) -> None:
    code = cuda.sass.parsed(listing(STREAM))
    body = cuda.main_loop(code)
    assert [cuda.fewest(code, body, wide) for wide in (0, 1, 2)] == [5, 5, None]


def test_work_is_counted_by_unit(cuda: ModuleType) -> None:
    lines = ("LOP3.LUT R1, R2", "PRMT R1, R2", "IMAD.WIDE.U32 R1, R2", "MUFU.LG2 R1, R2", "FADD R1, R2")
    instructions = cuda.sass.parsed(listing(lines)).instructions
    assert cuda.sass.units(instructions) == {"alu": 2, "imad": 1, "special": 1}
    assert cuda.sass.cycles(instructions, 90) == 8  # of the special function
    products = cuda.sass.parsed(listing(("HMMA.16816.F32.BF16 R1, R2",) * 3)).instructions
    assert [cuda.sass.cycles(products, arch) for arch in (80, 90)] == [24, 12]


def test_kernels_are_named_by_file_function_and_template(cuda: ModuleType) -> None:
    mangled = (
        "_ZN8thickets4cuda41_GLOBAL__N__867819e4_9_linear_cu_c60e27db13linear_kernel"
        "ILNS_6FamilyE2ELNS_5DtypeE1ELb0ELi8EEEvNS1_10KernelArgsE"
    )
    file, length, rest = cuda.MANGLED.search(mangled).groups()
    template = tuple(map(int, cuda.LITERAL.findall(rest[int(length) :])))
    assert (file, rest[: int(length)], template) == ("linear", "linear_kernel", (2, 1, 0, 8))
    case = cuda.case_of("linear", "linear_kernel", template)
    assert case.name == "linear normal4 exact bfloat16 64 rows"
    assert case.entries(Counter(HMMA=128)) == 128


def test_a_kernel_without_a_case_is_an_error(cuda: ModuleType) -> None:
    with pytest.raises(KeyError):
        cuda.case_of("linear", "unheard_of", ())
