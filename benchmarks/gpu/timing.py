"""Time contenders side by side: the same inputs, alternating order, medians with 20 and 80 % quantiles.

On a GPU each call is captured in a CUDA graph and its replays are timed by events, so that small kernels are
not hidden by the time Python takes to launch them (which is reported beside them). Before every replay a
buffer of four times the L2 cache is read: inputs come from memory, as a layer's do in a model, and the launch
is queued while that read still runs.
"""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Call = Callable[[], object]
LEAST, MOST = 7, 60  # rounds: every contender once per round


@dataclass(frozen=True)
class Timing:
    """Seconds of a call: median, 20 % and 80 % quantile; how it ran; seconds to launch it, if measured."""

    median: float
    low: float
    high: float
    how: str  # "graph", "eager" or "host"
    launch: float | None = None


def quantiles(seconds: list[float]) -> tuple[float, float, float]:
    """Median, 20 % and 80 % quantile."""
    ordered = sorted(seconds)
    return tuple(ordered[int(share * (len(ordered) - 1) + 0.5)] for share in (0.5, 0.2, 0.8))


def measure(calls: Mapping[str, Call], device: torch.device, seconds: float) -> dict[str, Timing]:
    """Time all calls, each already run once, for about `seconds` but at least LEAST rounds."""
    clock = _Events(device) if device.type == "cuda" else _Host()
    prepared = {name: clock.prepare(call) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for run, _ in prepared.values():
        run()
    order, begin, rounds = list(calls), time.perf_counter(), 0
    while rounds < LEAST or (rounds < MOST and time.perf_counter() - begin < seconds):
        pending = [(name, clock.start(prepared[name][0])) for name in order]
        for name, finish in pending:
            samples[name].append(finish())
        order.reverse()
        rounds += 1
    timings = {}
    for name, (_, how) in prepared.items():
        middle, low, high = quantiles(samples[name])
        launch = _launch(calls[name]) if device.type == "cuda" and middle < 1e-3 else None
        timings[name] = Timing(middle, low, high, how, launch)
    return timings


class _Host:
    """Wall-clock time, for a CPU."""

    def prepare(self, call: Call) -> tuple[Call, str]:
        return call, "host"

    def start(self, run: Call) -> Callable[[], float]:
        begin = time.perf_counter()
        run()
        seconds = time.perf_counter() - begin
        return lambda: seconds


class _Events:
    """CUDA events around a graph's replay, behind a read that empties the L2 cache."""

    def __init__(self, device: torch.device) -> None:
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        self.flushed = torch.ones(max(4 * cache, 1 << 26) // 4, dtype=torch.int32, device=device)
        self.pool = (
            torch.cuda.graph_pool_handle()
        )  # one for all: only one graph runs at a time, no result is kept

    def prepare(self, call: Call) -> tuple[Call, str]:
        graph = torch.cuda.CUDAGraph()
        gc.disable()  # what it finalises during the capture would become part of the graph, or break it
        try:
            with torch.cuda.graph(graph, pool=self.pool):
                call()
        except RuntimeError:  # it waits for the GPU somewhere, or allocates what a graph cannot
            torch.cuda.synchronize()
            return call, "eager"
        finally:
            gc.enable()
        return graph.replay, "graph"

    def start(self, run: Call) -> Callable[[], float]:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flushed.sum()
        begin.record()
        run()
        end.record()

        def finish() -> float:
            end.synchronize()
            return begin.elapsed_time(end) / 1e3

        return finish


def _launch(call: Call, calls: int = 10) -> float:
    """Seconds that the host takes to launch a call, results not awaited."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    seconds = time.perf_counter() - begin
    torch.cuda.synchronize()
    return seconds / calls
