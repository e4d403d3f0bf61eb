"""What the CUDA C++ kernels compile to, without a GPU: registers, spills, tensor cores, work per noise entry.

Reads the kernels out of the built library with the tools in the triton package: what ships is what is read.
Counts are those of a pass of the main loop, per noise entry of a lane (or weight, or element of a
transform); cycles are what the busiest unit of a quarter of a multiprocessor needs for an entry of each lane
of a warp. Both sides of a branch count, such as accesses of 16 bytes and those of single elements; the fast
path has only those of 16 bytes, to 16-bit arrays.

    python benchmarks/static_cuda.py                                # every kernel of thickets._C
    python benchmarks/static_cuda.py "linear normal4" --arch 90     # those whose names contain these words
    python benchmarks/static_cuda.py --arch 90a 100                 # as a driver assembles the library's PTX
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import sass
from static_cuda_cases import case_of

ENTRIES = {"normal": 4, "normal4": 32, "rademacher": 128}  # of one Philox call

# The mangled name: the file in the anonymous namespace's tag, then the kernel and its template's arguments.
MANGLED = re.compile(r"_\d+_(\w+?)_cu_[0-9a-f]{8}(\d+)(\w+)")
LITERAL = re.compile(r"L(?:NS_\d+[A-Za-z]+E|[a-z])(\d+)E")


class Kernel(NamedTuple):
    """A kernel of the library for one architecture."""

    file: str  # csrc/cuda/FILE.cu
    function: str
    template: tuple[int, ...]  # its arguments, as numbers
    threads: int  # of a block, at most
    sass: str
    resources: dict[str, int]


def library() -> Path | None:
    """The built thickets._C."""
    spec = find_spec("thickets._C")
    return Path(spec.origin) if spec and spec.origin else None


def extracted(path: Path, kind: str, to: Path) -> list[Path]:
    """All cubins (kind "elf") or PTX texts (kind "ptx") of a library or an object file, as files."""
    sass.tool("cuobjdump", f"-x{kind}", "all", str(path.resolve()), folder=to)
    return sorted(to.glob("*.ptx" if kind == "ptx" else "*.cubin"))


def assembler() -> str:
    """The toolkit's ptxas, which knows the version of PTX that its nvcc writes, else the newest of Triton."""
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    places = [os.environ.get("PATH", ""), *(f"{home}/bin" for home in homes if home)]
    return shutil.which("ptxas", path=os.pathsep.join(places)) or str(sass.TOOLS / "ptxas-blackwell")


def assembled(ptx: Path, arch: str) -> Path:
    """The cubin that a driver makes of PTX for a GPU that the library has no code for."""
    cubin = ptx.with_suffix(f".sm_{arch}.cubin")
    subprocess.run([assembler(), f"-arch=sm_{arch}", str(ptx), "-o", str(cubin)], check=True)
    return cubin


