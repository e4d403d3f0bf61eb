"""Calls that may hang or crash, in a process that can be killed: `Worker`, and what that process does.

The process runs this very file by its path, so that it loads neither thickets nor torch. Both sides speak
lines of JSON over a socket: nothing that comes back is unpickled or evaluated.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

START = 120.0  # seconds until the target must be imported


class WorkerError(RuntimeError):
    """A call that raised, or whose process ended."""


class WorkerTimeout(WorkerError):
    """A call that took too long; its process was killed."""


class Worker:
    """Functions of one target, called in another process, which starts at the first call and after a failure.

    target: "package.module", "package.module:object", or the same with the path of a .py file in place of the
    module; a class is called without arguments. limit: seconds that a call may take.   memory: bytes of
    address space of the process, where the system can limit it. Any thread may call; one call runs at a time.
    """

    def __init__(self, target: str, limit: float = 10.0, memory: int | None = None) -> None:
        self.target, self.limit, self.memory = target, limit, memory
        self._lock = threading.Lock()
        self._connection: tuple[socket.socket, TextIO] | None = None
        self._stop: Callable[[], object] = lambda: None

    def call(self, function: str, *arguments: Any) -> Any:
        """function(*arguments) of the target: JSON values, but a dict arrives as an object with its items
        as attributes, and an object comes back as a dict.

        WorkerTimeout, or WorkerError with the message of what was raised.
        """
        with self._lock:
            self._start()
            reply = self._exchange({"call": function, "arguments": arguments}, self.limit, f"{function}()")
        if "error" in reply:
            raise WorkerError(f"{function}() of {self.target!r} raised {reply['error']}")
        return reply["result"]

    def start(self) -> None:
        """Start the process now; ValueError if the target cannot be imported."""
        with self._lock:
            self._start()

    def _start(self) -> None:
        if self._connection is not None:
            return
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, __file__, self.target, str(self.limit), str(self.memory or 0)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), os.getcwd()])},
                start_new_session=True,  # Ctrl-C is for the search alone, and `_end` for all that it starts
            )
        lines = ours.makefile("rw", encoding="utf-8", newline="\n")
        self._connection = ours, lines
        self._stop = weakref.finalize(self, _end, process, ours, lines)
        reply = self._exchange({}, START, "import")
        if "error" in reply:
            self._end()
            raise ValueError(f"{self.target!r} cannot be imported: {reply['error']}")

    def _exchange(self, message: dict[str, Any], limit: float, what: str) -> dict[str, Any]:
        assert self._connection is not None
        ours, lines = self._connection
        ours.settimeout(limit)
        try:
            lines.write(json.dumps(message) + "\n")
            lines.flush()
            line = lines.readline()
        except TimeoutError:
            self._end()
            raise WorkerTimeout(f"{what} of {self.target!r} took more than {limit:g} s") from None
        except OSError:
            line = ""
        if not line:
            self._end()
            raise WorkerError(f"{what} of {self.target!r} ended its process")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _end(self) -> None:
        self._stop()
        self._connection = None


def _end(process: subprocess.Popen[bytes], ours: socket.socket, lines: TextIO) -> None:
    with suppress(OSError):  # with all that it started; not yet waited for, its group is still its own
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    with suppress(OSError):  # what was not sent is lost with its reader
        lines.close()
    ours.close()


def _load(target: str) -> Any:
    module, _, attribute = target.partition(":")
    if module.endswith(".py"):
        spec = importlib.util.spec_from_file_location(Path(module).stem, module)
        if spec is None or spec.loader is None:
            raise ImportError(f"no module at {module}")
        loaded: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
    else:
        loaded = importlib.import_module(module)
    for name in filter(None, attribute.split(".")):
        loaded = getattr(loaded, name)
    return loaded() if isinstance(loaded, type) else loaded


def _reply(action: Callable[[], Any]) -> str:
    try:
        return json.dumps({"result": action()}, default=vars)
    except Exception as error:
        return json.dumps({"error": f"{type(error).__name__}: {error}"})


def _call(target: Any, message: dict[str, Any]) -> Any:
    given = [SimpleNamespace(**a) if isinstance(a, dict) else a for a in message["arguments"]]
    return getattr(target, message["call"])(*given)


def _serve(target: str, limit: float, memory: int) -> None:
    """Answer calls until the parent goes away; if it does so during a call, the alarm ends this process."""
    if memory:
        with suppress(ImportError, OSError, ValueError):  # a system without this limit
            import resource

            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    ours = socket.socket(
        fileno=os.dup(0)
    )  # which neither the target nor what it starts can reach as its input
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    lines = ours.makefile("rw", encoding="utf-8", newline="\n")
    loaded: list[Any] = []
    for line in lines:
        message = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, 2 * (limit if loaded else START))
        if loaded:
            reply = _reply(partial(_call, loaded[0], message))
        else:
            reply = _reply(lambda: loaded.append(_load(target)))
        signal.setitimer(signal.ITIMER_REAL, 0)
        lines.write(reply + "\n")
        lines.flush()


if __name__ == "__main__":
    sys.path.pop(0)  # the folder of this file, whose names are not meant as modules
    _serve(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
