"""Read what ptxas made of a kernel: instructions by loop, registers, spills, widths of accesses, occupancy.

Loops are the natural loops of the control-flow graph (a backward branch alone may be a slow path that was
moved out of line). Counts are static: both sides of a branch inside a loop count.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

# Per multiprocessor: KiB of shared memory, and bytes of it that one program may have.
SHARED = {80: (164, 163 << 10), 90: (228, 227 << 10), 100: (228, 227 << 10)}
WARPS, PROGRAMS, REGISTERS = 64, 32, 65536  # the same on all of them

# Units of a quarter of a multiprocessor by what they execute, and the cycles that they need for a warp. One
# instruction is issued per cycle. sm_80 converts integers on the special-function unit, sm_90 (I2FP) on the
# other.
UNITS = {
    "alu": (2, {
        "F2FP", "FMNMX", "FSEL", "FSETP", "I2FP", "IABS", "IADD3", "IMNMX", "ISETP", "LEA", "LOP3", "PLOP3",
        "PRMT", "SEL", "SHF", "VIADD", "VIADDMNMX", "VIMNMX",
    }),
    "imad": (2, {"IMAD"}),
    "special": (8, {"BREV", "F2F", "F2I", "FLO", "I2F", "MUFU", "POPC"}),
}  # fmt: skip
HMMA = {80: 8, 90: 4, 100: 4}  # least cycles of a 16 x 8 x 16 product of 16-bit factors

# Philox's multipliers, as SASS and PTX write them: a high product by one of them occurs twice in a round.
MULTIPLIERS = re.compile(
    r"0xd2511f53|-0x2daee0ad|-766435501|3528531795|0xcd9e8d57|-0x326172a9|-845247145|3449720151"
)
HIGH_SASS = re.compile(r"U?IMAD\.(?:HI|WIDE)\.U32")
HIGH_PTX = re.compile(r"mul\.(?:hi|wide)\.u32")
TENSOR = re.compile(r"H(?:G)?MMA\b")
TENSOR_PTX = re.compile(r"(?:wgmma\.mma_async|mma\.sync)\.\S*m\d+n\d+k\d+")


class Instruction(NamedTuple):
    """One line of SASS: opcode with its suffixes, operands, and whether a predicate guards it."""

    opcode: str
    operands: str
    guarded: bool


class Code(NamedTuple):
    """A kernel's instructions in order, and the instruction index that each label stands for."""

    instructions: list[Instruction]
    labels: dict[str, int]


