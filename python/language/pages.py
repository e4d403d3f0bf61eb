"""The report of a run on a language task for a reader: report.md with tables and pictures, report.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thickets import info
from thickets.language import figures
from thickets.language.folder import write
from thickets.language.report import Findings
from thickets.tasks.tables import Table

SHOWN = 3  # examples of each kind
ROWS = {
    "base": "base",
    "top_1": "best member",
    "mean_top_k": "mean of the best K",
    "vote": "vote of the best K",
}
COLUMNS = {
    "forgiving": "accuracy, any format",
    "strict": "accuracy, asked format",
    "in_format": "in the asked format",
    "answered": "with any answer",
}


def write_report(out: Path, found: Findings, report: dict[str, Any]) -> None:
    """Draw the pictures and write report.md and report.json into a run's folder."""
    pictures = [figures.scores, figures.votes, figures.transfer]
    drawn = [draw([found], out / f"{draw.__name__}.png") for draw in pictures]
    run = report["run"]
    parts = [
        f"# RandOpt: {run['task']} with {run['model']}",
        f"```\n{info.header()}\n```",
        *(table.markdown() for table in tables(report)),
        summary(report),
        *(f"![{picture.stem}]({picture.name})" for picture in drawn),
        examples(found),
    ]
    write(out / "report.md", "\n\n".join(part.strip() for part in parts if part) + "\n")
    write(out / "report.json", json.dumps(report, indent=1, allow_nan=False) + "\n")


def tables(report: dict[str, Any]) -> list[Table]:
    """Base, best member, mean and vote; solution density; what the base answered and the vote made of it."""
    run = report["run"]
    columns = sorted(COLUMNS, key=lambda column: column != report["rule"])
    standing = Table(
        f"Accuracy on {report['held_out']} held-out problems",
        ("", *(COLUMNS[column] for column in columns)),
        [(name, *(_interval(report[key][column]) for column in columns)) for key, name in ROWS.items()],
        f"K = {report['k']} of N = {report['n']} members, noise {run['noise']}, {report['how']} vote;"
        " members are selected by the first column. [95 % intervals over problems.]"
        + (f" The asked format: {run['asked_format']}." if run["asked_format"] else ""),
    )
    held_out = {d["sigma"]: d for d in report["held_out_density"]}
    density = Table(
        "Solution density",
        ("σ", "better than the base", "share", "share, held out"),
        [
            (
                f"{d['sigma']:g}",
                f"{d['above']} of {d['n']}",
                _interval(d),
                _interval(held_out[d["sigma"]]) if d["sigma"] in held_out else "",
            )
            for d in report["density"]
        ],
        f"Score of the base on the selection problems {report['selection']['base']:.4g}, of the best member"
        f" {report['selection']['best']:.4g}. Held out: of the first {report['correlated']} members;"
        f" Spearman's correlation of their two scores is {_number(report['rank_correlation'])}.",
    )
    kinds = Table(
        "What the base answered, and what the vote made of it",
        ("base", "problems", "vote right", "vote wrong"),
        [
            (d["base"], str(d["n"]), str(d["vote_right"]), str(d["n"] - d["vote_right"]))
            for d in report["kinds"]
        ],
        gain(report),
    )
    return [standing, kinds, density]


def gain(report: dict[str, Any]) -> str:
    """The vote's gain over the base, and where it comes from, in a sentence."""
    source, of = report["sources"], report["held_out"]
    value, low, high = (100 * (report["gain"][key] or 0) for key in ("value", "low", "high"))
    return (
        f"The vote gains {value:+.1f} points [{low:+.1f}, {high:+.1f}] over the base, paired by problem:"
        f" {100 * source['format_repaired'] / of:+.1f} where the base gave no answer or broke the format,"
        f" {100 * source['reasoning_gained'] / of:+.1f} where it answered in the format, but wrongly,"
        f" {-100 * source['lost'] / of:+.1f} where it was right."
    )


def summary(report: dict[str, Any]) -> str:
    """Speed and failures."""
    speed = report["speed"]
    rates = [
        f"{speed['members_per_second']:.3g} members/s over the whole search"
        if speed["members_per_second"]
        else "",
        f"{speed['tokens_per_second']:.0f} tokens/s generated" if speed["tokens_per_second"] else "",
    ]
    lines = [", ".join(rate for rate in rates if rate) + "."] if any(rates) else []
    if report["failures"]:
        index, reason = next(iter(report["failures"].items()))
        lines.append(f"{len(report['failures'])} members failed; the first, {index}: {reason}")
    if report["unread"]:
        count, reason = report["unread"].values()
        lines.append(
            f"The scorer failed on {count} held-out answers, which count as wrong; the first: {reason}"
        )
    return "\n\n".join(lines)


def examples(found: Findings) -> str:
    """Some held-out problems that the vote mends, and some that it spoils, with what the base wrote."""
    right = found.scores([found.base])[0].bool().tolist()
    voted = found.scores([found.votes.answers])[0].bool().tolist()
    confidence = found.votes.confidence
    assert confidence is not None
    parts = []
    for title, wanted in (("Mended by the vote", (False, True)), ("Spoilt by the vote", (True, False))):
        chosen = [b for b, pair in enumerate(zip(right, voted, strict=True)) if pair == wanted][:SHOWN]
        if chosen:
            rows = [
                (
                    _cell(found.problems[b].content),
                    _cell(found.base_texts[b]),
                    _answer(found.base[b]),
                    f"{_answer(found.votes.answers[b])} ({float(confidence[b]):.0%})",
                )
                for b in chosen
            ]
            heads = ("problem", "the base wrote", "read as", "vote (share of the members)")
            parts.append(Table(title, heads, rows, "").markdown().strip())
    return "\n\n".join(parts)


def _answer(answer: Any) -> str:
    return "nothing" if answer is None else _cell(answer.value)


def _cell(text: str, most: int = 160) -> str:
    """Text of a model or a task as one cell of Markdown: its end, with nothing that Markdown would act on."""
    line = " ".join(text.split())
    short = line if len(line) <= most else "…" + line[-most:]
    return f"`{short.replace('`', chr(0x2032)).replace('|', '¦')}`" if short else "(empty)"


def _interval(value: dict[str, float | None]) -> str:
    return f"{_number(value['value'])} [{_number(value['low'])}, {_number(value['high'])}]"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def shown(report: dict[str, Any], out: Path) -> Sequence[Table | str]:
    """What the command line prints of a report."""
    where = f"{report['seconds']:.0f} s; pictures, report and experts are in {out}"
    then = f"Next: thickets vote {out} --inputs {out / 'held_out.jsonl'}"
    return [*tables(report), summary(report), where, then]
