"""The results file of the benchmarks: complete after every case, and the memory of a process that crashed."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .cases import Case

INPUTS = "its inputs"  # what is tried before any contender
TIMING = "timing"  # what is tried once every contender has run


@dataclass
class Record:
    """The results file: one entry per case, and what was left out and why."""

    path: Path
    settings: dict[str, Any]
    results: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    crashed: dict[str, dict[str, str]] = field(default_factory=dict)  # case -> contender -> why
    tuned: dict[str, dict[str, str]] = field(default_factory=dict)  # kernel -> shape class -> configuration

    def __post_init__(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)

    @property
    def attempt(self) -> Path:
        """A note of what is being tried for the first time: it survives a crash."""
        return self.path.with_suffix(".attempt")

    def resume(self) -> None:
        """Take over what an earlier process with these settings left; what it did not survive has crashed."""
        old = json.loads(self.path.read_text()) if self.path.exists() else {}
        if old.get("settings") == self.settings:
            self.results, self.crashed, self.tuned = old["results"], old["crashed"], old["tuned"]
            if self.attempt.exists():
                case, name, why = json.loads(self.attempt.read_text())
                self.crashed.setdefault(case, {})[name] = why
        self.write()
        self.survived()

    def trying(self, case: Case, name: str, why: str = "the process ended") -> None:
        """Note a contender before its first call, so that a crash is attributed to it."""
        self.attempt.write_text(json.dumps([str(case), name, why]))

    def survived(self) -> None:
        self.attempt.unlink(missing_ok=True)

    def write(self) -> None:
        """Write the file whole, or leave the old one."""
        keys = ("settings", "results", "left_out", "crashed", "tuned")
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps({key: getattr(self, key) for key in keys}, indent=1) + "\n")
        new.replace(self.path)
