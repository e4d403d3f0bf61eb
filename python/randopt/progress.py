"""A progress bar with rate and best score, drawn by rich on a terminal; nothing is printed elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from .store import Record


class Progress:
    """Context manager that shows how many members are done; silent unless `show` and on a terminal.

    show: a function gives a text that stands behind the rate.
    """

    def __init__(self, total: int, done: int, best: float | None, show: bool | Callable[[], str]) -> None:
        self._bar: Any = None
        self._more = show if callable(show) else lambda: ""
        self._first = self._done = done
        self._best = best
        self._failed = 0
        if show:
            try:
                from rich.console import Console
            except ImportError:
                return
            console = Console(stderr=True)
            if console.is_terminal:
                self._bar = _bar(console)
                self._task = self._bar.add_task("search", total=total, completed=done, rate="", best="")

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def add(self, records: Sequence[Record]) -> None:
        """Count members that were just scored, or failed."""
        if self._bar is None:
            return
        scores = [record.score for record in records if record.score is not None]
        self._best = max([*scores, *([] if self._best is None else [self._best])], default=None)
        self._failed += len(records) - len(scores)
        self._done += len(records)
        seconds = self._bar.tasks[self._task].elapsed or 0.0
        rate = f"{(self._done - self._first) / seconds:.1f}/s {self._more()}".strip() if seconds > 0 else ""
        best = [] if self._best is None else [f"best {self._best:.4g}"]
        failed = [f"{self._failed} failed"] if self._failed else []
        self._bar.update(self._task, completed=self._done, rate=rate, best=", ".join(best + failed))


def _bar(console: Any) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[best]}"),
        console=console,
    )
