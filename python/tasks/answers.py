"""What a finished run can still do in a fresh process: answer new inputs, and tell its solution density."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from thickets.randopt.store import Store
from thickets.statistics import Interval, score_interval, solution_density
from thickets.tasks.case import in_metric, plain
from thickets.tasks.inputs import read_inputs
from thickets.tasks.run import STORE, find_run, load_run
from thickets.tasks.tables import Table


def answer(run: Path, file: Path, how: str | None = None, backend: str = "auto") -> dict[str, Any]:
    """The experts' votes on a file's inputs, as JSON values, and their metric if it holds targets."""
    folder = find_run(run)
    task, model, thicket = load_run(folder)
    inputs, targets = read_inputs(file)
    votes = thicket.vote(model, task.as_inputs(inputs), how or task.HOW, backend=backend)
    measured = None
    if targets is not None:
        try:
            scores = task.score(votes.prediction, targets)[0]
        except RuntimeError as error:
            raise ValueError(f"targets must fit the answers: {error}") from None
        measured = {"metric": task.METRIC, **plain(in_metric(score_interval(scores), task.METRIC))}
    return {
        "run": str(folder),
        "how": how or task.HOW,
        "experts": len(thicket.members),
        "answers": votes.answers.tolist(),
        "confidence": None if votes.confidence is None else votes.confidence.tolist(),
        "spread": None if votes.spread is None else votes.spread.tolist(),
        "measured": measured,
    }


def answers_table(answers: dict[str, Any], limit: int) -> Table:
    """The first answers, one line for each example."""
    heads = ("example", "answer") if answers["confidence"] is None else ("example", "answer", "confidence")
    rows = []
    for i, given in enumerate(answers["answers"][:limit]):
        text = " ".join(f"{value:.3g}" for value in given) if isinstance(given, list) else str(given)
        confidence = () if answers["confidence"] is None else (f"{answers['confidence'][i]:.2f}",)
        rows.append((str(i), text, *confidence))
    note = f"{len(rows)} of {len(answers['answers'])} examples shown."
    if answers["measured"] is not None:
        measured = answers["measured"]
        note += (
            f" {measured['metric']} {measured['value']:.3f} [{measured['low']:.3f}, {measured['high']:.3f}]."
        )
    title = f"{answers['experts']} experts of {answers['run']}, {answers['how']}"
    return Table(title, heads, rows, note)


def density_of(run: Path) -> dict[str, Any]:
    """Solution density per sigma of a run's folder, or of a results file, as JSON values."""
    file = next((f for f in (run, run / STORE) if f.is_file()), None) or find_run(run) / STORE
    with Store(file) as store:
        base, records = store.base(), [r for r in store.records(0, 2**63 - 1) if r.score is not None]
    if base is None or base.score is None:
        raise ValueError(f"store {str(file)!r} has no score of the base yet")
    found = solution_density([r.value for r in records], [r.sigma for r in records], base.score)
    return {
        "store": str(file),
        "base": base.score,
        "scored": len(records),
        "best": max((record.value for record in records), default=None),
        "density": [{"sigma": d.sigma, "above": d.above, "n": d.n, **plain(d.share)} for d in found],
    }


def density_table(found: dict[str, Any]) -> Table:
    """A line per sigma."""
    rows = [
        (f"{d['sigma']:g}", f"{d['above']} of {d['n']}", str(Interval(d["value"], d["low"], d["high"])))
        for d in found["density"]
    ]
    note = f"Score of the base {found['base']:.4g}, best of {found['scored']} members {found['best']}."
    return Table(f"Solution density of {found['store']}", ("sigma", "better than base", "share"), rows, note)
