"""What a search on a language task found, on held-out problems: numbers as JSON values, and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from thickets.language.answering import Answers, Judge, accuracy, in_format
from thickets.randopt.store import Record
from thickets.statistics import Interval, mean_interval, score_interval, solution_density, spearman
from thickets.tasks.case import plain
from thickets.votes import Votes, score_weights, vote

if TYPE_CHECKING:
    from thickets.randopt import SearchResult
    from thickets.tasks.problems import Answer, Problem

KINDS = ("right, in format", "right, out of format", "wrong, in format", "wrong, out of format", "no answer")


@dataclass(frozen=True)
class Findings:
    """A search and the answers of its base and its best members, best first, to held-out problems.

    base: B answers, top: K lists of B, in any format. strict: only answers in the asked format count, in the
    search and here. sample: (record, held-out score) of an unbiased sample of members.
    """

    result: SearchResult
    problems: Sequence[Problem]
    scorer: Judge
    strict: bool
    how: str
    experts: Sequence[Record]
    base: list[Answer | None]
    top: Answers
    base_texts: Sequence[str]
    sample: Sequence[tuple[Record, float]]

    @property
    def selecting(self) -> int:
        """How many problems the members were selected by."""
        examples = self.result.base.examples
        assert examples is not None
        return len(examples)

    def scores(self, answers: Answers, strict: bool | None = None) -> Tensor:
        """1 or 0 for each answer, [N, B]; strict: as the search has it by default."""
        counted = in_format(answers) if (self.strict if strict is None else strict) else answers
        return accuracy(self.scorer, counted, self.problems)

    def vote(self, k: int, strict: bool | None = None) -> Votes:
        """The vote of the best k."""
        answers = self.top[:k]
        counted = in_format(answers) if (self.strict if strict is None else strict) else answers
        weights = score_weights([r.value for r in self.experts[:k]]) if self.how == "weighted" else None
        return vote(counted, self.how, weights=weights)

    @cached_property
    def votes(self) -> Votes:
        """The vote of all experts."""
        return self.vote(len(self.top))

    def rank_correlation(self) -> float:
        """Spearman's, of the sample's scores on selection and held-out problems; NaN if undefined."""
        return spearman([record.value for record, _ in self.sample], [score for _, score in self.sample])

    def gain(self) -> Interval:
        """Vote minus base, with the interval of paired differences."""
        difference = self.scores([self.votes.answers])[0] - self.scores([self.base])[0]
        return mean_interval(difference)

    def curve(self) -> list[tuple[int, Interval]]:
        """Accuracy of the vote of the best k, for k up to all."""
        return [(k, score_interval(self.scores([self.vote(k).answers])[0])) for k in counts(len(self.top))]

    def standing(self) -> dict[str, dict[str, Interval]]:
        """Base, best member, mean of the experts and vote: accuracy by both rules, and what had an answer."""
        lists = {"base": [self.base], "top_1": self.top[:1], "mean_top_k": self.top}
        rows = {name: self._standing(answers, answers) for name, answers in lists.items()}
        k = len(self.top)
        rows["vote"] = self._standing([self.vote(k, True).answers], [self.vote(k, False).answers])
        return rows

    def _standing(self, strict: Answers, any_format: Answers) -> dict[str, Interval]:
        formatted = [[float(a is not None and a.formatted) for a in answers] for answers in any_format]
        answered = [[float(a is not None) for a in answers] for answers in any_format]
        columns = {
            "strict": self.scores(strict, True),
            "forgiving": self.scores(any_format, False),
            "in_format": torch.tensor(formatted),
            "answered": torch.tensor(answered),
        }
        return {name: _share(values.double().mean(0)) for name, values in columns.items()}

    def kinds(self) -> list[dict[str, Any]]:
        """The base's answers by kind, and how many problems of each kind the vote answers correctly."""
        right = self.scores([self.base], False)[0].bool().tolist()
        voted = self.scores([self.votes.answers])[0].bool().tolist()
        found = {kind: [0, 0] for kind in KINDS}
        for answer, correct, also in zip(self.base, right, voted, strict=True):
            kind = KINDS[4] if answer is None else KINDS[2 * (not correct) + (not answer.formatted)]
            found[kind][0] += 1
            found[kind][1] += also
        return [{"base": kind, "n": n, "vote_right": good} for kind, (n, good) in found.items()]

    def sources(self) -> dict[str, int]:
        """Where the vote's gain comes from, in problems: format repaired, reasoning gained, what was lost.

        Format: the base gave no answer, or one out of format that is wrong or does not count. Reasoning: it
        gave a wrong one in the format.
        """
        n = {row["base"]: (row["n"], row["vote_right"]) for row in self.kinds()}
        counted = KINDS[:1] if self.strict else KINDS[:2]
        format_lost = [kind for kind in KINDS if kind not in counted and kind != KINDS[2]]
        return {
            "format_repaired": sum(n[kind][1] for kind in format_lost),
            "reasoning_gained": n[KINDS[2]][1],
            "lost": sum(n[kind][0] - n[kind][1] for kind in counted),
        }

    def unread(self) -> dict[str, Any] | None:
        """How many judgements the scorer failed on, and why at first; None if it did on none."""
        failures = self.scorer.failures
        return {"answers": len(failures), "first": failures[0]} if failures else None

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        result, sample = self.result, self.sample
        chosen = "strict" if self.strict else "forgiving"
        correlation = self.rank_correlation()
        base = float(self.scores([self.base]).mean())
        held = solution_density([score for _, score in sample], [r.sigma for r, _ in sample], base)
        return {
            "how": self.how,
            "rule": chosen,
            "n": result.n,
            "k": len(self.top),
            "held_out": len(self.problems),
            **{
                name: {"accuracy": plain(row[chosen])} | {key: plain(value) for key, value in row.items()}
                for name, row in self.standing().items()
            },
            "gain": plain(self.gain()),
            "sources": self.sources(),
            "kinds": self.kinds(),
            "curve": [{"k": k, **plain(interval)} for k, interval in self.curve()],
            "selection": {"base": result.base.value, "best": max(result.scores.tolist())},
            "density": [
                {"sigma": d.sigma, "above": d.above, "n": d.n, **plain(d.share)} for d in result.density()
            ],
            "held_out_density": [
                {"sigma": d.sigma, "above": d.above, "n": d.n, **plain(d.share)} for d in held
            ],
            "rank_correlation": correlation if math.isfinite(correlation) else None,
            "correlated": len(sample),
            "failures": {str(index): reason for index, reason in result.failures.items()},
            "unread": self.unread(),
        }


def _share(values: Tensor) -> Interval:
    """The interval of a mean of values in [0, 1], within these bounds."""
    found = score_interval(values)
    return Interval(found.value, max(0.0, found.low), min(1.0, found.high))


def check_how(how: str) -> None:
    """ValueError unless `how` is a rule of `vote` for answers."""
    if how not in ("majority", "weighted"):
        raise ValueError(f"how must be majority or weighted, got {how!r}")


def counts(k: int) -> list[int]:
    """Up to 40 whole numbers from 1 to k, dense at first and by equal factors then."""
    return sorted({min(k, max(i + 1, round(k ** (i / 39)))) for i in range(40)} | {k})
