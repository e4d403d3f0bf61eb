"""Check and time the cases of a plan until a deadline; the results file is complete after every case.

    python -m benchmarks.gpu.measure --plan tiny --device cpu --backends cpu    # a look at it, anywhere
    python -m benchmarks.gpu.measure --plan everything --seconds 3600           # the full sweep, on a GPU

Started again with the same file it goes on: behind a contender that took the process or the GPU context down,
which it names as crashed.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from thickets.backends import REGISTRY, refusal
from thickets.noise import hadamard_order

from . import tables
from .cases import PLANS, Case, Linear
from .contenders import LIMITS, Contender, contenders
from .processes import BROKEN
from .record import INPUTS, TIMING, Record
from .timing import measure

PATIENCE = 5.0  # seconds that a case takes at most, typically; less left, and it is left out
SETTINGS = ("plan", "device", "backends", "dtype")


def run(
    record: Record,
    plan: Iterable[Case],
    backends: Iterable[str],
    device: torch.device,
    dtype: torch.dtype,
    seconds: float,
    deadline: float,
    now: Callable[[], float] = time.monotonic,
) -> None:
    """Measure every case of the plan that the record lacks, about `seconds` each, until the deadline."""
    backends, done = list(backends), {entry["name"] for entry in record.results}
    record.left_out = {}
    for case in plan:
        if str(case) in done:
            continue
        if now() + PATIENCE > deadline:
            record.left_out[str(case)] = "no time left"
        elif not fits(case, device, dtype):
            record.left_out[str(case)] = "does not fit into memory"
        else:
            record.results.append(one_case(record, case, backends, device, dtype, seconds))
            record.tuned |= tuned()
            give_back(device)
        record.write()


def give_back(device: torch.device) -> None:
    """Hand the memory of the last case back, that of its graphs too."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def tuned() -> dict[str, dict[str, str]]:
    """What autotuning chose in this process, by kernel and shape class."""
    found = {}
    for name, module in list(sys.modules.items()):
        if name.startswith("thickets.triton_kernels"):
            for value in vars(module).values():
                cache = getattr(getattr(value, "tuner", None), "cache", {})
                found |= {value.kernel.__name__: {str(k): str(v) for k, v in cache.items()}} if cache else {}
    return found


def fits(case: Case, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the inputs and the hungriest contender fit into the free memory; on a CPU, into 4 GB."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 4 << 30
    return case.memory(dtype.itemsize) < 0.8 * free


def one_case(
    record: Record,
    case: Case,
    backends: Iterable[str],
    device: torch.device,
    dtype: torch.dtype,
    seconds: float,
) -> dict[str, Any]:
    """Check each contender, note its peak memory, time all that are right side by side."""
    begin, failed = time.monotonic(), dict(record.crashed.get(str(case), {}))
    calls: dict[str, Contender] = {}
    facts: dict[str, dict[str, Any]] = {}
    built: dict[str, Contender] = {}
    if not {INPUTS, TIMING} & set(failed):
        record.trying(case, INPUTS)
        try:
            built = contenders(case, backends, device, dtype)
        except RuntimeError as error:
            failed[INPUTS] = _why(record, case, INPUTS, error, device)
    for name, contender in built.items():
        if name in failed:
            continue
        record.trying(case, name)
        try:
            facts[name] = _first_calls(contender, device, _limit(case, dtype))
            calls[name] = contender
        except Exception as error:  # one kernel that does not compile or is wrong must not cost the others
            failed[name] = _why(record, case, name, error, device)
    record.trying(case, TIMING)
    timings = {}
    try:
        timings = measure({name: contender.run for name, contender in calls.items()}, device, seconds)
    except RuntimeError as error:
        failed[TIMING] = _why(record, case, TIMING, error, device)
    record.survived()
    for name, timing in timings.items():
        contender = calls[name]
        facts[name] |= {
            "us": timing.median / contender.members * 1e6,
            "low": timing.low / contender.members * 1e6,
            "high": timing.high / contender.members * 1e6,
            "members": contender.members,
            "launch_us": None if timing.launch is None else timing.launch * 1e6,
            "timed": timing.how,
            "GB_per_s": contender.bytes / timing.median / 1e9,
            "TFLOP_per_s": contender.flops / timing.median / 1e12,
        }
    return {
        "name": str(case),
        "case": case.as_dict(),
        "seconds": round(time.monotonic() - begin, 2),
        "contenders": facts,
        "failed": failed,
    }


def _why(record: Record, case: Case, name: str, error: Exception, device: torch.device) -> str:
    """What went wrong, in a line; ends the process if the GPU context died of it, leaving a note."""
    why = f"{type(error).__name__}: {error}"[:2000]
    if _broken(device):
        record.trying(case, name, why)
        sys.exit(BROKEN)
    return why


def _limit(case: Case, dtype: torch.dtype) -> float:
    return LIMITS[dtype if isinstance(case, Linear) else getattr(torch, case.dtype)]


def _first_calls(contender: Contender, device: torch.device, limit: float) -> dict[str, Any]:
    """Compile, tune and check by one call, and take the peak memory of another: {error, peak_MB}."""
    error = None
    if contender.error is not None:
        error = contender.error()
        if not error < limit:
            raise ValueError(f"error {error:.1e} against float64, expected below {limit:.0e}; not timed")
    else:
        contender.run()
    return {"error": error, "peak_MB": _peak(contender.run, device)}


def _peak(call: Callable[[], object], device: torch.device) -> float | None:
    """MB that a call takes beyond its inputs, its result included."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 1e6, 2)


def _broken(device: torch.device) -> bool:
    """Whether the GPU context died with an error: every later call of this process would fail."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def compile_kernels(
    plan: Iterable[Case],
    backends: Iterable[str],
    device: torch.device,
    dtype: torch.dtype,
    part: int,
    parts: int,
) -> None:
    """Call the kernels of every `parts`-th variant once: Triton keeps what it compiles on disk for others."""
    seen: set[tuple[object, ...]] = set()
    for case in plan:
        small = replace(case, members=min(case.members, 2))
        built: dict[str, Contender] = {}
        for name in _ours(backends, small):
            variant, number = _variant(name, small), len(seen)
            if variant in seen:
                continue
            seen.add(variant)
            if number % parts != part:
                continue
            built = built or contenders(small, backends, device, dtype)
            try:
                built[name].run()
            except Exception as error:  # it is measured, and named, later
                print(f"{name} of {small}: {error}", flush=True)
                if _broken(device):
                    sys.exit(BROKEN)
        del built
        give_back(device)


