"""The folder of a run on a language task: what it is of, its problems and what its members wrote about them.

`run.json` says what the run depends on, `run.sqlite` holds every score, `experts.json` the thicket,
`held_out.jsonl` the problems that judge it, `answers.jsonl` the texts of base, experts and a sample of
members about these, a line for each. Beside them lie report.json, report.md and the pictures.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thickets.randopt.evaluation import SeedAndSigma
    from thickets.tasks.problems import Problem

RUN, STORE, EXPERTS = "run.json", "run.sqlite", "experts.json"
HELD_OUT, ANSWERS = "held_out.jsonl", "answers.jsonl"
FORMAT = "thickets.language/1"


def is_language_run(folder: Path) -> bool:
    """Whether the folder is of a run on a language task."""
    return (folder / RUN).is_file()


def read_run(folder: Path) -> dict[str, Any]:
    """What the run of a folder depends on; ValueError if that is damaged or of another version."""
    file = folder / RUN
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(file)!r} is damaged: {error}") from None
    if not isinstance(run, dict) or run.get("format") != FORMAT:
        found = run.get("format") if isinstance(run, dict) else None
        raise ValueError(f"{str(file)!r} must have format {FORMAT!r}, got {found!r}")
    return run


def begin(folder: Path, run: dict[str, Any], problems: Sequence[Problem]) -> None:
    """Make a run's folder, or find that it is of the same run; ValueError saying what differs.

    A run that ended before its base was scored left nothing worth keeping: another one takes its folder.
    """
    run = json.loads(json.dumps({"format": FORMAT, **run}))
    if not is_language_run(folder) and (folder / STORE).exists():
        raise ValueError(f"folder {str(folder)!r} holds a run of another kind: choose another folder")
    if not is_language_run(folder) or _dropped_if_empty(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ANSWERS).unlink(missing_ok=True)  # of a run whose results file is gone
        lines = [json.dumps(_line(problem), ensure_ascii=False) + "\n" for problem in problems]
        (folder / HELD_OUT).write_text("".join(lines), encoding="utf-8")
        write(folder / RUN, json.dumps(run, indent=1) + "\n")
        return
    kept = read_run(folder)
    if kept["base"] != run["base"] and kept.get("dtype") == run["dtype"]:
        raise ValueError(other_base(kept, run["model"]))
    # Fingerprints and digests tell models and problems apart, wherever they lie; a dtype has its own.
    keys = (kept.keys() | run.keys()) - {"model", "task", "base"}
    different = [key for key in keys if kept.get(key) != run.get(key)]
    if different:
        what = "; ".join(f"{key}: {kept.get(key)!r} there, {run.get(key)!r} now" for key in sorted(different))
        raise ValueError(f"folder {str(folder)!r} holds another run, {what}: choose another folder")


def _dropped_if_empty(folder: Path) -> bool:
    """Whether a run has scored nothing; then its results file is gone."""
    from thickets.randopt.store import Store

    if (folder / STORE).exists():
        with Store(folder / STORE) as store:
            if store.base() is not None:
                return False
        (folder / STORE).unlink()
    return True


def other_base(run: dict[str, Any], model: str) -> str:
    """In words, that a model's weights are not those that a run searched around."""
    if run["model"] == model:
        return (
            f"model {model!r} has changed since the search: its weights are no longer those of fingerprint"
            f" {run['base']}, around which alone the members of the run are experts"
        )
    return f"model {model!r} is not the base of the run, which was {run['model']!r}: their weights differ"


def read_texts(folder: Path, problems: int) -> dict[int, list[str]]:
    """What members wrote about the held-out problems so far, by index; a line that was cut off is none."""
    file = folder / ANSWERS
    found = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            content = json.loads(line)
            if len(content["texts"]) == problems:
                found[int(content["index"])] = content["texts"]
        except (ValueError, KeyError, TypeError):
            continue
    return found


def add_texts(folder: Path, index: int, member: SeedAndSigma, texts: Sequence[str]) -> None:
    """Note what a member wrote about the held-out problems."""
    line = {"index": index, "seed": str(member.seed), "sigma": member.sigma, "texts": list(texts)}
    with (folder / ANSWERS).open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a line that was cut off ends here
                file.write(b"\n")
        file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")


def write(file: Path, text: str) -> None:
    """Write a file at once or not at all."""
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)


def _line(problem: Problem) -> dict[str, Any]:
    asked = {"prompt": problem.prompt} if problem.messages is None else {"messages": list(problem.messages)}
    return {**asked, "answer": problem.answer, "id": problem.id}
