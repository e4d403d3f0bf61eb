"""The experiments' results as tables: the same rows for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from thickets.statistics import Interval
from thickets.tasks.families import QUANTILES, Comparison
from thickets.tasks.run import Outcome


class Table(NamedTuple):
    """A title, the columns' heads and rows of text."""

    title: str
    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str

    def markdown(self) -> str:
        """The table as Markdown."""
        lines = [f"### {self.title}", "", _line(self.heads), _line(["---"] * len(self.heads))]
        return "\n".join([*lines, *map(_line, self.rows), "", self.note, ""])


def results(outcomes: Sequence[Outcome]) -> Table:
    """Base, top-1, mean of the top K and ensemble of each case, on held-out data."""
    heads = (
        "case",
        "metric",
        "base",
        "top-1",
        "mean of top K",
        "ensemble of K",
        "density",
        "rank corr.",
        "members/s",
    )
    rows = []
    for outcome in outcomes:
        report = outcome.as_dict()
        rows.append(
            (
                f"{outcome.case.task}: {outcome.case.name}",
                outcome.case.metric + (" ↑" if outcome.case.sign > 0 else " ↓"),
                *(_interval(outcome.interval(which)) for which in ("base", "top_1", "mean_top_k", "vote")),
                "; ".join(f"{_interval(d.share, 2)} at σ {d.sigma:g}" for d in outcome.report.density),
                f"{outcome.report.rank_correlation:.2f}",
                "" if report["members_per_second"] is None else f"{report['members_per_second']:.0f}",
            )
        )
    first = outcomes[0]
    return Table(
        "Base, best member and ensemble on held-out data",
        heads,
        rows,
        f"N = {first.result.n} members, noise {first.result.run['noise']}. ↑ higher is better, ↓ lower."
        " [95 % intervals over held-out examples.] Density: share of members better than the base on the"
        " selection data. Rank corr.: Spearman's, of members' scores on selection and held-out data.",
    )


def comparison(compared: Comparison) -> Table:
    """Every noise family on one case."""
    heads = ("noise", "runs x N", "density", *(f"{q:.0%} quantile" for q in QUANTILES), "top-1", "ensemble")
    rows = [
        (
            row.label,
            f"{row.runs} x {row.members // row.runs}",
            _interval(row.density, 2),
            *(f"{quantile.value:.3f}" for quantile in row.quantiles),
            _interval(row.top_1),
            _interval(row.vote),
        )
        for row in compared.rows
    ]
    runs = compared.rows[0].runs
    over = "held-out examples" if runs == 1 else f"the {runs} runs"
    case = compared.case
    return Table(
        f"Noise families: {case.task}, {case.name} ({case.metric}, base {_interval(compared.base)} held out)",
        heads,
        rows,
        "Disjoint master seeds, nothing paired; the two rows of normal show what chance alone does."
        f" [95 % intervals: density over members, top-1 and ensemble over {over}.] Quantiles: of the members"
        f" on the selection data, from the worst; the base has {compared.base_selection:.3f} there.",
    )


def _interval(interval: Interval, digits: int = 3) -> str:
    return f"{interval.value:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
