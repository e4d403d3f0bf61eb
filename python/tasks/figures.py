"""The pictures of the experiments: roll-outs, digits, score histograms, noise families."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from thickets.tasks.families import Comparison
    from thickets.tasks.run import Outcome

# Okabe and Ito's palette: told apart under every common kind of colour blindness, and in grey by lightness.
INK, GREY, SKY, BLUE, ORANGE, GREEN = "#222222", "#9a9a9a", "#56b4e9", "#0072b2", "#d55e00", "#009e73"
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "legend.frameon": False,
    "savefig.dpi": 150,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}
WIDTH = 11.0  # inches

Draw = Callable[[Any, Sequence[Any]], None]


def picture(
    height: Callable[[Sequence[Any]], float],
) -> Callable[[Draw], Callable[[Sequence[Any], Path], Path]]:
    """Turn draw(figure, items) into f(items, path) -> path, without pyplot and its global state."""

    def decorate(draw: Draw) -> Callable[[Sequence[Any], Path], Path]:
        @wraps(draw)
        def saved(items: Sequence[Any], path: Path) -> Path:
            try:
                import matplotlib
                from matplotlib.backends.backend_agg import FigureCanvasAgg
                from matplotlib.figure import Figure
            except ImportError as error:
                raise RuntimeError(
                    f"pictures need matplotlib: pip install 'thickets[tasks]' ({error})"
                ) from None
            with matplotlib.rc_context(STYLE):
                figure = Figure(figsize=(WIDTH, height(items)))
                FigureCanvasAgg(figure)
                draw(figure, items)
                figure.savefig(path)
            return path

        return saved

    return decorate


@picture(lambda outcomes: 2.3 * len(outcomes) + 0.5)
def signals(figure: Any, outcomes: Sequence[Outcome]) -> None:
    """A row per regime: roll-outs (context, truth, base, random members, top K, ensemble), and all scores."""
    axes = figure.subplots(len(outcomes), 3, squeeze=False, width_ratios=[1.1, 1.1, 1])
    for row, outcome in zip(axes, outcomes, strict=True):
        for example, axis in enumerate(row[:-1]):
            _rollout(axis, outcome, example)
        row[0].set_ylabel(f"{outcome.case.name}\n\nvalue")
        _histogram(row[-1], outcome)
    for example, axis in enumerate(axes[0, :-1]):
        axis.set_title(f"held-out signal {example + 1}")
    for axis in axes[-1, :-1]:
        axis.set_xlabel("step")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def _rollout(axis: Any, outcome: Outcome, example: int) -> None:
    inputs, targets = outcome.case.held_out
    context, truth = inputs["context"][example], targets[example]
    whole = torch.cat([context, truth]).tolist()
    steps = range(len(context), len(whole))
    axis.axvspan(0, len(context) - 1, color=INK, alpha=0.07, lw=0, label="context")
    axis.plot(whole, color=INK, lw=1.3, ls=(0, (4, 2)), label="truth")
    for predictions, colour, label in ((outcome.random, GREY, "random members"), (outcome.top, SKY, "top K")):
        for i, line in enumerate(predictions[:, example].tolist()):
            axis.plot(steps, line, color=colour, lw=0.8, alpha=0.55, label=label if i == 0 else None)
    axis.plot(steps, outcome.base[example].tolist(), color=ORANGE, lw=1.6, label="base")
    axis.plot(steps, outcome.ensemble[example].tolist(), color=BLUE, lw=2.2, label="ensemble")
    axis.set_xlim(0, len(whole) - 1)
    axis.set_ylim(-1.6, 1.6)


def _histogram(axis: Any, outcome: Outcome) -> None:
    """The members' scores with the base and the K-th best marked, but for the worst 2 %."""
    sign, unit = outcome.case.sign, outcome.case.metric
    values = (sign * outcome.result.scores).sort(descending=sign > 0).values
    base = sign * outcome.result.base.value
    shown = values[: max(1, round(0.98 * len(values)))]
    low, high = min(float(shown.min()), base), max(float(shown.max()), base)
    if unit == "accuracy":  # whole numbers of examples: a bar for each, or for each few
        step = max(1, round((high - low) * outcome.examples / 24)) / outcome.examples
        edges = torch.arange(low - step / 2, high + step, step)
    else:
        edges = torch.linspace(low, high if high > low else low + 1e-6, 31)
    better = shown > base if sign > 0 else shown < base
    share, kth = float(better.sum()) / len(values), float(values[outcome.report.k - 1])
    axis.hist(
        [shown[~better].tolist(), shown[better].tolist()],
        edges.tolist(),
        stacked=True,
        color=[GREY, GREEN],
        label=["_", f"better: {share:.0%}"],
    )
    axis.axvline(base, color=ORANGE, lw=2, label=f"base {base:.3g}")
    axis.axvline(kth, color=BLUE, lw=1.4, ls="--", label=f"top {outcome.report.k} from {kth:.3g}")
    axis.legend(
        loc="lower left", bbox_to_anchor=(-0.03, 1.0), ncols=3, fontsize=8, handlelength=1, columnspacing=1
    )
    axis.set_xlabel(f"{unit} on {outcome.examples} selection examples")
    axis.set_ylabel("members (worst 2 % not shown)", fontsize=8)