def _variant(name: str, case: Case) -> tuple[object, ...]:
    """What the kernels of a contender are compiled for."""
    order = hadamard_order(case.layer.inputs) if "hadamard" in name else 0
    if isinstance(case, Linear):
        return name, order, 0 if name.endswith("scratch") else case.rows
    return name, order, case.op, case.members, case.dtype


def _ours(backends: Iterable[str], case: Case) -> list[str]:
    """Names of the contenders that run kernels of ours, without building their inputs."""
    tiny = replace(case, layer=replace(case.layer, outputs=1, inputs=1), members=1)
    names = contenders(tiny, backends, torch.device("cpu"))
    return [name for name, contender in names.items() if contender.error is not None]


def usable(device: torch.device) -> list[str]:
    """Backends that can run there; the reference, which promises values and not speed, only if alone."""
    names = [name for name, backend in REGISTRY.items() if refusal(backend, device) is None]
    return [name for name in names if name != "reference"] or names


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plan", choices=PLANS, default="chosen")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--backends", nargs="+", help="registered names; all that can run there unless given")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--seconds", type=float, default=300, help="for everything")
    parser.add_argument("--each", type=float, default=0.8, help="seconds of timing for a case")
    parser.add_argument("--to", type=Path, default=Path("build/gpu-work/measured.json"))
    parser.add_argument(
        "--compile", metavar="I/N", help="compile part I of N of the kernels; measure nothing"
    )
    asked = parser.parse_args(arguments)
    deadline, plan = time.monotonic() + asked.seconds, PLANS[asked.plan]()
    asked.backends = asked.backends or usable(asked.device)
    dtype = getattr(torch, asked.dtype)
    with torch.no_grad():
        if asked.compile:
            part, parts = map(int, asked.compile.split("/"))
            compiling = [name for name in asked.backends if name != "cuda"]  # whose kernels nvcc compiled
            compile_kernels(plan, compiling, asked.device, dtype, part, parts)
            return
        settings = {name: getattr(asked, name) for name in SETTINGS} | {"device": str(asked.device)}
        record = Record(asked.to, settings)
        record.resume()
        run(record, plan, asked.backends, asked.device, dtype, asked.each, deadline)
    print(tables.measurements(json.loads(asked.to.read_text())))


if __name__ == "__main__":
    main()
