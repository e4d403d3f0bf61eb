"""Run members in chunks: as many as memory and patience allow; a failing one takes no other with it."""

from __future__ import annotations

import math
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Item = TypeVar("Item")
Result = TypeVar("Result")

MEMORY_SHARE = 0.25  # of the memory that is free, for the activations of one chunk
START = 4  # members of the first chunk
PATIENCE = 5.0  # seconds that a chunk may take


@dataclass(frozen=True)
class Outcome(Generic[Item, Result]):
    """What came of one chunk: a result for its items or the exception of its only one, and the time."""

    items: list[Item]
    result: Result | None
    error: Exception | None
    seconds: float


class ChunkSize:
    """How many members run at once: fixed, or what runs fastest within a limit set by memory.

    It starts small and doubles as long as that makes a member at least 5 % cheaper and a chunk, the unit in
    which scores become durable, takes no more than PATIENCE: on a CPU a few members whose activations stay in
    the cache can run several times as fast as many. Results never depend on it.
    """

    def __init__(self, fixed: int | None, limit: int = 1) -> None:
        self.limit = max(1, limit if fixed is None else fixed)
        self.now = self.limit if fixed is not None else min(self.limit, START)
        self._settled = fixed is not None
        self._before = self._best = math.inf  # seconds of a member at half this size, and at this size
        self._timed = 0

    def adapt(self, count: int, seconds: float) -> None:
        """Note that `count` members took `seconds`."""
        if self._settled or count != self.now:
            return
        self._best = min(self._best, seconds / count)
        self._timed += 1
        if self._timed < 2:  # the first chunk of a size makes buffers
            return
        if self._best > 0.95 * self._before:
            self._settled = True
            self.now = self.now if self._best < self._before else self.now // 2
        elif 2 * self.now > self.limit or 2 * seconds > PATIENCE:
            self._settled = True
        else:
            self.now *= 2
            self._before, self._best, self._timed = self._best, math.inf, 0

    def shrink(self, count: int) -> None:
        """Note that `count` members did not fit in memory."""
        self.limit = max(1, min(self.limit, count // 2))
        self.now = min(self.now, self.limit)


def run_in_chunks(
    items: Iterable[Item], evaluate: Callable[[list[Item]], Result], size: ChunkSize
) -> Iterator[Outcome[Item, Result]]:
    """Evaluate items in order, chunk by chunk, and hand out each chunk's outcome as soon as it exists.

    A chunk that raises is split in halves, down to the item at fault, whose exception is its outcome; one
    that runs out of memory also lowers the size of those to come. MemoryError if not even one item fits.
    """
    waiting = iter(items)
    halves: list[list[Item]] = []
    while chunk := halves.pop() if halves else list(islice(waiting, size.now)):
        if len(chunk) > size.limit:  # a half that is known not to fit
            halves.append(chunk[size.limit :])
            chunk = chunk[: size.limit]
        started = time.perf_counter()
        result, error = _attempt(evaluate, chunk)
        seconds = time.perf_counter() - started
        if error is None:
            yield Outcome(chunk, result, None, seconds)
            # With what was done to the outcome: a commit of a small chunk can cost as much as its evaluation.
            size.adapt(len(chunk), time.perf_counter() - started)
        elif len(chunk) > 1:
            if out_of_memory(error):
                size.shrink(len(chunk))
            middle = len(chunk) // 2
            halves += [chunk[middle:], chunk[:middle]]
        elif out_of_memory(error):
            raise MemoryError(
                "one member alone does not fit in memory: use smaller batches of data"
            ) from error
        else:
            yield Outcome(chunk, None, error, seconds)


def _attempt(
    evaluate: Callable[[list[Item]], Result], chunk: list[Item]
) -> tuple[Result | None, Exception | None]:
    try:
        return evaluate(chunk), None
    except Exception as error:
        # The frames of the traceback would keep the failed chunk's tensors alive while its halves run.
        return None, error if len(chunk) == 1 else error.with_traceback(None)


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on any device (torch's CPU allocator says so in words only)."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def memory_limit(
    run_one: Callable[[], Any], memory: int | str, device: torch.device, besides: int = 0
) -> int:
    """How many members fit in `memory` bytes ("auto": a quarter of what is free), from a run of one.

    besides: bytes that a member takes and the run does not show.
    """
    budget = free_memory(device) * MEMORY_SHARE if memory == "auto" else int(memory)
    # Code compiled under the probe would be compiled again after it.
    compiler_loaded = "torch._dynamo" in sys.modules
    with torch.compiler.set_stance("force_eager") if compiler_loaded else nullcontext(), _Peak() as probe:
        run_one()
    return max(1, int(budget // max(1, probe.peak + besides)))


def free_memory(device: torch.device) -> int:
    """Bytes free on a device: what CUDA reports, or what the system and the control group leave.

    Files that the system keeps in memory until it is needed count as free.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        free = 2**10 * _entries(Path("/proc/meminfo"))["MemAvailable:"]
    except (OSError, ValueError, KeyError):  # not on this system
        return 2**30
    group = Path("/sys/fs/cgroup")
    try:
        used = int((group / "memory.current").read_text()) - _entries(group / "memory.stat")["inactive_file"]
        allowed = int((group / "memory.max").read_text()) - used
    except (OSError, ValueError, KeyError):  # no control group, or "max"
        return free
    return max(0, min(free, allowed))


def _entries(file: Path) -> dict[str, int]:
    """A system's file of names and numbers."""
    return {name: int(number) for name, number, *_ in map(str.split, file.read_text().splitlines())}


class _Peak(TorchDispatchMode):
    """Counts the bytes of the tensors made inside it: `peak` is the most that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live = 0
        self._known: dict[int, Any] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch's own guard against compiling this would import the compiler, two seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {storage._cdata for storage in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            key, size = storage._cdata, storage.nbytes()
            if key not in given and key not in self._known:
                self._known[key] = weakref.ref(storage, partial(self._drop, key, size))
                self._live += size
                self.peak = max(self.peak, self._live)
        return result

    def _drop(self, key: int, size: int, _: Any) -> None:
        self._known.pop(key, None)
        self._live -= size


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    return [tensor.untyped_storage() for tensor in tensors if tensor.layout == torch.strided]
