"""The pictures of a run on a language task: scores, the vote, what carries over to held-out problems."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from thickets.language.report import Findings
from thickets.statistics import Density, Interval, solution_density
from thickets.tasks.figures import BLUE, GREEN, GREY, INK, ORANGE, SKY, picture

PANELS = 3  # in a row
_ABOVE = {  # a legend between the title and the axes
    "loc": "lower left",
    "bbox_to_anchor": (-0.02, 0.99),
    "ncols": 4,
    "fontsize": 8,
    "handlelength": 1.4,
    "columnspacing": 1.2,
}


@picture(lambda items: 0.3 + 2.3 * math.ceil(len(items[0].result.density()) / PANELS))
def scores(figure: Any, items: Sequence[Findings]) -> None:
    """A panel per sigma: the members' scores on the selection problems, the base and the K-th best marked."""
    (found,) = items
    result = found.result
    size = found.selecting
    base, kth = result.base.value, found.experts[-1].value
    everything = [*result.scores.tolist(), base]
    low, high = min(everything), max(everything)
    step = max(1, math.ceil((high - low) * size / 30)) / size  # whole numbers of problems to a bar
    middle = base + 0.5 / size  # no bar holds both members better than the base and others
    first = middle - step * math.ceil((middle - low) / step)
    edges = [first + step * i for i in range(math.ceil((high - first) / step) + 2)]
    density = result.density()
    columns = min(PANELS, len(density))
    axes = figure.subplots(math.ceil(len(density) / columns), columns, squeeze=False, sharey=True).flatten()
    for axis in axes[len(density) :]:
        axis.set_axis_off()
    for axis, one in zip(axes, density, strict=False):
        values = [r.value for r in result.scored if abs(r.sigma) == one.sigma]
        split = [[v for v in values if v <= base], [v for v in values if v > base]]
        axis.hist(split, edges, stacked=True, color=[GREY, GREEN])
        axis.axvline(base, color=ORANGE, lw=2, label=f"base {base:.3g}")
        axis.axvline(kth, color=BLUE, lw=1.4, ls="--", label=f"best {len(found.experts)} from {kth:.3g}")
        axis.set_title(f"σ = {one.sigma:g}: {one.share.value:.0%} of {one.n} beat the base")
    for axis in axes[max(0, len(density) - columns) : len(density)]:
        axis.set_xlabel(f"score on {size} selection problems")
    for axis in axes[::columns]:
        axis.set_ylabel("members")
    axes[0].yaxis.get_major_locator().set_params(integer=True)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)