@picture(lambda outcomes: 2.9 * len(outcomes))
def digits(figure: Any, outcomes: Sequence[Outcome]) -> None:
    """A row per shift: all scores, and held-out scans that the vote mends or spoils against the base."""
    columns = 7
    grid = figure.add_gridspec(2 * len(outcomes), columns + 1, width_ratios=[4.2] + [1] * columns)
    for row, outcome in enumerate(outcomes):
        images, labels = outcome.case.held_out
        base, vote = outcome.base.argmax(-1), outcome.ensemble.argmax(-1)
        axis = figure.add_subplot(grid[2 * row : 2 * row + 2, 0])
        _histogram(axis, outcome)
        accuracy = [f"{float((answer == labels).float().mean()):.1%}" for answer in (base, vote)]
        axis.set_title(f"{outcome.case.name}: base {accuracy[0]}, vote {accuracy[1]} held out", pad=22)
        for line, (name, colour, chosen) in enumerate(
            (
                ("mended", GREEN, (base != labels) & (vote == labels)),
                ("spoilt", ORANGE, (base == labels) & (vote != labels)),
            )
        ):
            for column in range(columns):
                axis = figure.add_subplot(grid[2 * row + line, column + 1])
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
                if column == 0:
                    axis.set_ylabel(f"{name}\n{int(chosen.sum())} of {len(labels)}", color=colour)
                if column < int(chosen.sum()):
                    i = int(chosen.nonzero()[column])
                    axis.imshow(images[i].numpy(), cmap="gray_r", vmin=0, vmax=1)
                    axis.set_title(f"{int(base[i])} → {int(vote[i])}", color=colour)


@picture(lambda comparisons: sum(0.27 * len(comparison.rows) + 1.0 for comparison in comparisons) + 0.3)
def families(figure: Any, comparisons: Sequence[Comparison]) -> None:
    """A row per case: density, score quantiles, top-1 and ensemble of every noise family, with intervals."""
    axes = figure.subplots(len(comparisons), 4, squeeze=False, width_ratios=[1, 1.3, 1, 1])
    for line, comparison in zip(axes, comparisons, strict=True):
        unit = comparison.case.metric
        better = "right" if comparison.case.sign > 0 else "left"
        _dots(line[0], comparison, "density", None)
        _quantiles(line[1], comparison)
        _dots(line[2], comparison, "top_1", comparison.base.value)
        _dots(line[3], comparison, "vote", comparison.base.value)
        line[0].set_ylabel(f"{comparison.case.task}: {comparison.case.name}")
        line[0].set_xlabel("share of members above the base")
        for axis in line[1:]:
            axis.set_xlabel(f"{unit} ({better} is better)")
            axis.tick_params(labelleft=False)
    titles = ("solution density", "all members, selection data", "top-1, held out", "ensemble, held out")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    handles = [*axes[0, 3].get_legend_handles_labels()[0], *axes[0, 1].get_legend_handles_labels()[0]]
    labels = [*axes[0, 3].get_legend_handles_labels()[1], *axes[0, 1].get_legend_handles_labels()[1]]
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def _rows(axis: Any, comparison: Comparison) -> None:
    axis.set_yticks(range(len(comparison.rows)), [row.label for row in comparison.rows])
    axis.set_ylim(len(comparison.rows) - 0.5, -0.5)
    axis.grid(axis="x", color=INK, alpha=0.1)


def _dots(axis: Any, comparison: Comparison, which: str, base: float | None) -> None:
    """Estimates with their intervals; the band spans the runs of normal, the yardstick of chance."""
    _rows(axis, comparison)
    for y, row in enumerate(comparison.rows):
        span = getattr(row, which)
        axis.plot([span.low, span.high], [y, y], color=BLUE, lw=1.6, label=None if y else "95 % interval")
        axis.plot([span.value], [y], "o", color=BLUE, ms=5)
    normal = [getattr(row, which).value for row in comparison.rows if row.noise == "normal"]
    axis.axvspan(
        min(normal), max(normal), color=GREEN, alpha=0.25, lw=0, label="between the two rows of normal"
    )
    if base is not None:
        axis.axvline(base, color=ORANGE, lw=1.4, ls="--", label="base")


def _quantiles(axis: Any, comparison: Comparison) -> None:
    """From the 1st to the 99th percentile (thin), the 10th to the 90th (thick), the median (dot)."""
    _rows(axis, comparison)
    for y, row in enumerate(comparison.rows):
        first, tenth, median, ninetieth, last = (quantile.value for quantile in row.quantiles)
        axis.plot([first, last], [y, y], color=SKY, lw=1.2, label=None if y else "1 to 99 % of members")
        axis.plot(
            [tenth, ninetieth],
            [y, y],
            color=SKY,
            lw=5,
            solid_capstyle="butt",
            label=None if y else "10 to 90 %",
        )
        axis.plot([median], [y], "o", color=BLUE, ms=5)
    axis.axvline(comparison.base_selection, color=ORANGE, lw=1.4, ls="--")