def tool(name: str, *arguments: str, folder: Path | None = None) -> str:
    """The output of a program of the CUDA toolkit inside the triton package, run in a folder."""
    command = [str(TOOLS / name), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def disassembled(cubin: bytes) -> tuple[str, str]:
    """The SASS of a cubin, and its resource usage in words."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return tool("nvdisasm", "-c", "-ndf", file.name), tool(
            "cuobjdump", "--dump-resource-usage", file.name
        )


def parsed(sass: str) -> Code:
    """Instructions and labels of nvdisasm's text."""
    instructions, labels = [], {}
    for line in sass.splitlines():
        if label := re.match(r"\s*(\.L\S+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);", line):
            guarded = found[1] is not None and "PT" not in found[1]
            instructions.append(Instruction(found[2], found[3].strip(), guarded))
    return Code(instructions, labels)


def successors(code: Code) -> list[list[int]]:
    """The instructions that may follow each one; a call falls through."""
    following = []
    for i, (opcode, operands, guarded) in enumerate(code.instructions):
        base, next_one = opcode.partition(".")[0], [i + 1] if i + 1 < len(code.instructions) else []
        if base == "BRA":
            target = re.search(r"\.L\w+", operands)
            conditional = guarded or "," in operands
            jump = [code.labels[target[0]]] if target and target[0] in code.labels else []
            following.append(jump + (next_one if conditional else []))
        elif base in ("EXIT", "RET", "BRX", "JMX") and not guarded:
            following.append([])
        else:
            following.append(next_one)
    return following


def loops(code: Code, inner: bool = True) -> list[set[int]]:
    """The natural loops as sets of instruction indices: innermost ones only, or all without those in them."""
    following = successors(code)
    leaders = {0, *code.labels.values()}
    for i, targets in enumerate(following):
        if targets != [i + 1]:
            leaders |= {*targets, i + 1}
    starts = sorted(i for i in leaders if i < len(code.instructions))
    block_of = {start: block for block, start in enumerate(starts)}
    ends = [*starts[1:], len(code.instructions)]
    graph = [[block_of[i] for i in following[end - 1]] for end in ends]
    dominators = dominance(graph)
    bodies: dict[int, set[int]] = {}
    before: list[list[int]] = [[] for _ in graph]
    for block in dominators:
        for target in graph[block]:
            before[target].append(block)
    for block in dominators:
        for header in graph[block]:
            if header in dominators[block]:
                body, pending = bodies.setdefault(header, {header}), [block]
                while pending:
                    if (one := pending.pop()) not in body:
                        body.add(one)
                        pending += before[one]
    found = []
    for header, body in bodies.items():
        within = [bodies[h] for h in bodies if h != header and h in body]
        if not (inner and within):
            found.append({i for block in body.difference(*within) for i in range(starts[block], ends[block])})
    return found


def dominance(graph: list[list[int]]) -> dict[int, set[int]]:
    """The dominators of every block that block 0 reaches."""
    reached, pending = {0}, [0]
    while pending:
        new = set(graph[pending.pop()]) - reached
        reached |= new
        pending += new
    before: dict[int, list[int]] = {block: [] for block in reached}
    for block in reached:
        for target in graph[block]:
            before[target].append(block)
    dominators = {block: set(reached) for block in reached} | {0: {0}}
    changed = True
    while changed:
        changed = False
        for block in sorted(reached - {0}):
            new = set.intersection(*(dominators[one] for one in before[block])) | {block}
            changed |= new != dominators[block]
            dominators[block] = new
    return dominators


def tensor(instructions: Iterable[Instruction]) -> Counter[str]:
    """Tensor-core instructions by name."""
    return Counter(one.opcode for one in instructions if TENSOR.match(one.opcode))


def units(instructions: Iterable[Instruction]) -> dict[str, int]:
    """Instructions by the unit of UNITS that executes them."""
    bases = Counter(one.opcode.partition(".")[0] for one in instructions)
    return {unit: sum(bases[name] for name in names) for unit, (_, names) in UNITS.items()}


def cycles(instructions: Iterable[Instruction], arch: int) -> int:
    """Cycles that the busiest unit of a quarter of a multiprocessor needs for them, a warp at a time."""
    instructions = list(instructions)
    products = HMMA[arch] * sum(one.opcode.startswith("HMMA.16816") for one in instructions)
    return max(len(instructions), products, *(UNITS[unit][0] * n for unit, n in units(instructions).items()))


def serialised(instructions: Iterable[Instruction]) -> bool:
    """Whether each of several HGMMA is waited for before the next (ptxas calls it C7515)."""
    instructions = list(instructions)
    products = sum(one.opcode.startswith("HGMMA") for one in instructions)
    drained = sum(
        one.opcode.startswith("WARPGROUP.DEPBAR") and one.operands.endswith("0x0") for one in instructions
    )
    return 1 < products <= drained


def draws(instructions: Iterable[Instruction]) -> int:
    """High products by Philox's multipliers: twenty for a call, fewer where a first round is hoisted."""
    return sum(bool(HIGH_SASS.match(one.opcode) and MULTIPLIERS.search(one.operands)) for one in instructions)


def draws_ptx(ptx: str) -> int:
    """The same in PTX, whose products take a multiplier as a number or from a register that was set to it."""
    held = re.findall(rf"mov\.[bu]32\s+(%r\d+), (?:{MULTIPLIERS.pattern});", ptx)
    factor = re.compile("|".join([MULTIPLIERS.pattern, *(rf"{register}\b" for register in held)]))
    return sum(bool(HIGH_PTX.search(line) and factor.search(line)) for line in ptx.splitlines())


def local(code: Code) -> int:
    """Accesses to local memory: spilled registers and arrays that found no register."""
    return sum(one.opcode.partition(".")[0] in ("LDL", "STL") for one in code.instructions)


def widths(code: Code) -> Counter[str]:
    """Global accesses as (opcode, bits) -> how often, in words such as `LDG 128`."""
    counts: Counter[str] = Counter()
    for opcode, _, _ in code.instructions:
        base, *suffixes = opcode.split(".")
        if base in ("LD", "ST", "LDG", "STG", "LDGSTS", "RED", "ATOMG"):
            bits = [s.lstrip("US") for s in suffixes if re.fullmatch(r"[US]?(?:8|16|64|128)", s)]
            counts[f"{base} {bits[0] if bits else 32}"] += 1
    return counts


def occupancy(arch: int, registers: int, shared: int, warps: int) -> int:
    """Warps that a multiprocessor holds at a time; 0 where one program does not fit."""
    memory, limit = SHARED[arch]
    if shared > limit:
        return 0
    each = -(-registers * 32 // 256) * 256  # registers of a warp, in units of 256
    by_registers = 4 * (REGISTERS // 4 // each) // warps  # four partitions
    by_shared = (memory << 10) // (-(-(shared + 1024) // 128) * 128)  # 1 KiB of every program is the system's
    return min(by_registers, by_shared, WARPS // warps, PROGRAMS) * warps


def resources(usage: str) -> dict[str, int]:
    """REG, STACK and the like of cuobjdump's text."""
    line = next(line for line in usage.splitlines() if "REG:" in line)
    return {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", line)}


def in_words(counts: dict[str, int]) -> str:
    """Counts as `2 this, 1 that`, or none."""
    return ", ".join(f"{n} {name}" for name, n in counts.items()) or "none"


class Loop(NamedTuple):
    """A main loop: its instructions, the source's steps in one pass, and what is doubtful about that."""

    instructions: list[Instruction]
    steps: int
    warning: str


def main_loop(code: Code, ptx: str) -> Loop:
    """The innermost loop with most tensor-core work, or else most noise; the whole kernel where none has any.

    ptxas may unroll it: the steps are tensor-core instructions (or noise's products) by those of PTX, which
    has the loop's body once.
    """
    bodies = [[code.instructions[i] for i in sorted(body)] for body in loops(code)]
    work = [(sum(tensor(body).values()), draws(body), len(body)) for body in bodies]
    once = (len(TENSOR_PTX.findall(ptx)), draws_ptx(ptx))
    kind = next((i for i in (0, 1) if any(entry[i] for entry in work)), None)
    if kind is None:
        warning = "no main loop: the whole kernel" if not bodies else "loops without noise: the whole kernel"
        return Loop(reachable(code), 1, warning)
    best = max(range(len(bodies)), key=lambda i: (work[i][kind], work[i]))
    if once[kind] == 0:
        return Loop(bodies[best], 1, "steps unknown: PTX shows no such work")
    ratio = work[best][kind] / once[kind]
    steps = max(round(ratio), 1)
    doubtful = abs(ratio - steps) > 0.3
    return Loop(bodies[best], steps, f"unrolled {ratio:.2f} times?" if doubtful else "")


def reachable(code: Code) -> list[Instruction]:
    """The instructions that the kernel's entry reaches."""
    following, seen, pending = successors(code), {0}, [0]
    while pending:
        new = set(following[pending.pop()]) - seen
        seen |= new
        pending += new
    return [code.instructions[i] for i in sorted(seen)]