@picture(lambda items: 3.6)
def votes(figure: Any, items: Sequence[Findings]) -> None:
    """Accuracy of the vote against K, and what the vote makes of each kind of the base's answers."""
    (found,) = items
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.15])
    curve, standing = found.curve(), found.standing()
    rule = "strict" if found.strict else "forgiving"
    k = [k for k, _ in curve]
    left.fill_between(k, [i.low for _, i in curve], [i.high for _, i in curve], color=SKY, alpha=0.3, lw=0)
    left.plot(k, [i.value for _, i in curve], color=BLUE, lw=2, marker="o", ms=3, label="vote")
    mean, base = standing["mean_top_k"][rule].value, standing["base"][rule]
    left.axhline(mean, color=INK, lw=1, ls=":", label=f"mean of the best {k[-1]}: {mean:.3f}")
    left.axhspan(base.low, base.high, color=ORANGE, alpha=0.15, lw=0)
    left.axhline(base.value, color=ORANGE, lw=2, label=f"base: {base.value:.3f}")
    left.set_xscale("log")
    left.set_xticks([t for t in (*range(1, 6), 10, 20, 50, 100, 200, 500, 1000) if t <= k[-1]])
    left.xaxis.set_major_formatter("{x:.0f}")
    left.xaxis.set_minor_locator(_nothing())
    left.set_xlabel("K")
    left.set_ylabel(f"accuracy on {len(found.problems)} held-out problems")
    left.set_title("the vote of the best K, with 95 % intervals", pad=24)
    left.legend(**_ABOVE)
    kinds = found.kinds()
    names = [row["base"] for row in kinds]
    good, bad = [row["vote_right"] for row in kinds], [row["n"] - row["vote_right"] for row in kinds]
    right.barh(names, good, color=GREEN, label="the vote is right")
    right.barh(names, bad, left=good, color=GREY, label="the vote is wrong")
    for y, row in enumerate(kinds):
        if row["n"]:
            right.annotate(
                f"{row['vote_right']} of {row['n']} right",
                (row["n"], y),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
    right.margins(x=0.25)
    right.invert_yaxis()
    right.set_xlabel("held-out problems")
    right.set_title("what the base answered, and what became of it", pad=24)
    right.legend(**_ABOVE)


@picture(lambda items: 3.4)
def transfer(figure: Any, items: Sequence[Findings]) -> None:
    """Solution density on both sets of problems, and the members' scores on one against the other."""
    (found,) = items
    left, right = figure.subplots(1, 2, width_ratios=[1, 1])
    base = float(found.scores([found.base]).mean())
    held_out = solution_density(
        [score for _, score in found.sample], [r.sigma for r, _ in found.sample], base
    )
    groups: list[tuple[str, str, list[Density]]] = [("all members, selection", BLUE, found.result.density())]
    groups.append((f"first {len(found.sample)} members, held out", GREEN, held_out))
    sigmas = [d.sigma for d in groups[0][2]]
    for shift, (label, colour, density) in zip((-0.08, 0.08), groups, strict=True):
        at = [sigmas.index(d.sigma) + shift for d in density]
        _bars(left, at, [d.share for d in density], colour, label)
    left.set_xticks(range(len(sigmas)), [f"{sigma:g}" for sigma in sigmas])
    left.set_xlim(-0.6, len(sigmas) - 0.4)
    left.set_ylim(-0.02, 1.02)
    left.set_xlabel("σ")
    left.set_ylabel("share better than the base")
    left.set_title("solution density, with 95 % intervals", pad=24)
    left.legend(**_ABOVE)
    # Scores are multiples of one problem: without some scatter, members would hide each other.
    noise = torch.rand(2, len(found.sample), generator=torch.Generator().manual_seed(0)).tolist()
    spread = [0.6 / len(found.problems), 0.6 / found.selecting]
    x = [r.value + spread[1] * (u - 0.5) for (r, _), u in zip(found.sample, noise[0], strict=True)]
    y = [score + spread[0] * (u - 0.5) for (_, score), u in zip(found.sample, noise[1], strict=True)]
    right.axhline(base, color=ORANGE, lw=1, ls="--")
    right.axvline(found.result.base.value, color=ORANGE, lw=1, ls="--", label="base")
    right.plot(
        x, y, "o", color=BLUE, ms=4, alpha=0.6, mew=0, label=f"first {len(found.sample)} members, any score"
    )
    best = found.scores(found.top).double().mean(1).tolist()
    right.plot(
        [r.value for r in found.experts],
        best,
        "o",
        mfc="none",
        color=GREEN,
        ms=5,
        label=f"best {len(found.experts)}",
    )
    correlation = found.rank_correlation()
    number = "undefined" if math.isnan(correlation) else f"{correlation:.2f}"
    right.set_title(f"scores on both sets of problems, rank correlation {number}", pad=24)
    right.set_xlabel("score on the selection problems")
    right.set_ylabel("score on the held-out problems")
    right.legend(**_ABOVE)


def _bars(axis: Any, at: list[float], shares: list[Interval], colour: str, label: str) -> None:
    values = [share.value for share in shares]
    errors = [[s.value - s.low for s in shares], [s.high - s.value for s in shares]]
    axis.errorbar(at, values, errors, fmt="o", color=colour, capsize=3, lw=1.6, ms=5, label=label)


def _nothing() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()
