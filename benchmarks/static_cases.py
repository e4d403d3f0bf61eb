"""The calls whose kernels static.py compiles: every launch wrapper, family and kind of product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from thickets.operands import Members, Noise
from thickets.triton_kernels.accumulate import accumulate
from thickets.triton_kernels.hadamard import hadamard_product
from thickets.triton_kernels.linear import dense_product
from thickets.triton_kernels.lowrank import lowrank_product
from thickets.triton_kernels.rows import perturbed_rows

BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32
NAMES = {BFLOAT16: "bfloat16", FLOAT32: "float32"}
COLUMNS = 4096  # of every weight here: a multiple of 16, as layers have it


class Case(NamedTuple):
    """A call of a launch wrapper, and the noise entries of a step of its main loop from the constants."""

    name: str
    call: Callable[[], None]
    entries: Callable[[dict[str, Any]], int]
    product: bool = False  # must use the tensor cores
    index: int = 0  # of the launch, where the call makes several


def empty(*shape: int, dtype: torch.dtype = BFLOAT16) -> torch.Tensor:
    """A tensor without memory, which specialisation takes for an aligned one."""
    return torch.empty(shape, dtype=dtype, device="meta")


def members(count: int, rows: int) -> Members:
    """Members with `rows` rows each."""
    seeds, sigmas = empty(count, dtype=torch.int64), empty(count, dtype=FLOAT32)
    return Members(seeds, sigmas, 1.0, None, rows, count * rows)


def noise(family: str) -> Noise:
    """A parameter's noise, of a family by its full name."""
    kind, _, rank = family.partition("-")
    return Noise(kind, int(rank or 0), 0x1234567890ABCDE, 0, 0, COLUMNS)


def linear_case(family: str, kind: str, rows: int) -> Case:
    """The fused product: `exact` adds a 16-bit noise product to a base; `storage` and `float32` form W'."""
    dtype = FLOAT32 if kind == "float32" else BFLOAT16
    count = 8

    def call() -> None:
        x, y = empty(count * rows, COLUMNS, dtype=dtype), empty(count * rows, COLUMNS, dtype=dtype)
        weight = None if kind == "exact" else empty(COLUMNS, COLUMNS, dtype=dtype)
        base = y if kind == "exact" else None
        dense_product(y, x, weight, base, None, members(count, rows), noise(family), kind == "storage")

    name = f"linear {family} {kind} {rows} rows"
    return Case(name, call, lambda tile: tile["TILE_O"] * tile["TILE_K"], product=True)


def tile_entries(tile: dict[str, Any]) -> int:
    """Entries of a program of the kernels that write tiles."""
    return min(tile["ROWS"], tile["HEIGHT"]) * tile["COLS"]


def rows_case(family: str, dtype: torch.dtype, what: str) -> Case:
    """Rows of W': one `member` over the weight itself, looked-up `lines` of 8 members, or 64 `vectors`."""

    def call() -> None:
        height = 1 if what == "vectors" else COLUMNS
        weight = empty(height, COLUMNS, dtype=dtype)
        if what == "lines":
            out, ids = empty(8 * 128, COLUMNS, dtype=dtype), empty(8 * 128, dtype=torch.int64)
            perturbed_rows(out, weight, members(8, 128), noise(family), ids)
        elif what == "vectors":
            out = empty(64, 1, COLUMNS, dtype=FLOAT32)
            perturbed_rows(out, weight, members(64, 1), noise(family))
        else:
            perturbed_rows(weight[None], weight, members(1, 1), noise(family))

    return Case(f"rows {family} {NAMES[dtype]} {what}", call, tile_entries)


def accumulate_case(family: str, dtype: torch.dtype) -> Case:
    """The sum of 8 members' noise on a weight."""

    def call() -> None:
        accumulate(empty(COLUMNS, COLUMNS, dtype=dtype), members(8, 1), noise(family))

    return Case(f"accumulate {family} {NAMES[dtype]}", call, tile_entries)


def hadamard_case(order: int, count: int) -> Case:
    """The product with hadamard noise of order n: butterflies in registers, so counted by elements of z."""

    def call() -> None:
        x, y = empty(8 * count, order), empty(8 * count, order)
        parameter = noise("hadamard")._replace(full_cols=order)
        hadamard_product(y, x, y, None, members(8, count), parameter)

    name = f"hadamard {order} bfloat16 {count} rows"
    return Case(name, call, lambda tile: min(tile["TILE"], tile["EACH"]) * tile["N"])


def lowrank_case(family: str, kernel: str) -> Case:
    """One of the two launches of the low-rank product, by elements of x or of y: `project` or `expand`."""

    def call() -> None:
        x, y = empty(8 * 16, COLUMNS), empty(8 * 16, COLUMNS)
        lowrank_product(y, x, y, None, members(8, 16), noise(family))

    def entries(tile: dict[str, Any]) -> int:
        return min(tile["TILE_M"], tile["EACH"]) * tile["TILE_K" if kernel == "project" else "TILE_O"]

    return Case(f"{family} {kernel} bfloat16", call, entries, index=("project", "expand").index(kernel))


DENSE = ("normal", "normal4", "rademacher")
CASES = [
    *(
        linear_case(family, kind, count)
        for family in DENSE
        for kind in ("exact", "storage", "float32")
        for count in (16, 128)
    ),
    *(
        rows_case(family, dtype, what)
        for family in (*DENSE, "lowrank-4", "hadamard")
        for dtype in (BFLOAT16, FLOAT32)
        for what in ("member", "lines", "vectors")
    ),
    *(
        accumulate_case(family, dtype)
        for family in (*DENSE, "lowrank-4", "hadamard")
        for dtype in (BFLOAT16, FLOAT32)
    ),
    *(hadamard_case(order, count) for order in (1024, 4096, 16384) for count in (1, 16)),
    *(
        lowrank_case(family, kernel)
        for family in ("lowrank-1", "lowrank-4")
        for kernel in ("project", "expand")
    ),
]
