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
import triton
from static_cases import CASES, Case
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from thickets.triton_kernels.tuning import OPTIONS, Tuned

ENTRIES = {"normal": 4, "normal4": 32, "rademacher": 128}  # of one Philox call


class Launch(NamedTuple):
    """What a wrapper would launch: the kernel, its configurations and the arguments."""

    tuned: Tuned
    arguments: dict[str, Any]


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
        if wanted and not any(words <= set(case.name.split()) for words in wanted):
            continue
        launch = launches(case.call)[case.index]
        fitting = [c for c in launch.tuned.configs if launch.tuned.fits(c, launch.arguments)]
        for config in fitting[: 1 if first else None]:
            for arch in archs:
                yield figures(case, launch, config, arch)


HEAD = (
    "case | sm | tiles | registers | stack, spills | shared | tensor cores | instructions per entry | drawn"
    " | accesses | warps"
)


def line(row: dict[str, Any]) -> str:
    """A row as Markdown."""
    spills = f"{row['stack']} B, {row['spills']}" if row["stack"] or row["spills"] else "none"
    fits = row["warps"] or "does not fit"
    drawn = "" if row["drawn"] is None else row["drawn"]
    warning = f" ({'; '.join(row['warnings'])})" if row["warnings"] else ""
    cells = [
        row["case"], row["arch"], row["config"], row["registers"], spills, row["shared"],
        sass.in_words(row["tensor"]) + (" serialised" if row["serialised"] else ""),
        f"{row['per_entry']}{warning}", drawn, sass.in_words(row["accesses"]), fits,
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
