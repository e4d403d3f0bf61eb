"""Whole experiments into a folder: every case's own (see `run`), pictures, report.json and report.md."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from thickets import info
from thickets.tasks import figures, tables
from thickets.tasks.case import one_thread
from thickets.tasks.families import Comparison, compare
from thickets.tasks.run import Outcome, open_case, run_case, write_json


@dataclass(frozen=True)
class Settings:
    """What all experiments share.

    sigma, top_k: the case's own by default.   families: the noise families to compare, on the first case
    alone, with `runs` runs of `family_n` members each (default n).   store: a folder for the results files,
    by default each case's own.   options: of the tasks' `case`, such as the number of examples.
    """

    n: int = 1000
    sigma: Sequence[float] | None = None
    top_k: int | float | None = None
    noise: str = "normal"
    seed: int = 0
    families: Sequence[str] = ()
    runs: int = 1
    family_n: int | None = None
    correlate: int = 100
    store: Path | None = None
    backend: str = "auto"
    progress: bool = True
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """One task's cases after their searches, and the comparison of families if one was asked for."""

    task: str
    folder: Path
    outcomes: list[Outcome]
    comparison: Comparison | None
    seconds: float


def _require(*packages: str) -> None:
    """RuntimeError before anything is computed, rather than when it is to be drawn."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise RuntimeError(f"experiments need {', '.join(missing)}: pip install 'thickets[tasks]'")


def run_experiment(
    task: str,
    cases: Sequence[str],
    out: Path,
    settings: Settings,
    say: Callable[[str], None] = lambda _: None,
) -> Experiment:
    """Run cases of one task ("signals": regimes, "digits": shifts) into `out`; `say` hears of each step."""
    _require("matplotlib")
    started = time.perf_counter()
    if settings.store is not None:
        settings.store.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for name in cases:
        say(f"{task}: {name}")
        case = open_case(task, name, out / name, seed=settings.seed, **settings.options)
        outcomes.append(
            run_case(
                case,
                out / name,
                n=settings.n,
                sigma=settings.sigma,
                top_k=settings.top_k,
                noise=settings.noise,
                store=None if settings.store is None else settings.store / f"{task}-{name}.sqlite",
                correlate=settings.correlate,
                progress=settings.progress,
                backend=settings.backend,
            )
        )
    draw = {"signals": figures.signals, "digits": figures.digits}[task]
    draw(outcomes, out / f"{task}.png")
    compared = None
    if settings.families:
        say(f"{task}: noise families, {settings.runs} x {settings.family_n or settings.n} members each")
        compared = compare(
            outcomes[0].case,
            n=settings.family_n or settings.n,
            runs=settings.runs,
            families=settings.families,
            seed=1000 * (settings.seed + 1),  # another seed's comparison shares no member either
            sigma=settings.sigma,
            top_k=settings.top_k,
            progress=settings.progress,
            backend=settings.backend,
        )
        figures.families([compared], out / "families.png")
    return Experiment(task, out, outcomes, compared, time.perf_counter() - started)


def run_demo(out: Path, settings: Settings, say: Callable[[str], None] = lambda _: None) -> list[Experiment]:
    """Both experiments, small: all regimes of signals, a shift of digits that helps and one that does not."""
    _require("matplotlib", "sklearn")
    signals = replace(settings, options={"examples": 128})
    with one_thread():
        return [
            run_experiment("signals", ("thicket", "plateau", "haystack"), out / "signals", signals, say),
            run_experiment("digits", ("rotation", "noise"), out / "digits", settings, say),
        ]


def report_tables(experiments: Sequence[Experiment]) -> list[tables.Table]:
    """The results of all cases in one table, then a table for each comparison of noise families."""
    outcomes = [outcome for experiment in experiments for outcome in experiment.outcomes]
    compared = [experiment.comparison for experiment in experiments if experiment.comparison is not None]
    return [tables.results(outcomes), *(tables.comparison(comparison) for comparison in compared)]


def write_report(out: Path, experiments: Sequence[Experiment]) -> dict[str, Any]:
    """Write report.json and report.md into `out`, and return what the former says."""
    report = {
        "machine": info.report(),
        "seconds": round(sum(experiment.seconds for experiment in experiments), 1),
        "cases": [outcome.as_dict() for experiment in experiments for outcome in experiment.outcomes],
        "families": [e.comparison.as_dict() for e in experiments if e.comparison is not None],
    }
    write_json(report, out / "report.json")
    pictures = [
        f"![{picture.stem}]({picture.relative_to(out).as_posix()})"
        for experiment in experiments
        for picture in sorted(experiment.folder.glob("*.png"))
    ]
    heading = f"# RandOpt: {' and '.join(experiment.task for experiment in experiments)}"
    parts = [
        heading,
        f"```\n{info.header()}\n```",
        *(t.markdown() for t in report_tables(experiments)),
        *pictures,
    ]
    (out / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return report
