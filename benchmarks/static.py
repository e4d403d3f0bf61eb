"""What the Triton kernels compile to, without a GPU: registers, spills, tensor cores, instructions per entry.

Calls the launch wrappers with tensors that have no memory, takes what they would launch, lets Triton
specialise and compile it for a named architecture as a launch would, and reads the cubin with the tools in
the triton package.

    python benchmarks/static.py                               # everything
    python benchmarks/static.py "linear normal4" --arch 90    # the cases whose names contain these words
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

os.environ.pop("TRITON_INTERPRET", None)  # which would leave nothing to compile

import sass
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from thickets.triton_kernels import accumulate, linear, rows
from thickets.triton_kernels.launch import Members, Noise
from thickets.triton_kernels.tuning import OPTIONS, Tuned

BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32
NAMES = {BFLOAT16: "bfloat16", FLOAT32: "float32"}
COLUMNS = 4096  # of every weight here: a multiple of 16, as layers have it
ENTRIES = {"normal": 4, "normal4": 32, "rademacher": 128}  # of one Philox call


class Case(NamedTuple):
    """A call of a launch wrapper, and the noise entries of a step of its main loop from the constants."""

    name: str
    call: Callable[[], None]
    entries: Callable[[dict[str, Any]], int]
    product: bool = False  # must use the tensor cores


class Launch(NamedTuple):
    """What a wrapper would launch: the kernel, its configurations and the arguments."""

    tuned: Tuned
    arguments: dict[str, Any]


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
        linear.linear(
            y, x, weight, base, None, members(count, rows), noise(family), dtype, storage=kind == "storage"
        )

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
            rows.perturbed_rows(out, weight, members(8, 128), noise(family), ids)
        elif what == "vectors":
            out = empty(64, 1, COLUMNS, dtype=FLOAT32)
            rows.perturbed_rows(out, weight, members(64, 1), noise(family))
        else:
            rows.perturbed_rows(weight[None], weight, members(1, 1), noise(family))

    return Case(f"rows {family} {NAMES[dtype]} {what}", call, tile_entries)


def accumulate_case(family: str, dtype: torch.dtype) -> Case:
    """The sum of 8 members' noise on a weight."""

    def call() -> None:
        accumulate.accumulate(empty(COLUMNS, COLUMNS, dtype=dtype), members(8, 1), noise(family))

    return Case(f"accumulate {family} {NAMES[dtype]}", call, tile_entries)


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
        for family in (*DENSE, "lowrank-4")
        for dtype in (BFLOAT16, FLOAT32)
        for what in ("member", "lines", "vectors")
    ),
    *(accumulate_case(family, dtype) for family in (*DENSE, "lowrank-4") for dtype in (BFLOAT16, FLOAT32)),
]


def launches(call: Callable[[], None]) -> list[Launch]:
    """What a wrapper would launch on a GPU."""
    found: list[Launch] = []

    def note(self: Tuned, grid: Any, **arguments: Any) -> None:
        found.append(Launch(self, arguments))

    with mock.patch.object(Tuned, "__call__", note):
        call()
    return found


def compiled(launch: Launch, config: triton.Config, arch: int) -> Any:
    """The kernel that a launch runs on sm_`arch`, specialised by Triton's own binder."""
    kernel, target = launch.tuned.kernel, GPUTarget("cuda", arch, 32)
    backend = make_backend(target)
    arguments = launch.arguments | config.all_kwargs() | OPTIONS
    bound, specialization, options = create_function_from_signature(kernel.signature, kernel.params, backend)(
        **arguments
    )
    options, signature, constants, attributes = kernel._pack_args(
        backend, arguments, bound, specialization, options
    )
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=target, options=options.__dict__)


def figures(case: Case, launch: Launch, config: triton.Config, arch: int) -> dict[str, Any]:
    """One row of the table."""
    kernel = compiled(launch, config, arch)
    text, usage = sass.disassembled(kernel.asm["cubin"])
    code, resources = sass.parsed(text), sass.resources(usage)
    loop = sass.main_loop(code, kernel.asm["ptx"])
    share = 32 * config.num_warps / case.entries(launch.arguments | config.kwargs) / loop.steps
    family = next((name for name in ENTRIES if name in case.name.split()), None)
    # Calls by entries' calls. Products that tiles share are hoisted, up to a quarter, so 1 reads as 0.7 to 1.
    drawn = sass.draws(loop.instructions) * share * ENTRIES[family] / 20 if family else None
    warnings = [loop.warning] if loop.warning else []
    if drawn is not None and drawn < 0.6:
        warnings.append("less noise than entries: counts are wrong")
    registers, shared = resources["REG"], kernel.metadata.shared
    return {
        "case": case.name,
        "product": case.product,
        "arch": arch,
        "config": ", ".join(f"{k} {v}" for k, v in config.kwargs.items()) + f", {config.num_warps} warps",
        "registers": registers,
        "stack": resources["STACK"],
        "spills": sass.local(code),
        "shared": shared,
        "tensor": dict(sass.tensor(loop.instructions)),
        "serialised": sass.serialised(loop.instructions),
        "instructions": len(loop.instructions),
        "per_entry": round(len(loop.instructions) * share, 2),
        "drawn": None if drawn is None else round(drawn, 2),
        "accesses": dict(sass.widths(code)),
        "warps": sass.occupancy(arch, registers, shared, config.num_warps),
        "warnings": warnings,
    }


def table(names: Iterable[str], archs: Iterable[int], first: bool) -> Iterable[dict[str, Any]]:
    """The figures of every case whose name contains all words of one of the names, or of all cases."""
    wanted = [set(name.split()) for name in names]
    for case in CASES:
        if not wanted or any(words <= set(case.name.split()) for words in wanted):
            for launch in launches(case.call):
                for config in launch.tuned.configs[: 1 if first else None]:
                    for arch in archs:
                        yield figures(case, launch, config, arch)


HEAD = (
    "case | sm | tiles | registers | stack, spills | shared | tensor cores | instructions per entry | drawn"
    " | accesses | warps"
)


def line(row: dict[str, Any]) -> str:
    """A row as Markdown."""

    def counts(counted: dict[str, int]) -> str:
        return ", ".join(f"{n} {name}" for name, n in counted.items()) or "none"

    spills = f"{row['stack']} B, {row['spills']}" if row["stack"] or row["spills"] else "none"
    fits = row["warps"] or "does not fit"
    drawn = "" if row["drawn"] is None else row["drawn"]
    warning = f" ({'; '.join(row['warnings'])})" if row["warnings"] else ""
    cells = [
        row["case"], row["arch"], row["config"], row["registers"], spills, row["shared"],
        counts(row["tensor"]) + (" serialised" if row["serialised"] else ""),
        f"{row['per_entry']}{warning}", drawn, counts(row["accesses"]), fits,
    ]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def main() -> int:
    """Print the table, line by line as it is made."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("case", nargs="*", help="words of the names of cases; all cases by default")
    parser.add_argument("--arch", nargs="+", type=int, choices=[80, 90], default=[80, 90])
    parser.add_argument("--first", action="store_true", help="only the first configuration of each kernel")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    options = parser.parse_args()
    print(f"triton {triton.__version__}\n\n| {HEAD} |\n|{' --- |' * len(HEAD.split('|'))}")
    found = []
    for row in table(options.case, options.arch, options.first):
        found.append(row)
        print(line(row), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"triton": triton.__version__, "rows": found}, indent=1) + "\n")
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
