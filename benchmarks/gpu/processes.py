"""Where things lie, and running a command until a deadline."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "build" / "gpu"  # the package as built for this machine
WORK = ROOT / "build" / "gpu-work"  # logs, and what each phase hands back
BROKEN = 17  # exit status of a process whose GPU context died: started again, it goes on behind the culprit


def environment(threads: int) -> dict[str, str]:
    """The environment of a phase: the built package first, `threads` for CPU kernels."""
    path = os.pathsep.join(part for part in (str(SITE), os.environ.get("PYTHONPATH", "")) if part)
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}


def run_until(command: Sequence[str], log: Path, deadline: float, threads: int) -> int | None:
    """Run a command at the root with its output added to `log`; its exit status, or None if out of time.

    deadline: of time.monotonic(). What is stopped is stopped with everything that it started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as out:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(threads),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def crashed(status: int | None) -> bool:
    """Whether a process ended by a signal or because its GPU context died."""
    return status is not None and (status < 0 or status == BROKEN)


def tail(log: Path, characters: int = 400) -> str:
    """The end of a log."""
    return log.read_text(errors="replace")[-characters:] if log.exists() else ""
