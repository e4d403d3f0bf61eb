"""What the kernels of csrc/cuda are for, by their template's arguments, and what a pass of a loop does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

FAMILIES = ("none", "normal", "normal4", "rademacher")
DTYPES = ("float32", "bfloat16", "float16")


class Case(NamedTuple):
    """A kernel by name, and the entries of a lane in one pass of its main loop from the pass's opcodes."""

    name: str
    entries: Callable[[Counter[str]], float]
    drawn: str = ""  # the family whose draws in the loop are all that the entries need
    tensor: bool = False  # must use the tensor cores
    streams: bool = False  # reads and writes memory in the loop, an element an entry
    whole: bool = False  # count the whole kernel: it does its work once
    threads: int = 0  # of a usual block, where the kernel allows for larger ones
    dynamic: int = 0  # bytes of shared memory that a launch adds for a thread


def kind_of(family: int, weighted: int) -> str:
    """What the left operand of a product is: W, eps or W'."""
    return "plain" if family == 0 else "storage" if weighted else "exact"


def linear(family: int, dtype: int, weighted: int, tiles: int) -> Case:
    """A tensor-core instruction takes eight entries of a lane; every tile of rows takes them anew."""
    name = f"linear {FAMILIES[family]} {kind_of(family, weighted)} {DTYPES[dtype]} {8 * tiles} rows"
    drawn = FAMILIES[family] if family else ""
    return Case(name, lambda opcodes: 8 * opcodes["HMMA"] / tiles, drawn, tensor=True)


def linear_float32(family: int, weighted: int, outputs: int, rows: int) -> Case:
    """Eight columns of the outputs in a pass, where normals are drawn; the others draw outside the loop."""
    name = f"linear_float32 {FAMILIES[family]} {kind_of(family, weighted)} {rows} rows"
    return Case(name, lambda _: 8 * outputs, "normal" if FAMILIES[family] == "normal" else "")


def quad(op: str) -> Callable[[int], Case]:
    """128 columns of a line by four lanes in a pass; normals, of four special functions a pair, fewer."""

    def case(family: int) -> Case:
        def entries(opcodes: Counter[str]) -> float:
            return opcodes["MUFU"] / 2 if FAMILIES[family] == "normal" else 32

        return Case(f"{op} {FAMILIES[family]}", entries, streams=op == "rows")

    return case


def project(ranks: int) -> Case:
    """Four columns of eight rows of x in a pass, with the factors in registers."""
    return Case(f"lowrank project {ranks} ranks", lambda _: 32)


def thin(op: str, lines: int, lines_of_many: int) -> Callable[[int, int], Case]:
    """Four columns of some lines in a pass; `many`: ranks of several Philox calls."""

    def case(used: int, many: int) -> Case:
        ranks = "many" if many else used
        return Case(f"lowrank {op} {ranks} ranks", lambda _: 4 * (lines_of_many if many else lines))

    return case


def hadamard(op: str, whole: bool, kept: int = 0) -> Callable[..., Case]:
    """The 64 elements of a thread through transforms that meet in shared memory; `kept` more lie there."""
    element = 4 * (1 + 4 / 32 + 8 / 512) + 1 / 4  # bytes, with padding and the diagonals' signs

    def case(large: int, *held: int) -> Case:
        name = " ".join(["hadamard", op, "large" if large else "small", *map(str, held)])
        return Case(name, lambda _: 64, whole=whole, threads=128, dynamic=int(64 * element + 4 * kept))

    return case


CASES: dict[tuple[str, str], Callable[..., Case]] = {
    ("linear", "linear_kernel"): linear,
    ("linear_float32", "float32_kernel"): linear_float32,
    ("rows", "rows_kernel"): quad("rows"),
    ("accumulate", "accumulate_kernel"): quad("accumulate"),
    ("lowrank", "project_kernel"): project,
    ("lowrank", "expand_kernel"): thin("expand", 4, 16),
    ("lowrank_rows", "rows_kernel"): thin("rows", 4, 16),
    ("lowrank_rows", "accumulate_kernel"): thin("accumulate", 16, 16),
    ("hadamard", "product_kernel"): hadamard("product", whole=True, kept=64),
    ("hadamard", "rows_kernel"): hadamard("rows", whole=True),
    ("hadamard", "accumulate_kernel"): hadamard("accumulate", whole=False),
}


def case_of(file: str, function: str, template: tuple[int, ...]) -> Case:
    """The case of a kernel of csrc/cuda/`file`.cu; every kernel has one."""
    return CASES[file, function](*template)