def kernels(path: Path, arch: str) -> Iterator[Kernel]:
    """Every kernel of a library or an object file: as it is there for sm_`arch`, else assembled from PTX."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        cubins = [file for file in extracted(path, "elf", Path(folder)) if f".sm_{arch}." in file.name]
        if not cubins:
            cubins = list(pool.map(partial(assembled, arch=arch), extracted(path, "ptx", Path(folder))))
        for found in pool.map(of_cubin, cubins):
            yield from found


def of_cubin(cubin: Path) -> list[Kernel]:
    """Every kernel of a cubin."""
    usage = sass.tool("cuobjdump", "--dump-resource-usage", str(cubin))
    resources = {name: sass.resources(text) for name, text in re.findall(r"Function (\S+):\n(.*)", usage)}
    threads = {}
    for text in sass.tool("cuobjdump", "-elf", str(cubin)).split("\n.nv.info.")[1:]:
        most = re.search(r"EIATTR_MAX_THREADS\s.*?Value:\s*(0x[0-9a-f]+)", text, re.DOTALL)
        threads[text.split()[0]] = int(most[1], 16) if most else 1024
    kernels = []
    for part in re.split(r"(?=^\.text\.\S+:$)", sass.tool("nvdisasm", "-c", "-ndf", str(cubin)), flags=re.M):
        head = re.match(r"\.text\.(\S+):", part)
        found = head and MANGLED.search(head[1])
        if head and found:
            function, rest = found[3][: int(found[2])], found[3][int(found[2]) :]
            template = tuple(map(int, LITERAL.findall(rest)))
            kernels.append(Kernel(found[1], function, template, threads[head[1]], part, resources[head[1]]))
    return kernels


def main_loop(code: sass.Code) -> set[int]:
    """The loop, without loops in it, with most tensor-core work, or else most float32 products and noise."""

    def work(body: set[int]) -> tuple[int, int]:
        instructions = [code.instructions[i] for i in body]
        products = sum(one.opcode.startswith("FFMA") for one in instructions)
        return sum(sass.tensor(instructions).values()), products + sass.draws(instructions)

    bodies = [body for body in sass.loops(code, inner=False) if any(work(body))]
    return max(bodies, key=work, default=set(range(len(code.instructions))))


def fewest(code: sass.Code, body: set[int], wide: int) -> int | None:
    """Instructions of the shortest way around a loop with that many loads and as many stores of 16 bytes."""
    following, head = sass.successors(code), min(body)
    known, pending = set(), [(1, head, 0, 0)]
    while pending:
        count, i, loads, stores = heapq.heappop(pending)
        base, *suffixes = code.instructions[i].opcode.split(".")
        if "128" in suffixes:
            loads = min(loads + (base in ("LD", "LDG")), wide)
            stores = min(stores + (base in ("ST", "STG")), wide)
        if (i, loads, stores) in known:
            continue
        known.add((i, loads, stores))
        if head in following[i] and loads == stores == wide:
            return count
        for after in body.intersection(following[i]) - {head}:
            heapq.heappush(pending, (count + 1, after, loads, stores))
    return None


def figures(kernel: Kernel, arch: str) -> dict[str, Any]:
    """One row of the table."""
    case, code = case_of(kernel.file, kernel.function, kernel.template), sass.parsed(kernel.sass)
    body, generation = main_loop(code), int(arch.rstrip("a"))
    loop = sass.reachable(code) if case.whole else [code.instructions[i] for i in sorted(body)]
    entries = case.entries(Counter(one.opcode.partition(".")[0] for one in loop))
    # Calls by entries' calls: what does not change from pass to pass is hoisted, so 1 reads as 0.7 to 1.
    drawn = sass.draws(loop) / 20 * ENTRIES[case.drawn] / entries if case.drawn else None

    def each(count: int | None) -> float | None:
        return None if count is None else round(count / entries, 2)

    registers, threads = kernel.resources["REG"], case.threads or kernel.threads
    shared = kernel.resources["SHARED"] + case.dynamic * threads
    if kernel.resources["SHARED"] and generation >= 90:
        shared -= 1024  # the system's
    return {
        "case": case.name,
        "product": case.tensor,
        "arch": arch,
        "registers": registers,
        "stack": kernel.resources["STACK"] + kernel.resources["LOCAL"],
        "spills": sass.local(code),
        "shared": shared,
        "tensor": dict(sass.tensor(loop)),
        "instructions": len(loop),
        "per_entry": each(len(loop)),
        "fast": each(fewest(code, body, int(entries / 8))) if case.streams else None,
        "units": {unit: each(count) for unit, count in sass.units(loop).items()},
        "cycles": each(sass.cycles(loop, generation)),
        "drawn": None if drawn is None else round(drawn, 2),
        "accesses": dict(sass.widths(code)),
        "warps": sass.occupancy(generation, registers, shared, threads // 32),
    }


def table(path: Path, names: Iterable[str], archs: Iterable[str]) -> list[dict[str, Any]]:
    """The figures of every kernel whose name contains all words of one of the names, or of all kernels."""
    wanted = [set(name.split()) for name in names] or [set()]
    rows = [figures(kernel, arch) for arch in archs for kernel in kernels(path, arch)]
    found = [row for row in rows if any(words <= set(row["case"].split()) for words in wanted)]
    return sorted(found, key=lambda row: row["case"])


HEAD = (
    "case | sm | registers | stack, spills | shared | tensor cores | instructions per entry | fast path"
    " | ALU | IMAD | special | cycles | drawn | accesses | warps"
)


def line(row: dict[str, Any]) -> str:
    """A row as Markdown."""
    spills = f"{row['stack']} B, {row['spills']}" if row["stack"] or row["spills"] else "none"
    cells = [
        row["case"], row["arch"], row["registers"], spills, row["shared"], sass.in_words(row["tensor"]),
        row["per_entry"], row["fast"], *row["units"].values(), row["cycles"], row["drawn"],
        sass.in_words(row["accesses"]), row["warps"],
    ]  # fmt: skip
    return f"| {' | '.join('' if cell is None else str(cell) for cell in cells)} |"


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("case", nargs="*", help="words of the names of kernels; all kernels by default")
    parser.add_argument("--arch", nargs="+", choices=["80", "90", "90a", "100"], default=["80", "90"])
    parser.add_argument("--library", type=Path, default=library(), help="or an object file; thickets._C")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    options = parser.parse_args()
    if options.library is None:
        parser.error("thickets._C is not built")
    found = table(options.library, options.case, options.arch)
    print(f"{options.library}\n\n| {HEAD} |\n|{' --- |' * len(HEAD.split('|'))}")
    print("\n".join(map(line, found)))
    if options.json:
        options.json.write_text(json.dumps({"library": str(options.library), "rows": found}, indent=1) + "\n")
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
