"""Held-out quality of a search: base, top-1, mean of the top K and their vote, all by one score function."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..statistics import Density, Interval, score_interval, solution_density, spearman
from ..votes import score_weights, vote
from .batches import Batch
from .chunks import ChunkSize, run_in_chunks
from .evaluation import BASE_MEMBER, Evaluator, Score, score_batch
from .store import Record


@dataclass(frozen=True)
class Report:
    """Scores on held-out data with 95 % intervals over its examples (Wilson's where every score is 0 or 1,
    else t).

    mean_top_k:       the mean score of the K members, per example and then over examples.
    vote:             the K members combined by the rule `how`.
    rank_correlation: Spearman's, of the search's and the held-out scores of `correlated` members; NaN if
        undefined.
    density:          per sigma, the share of all members that beat the base on the search's data.
    held_out_density: the same on the held-out data, of the `correlated` members.
    """

    how: str
    k: int
    examples: int
    base: Interval
    top_1: Interval
    mean_top_k: Interval
    vote: Interval
    rank_correlation: float
    correlated: int
    density: list[Density]
    held_out_density: list[Density]

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values; what is undefined is None."""
        values: dict[str, Any] = _json(asdict(self))
        return values


def held_out_report(
    evaluator: Evaluator,
    score: Score,
    batches: Sequence[Batch],
    top: Sequence[Record],
    sample: Sequence[Record],
    how: str,
    size: ChunkSize,
    density: list[Density],
) -> Report:
    """Evaluate base, `top` (best first) and their vote on batches, and `sample` for the correlation."""
    weights = score_weights([record.value for record in top]) if how == "weighted" else None
    base, each, voted = [], [], []
    for inputs, targets in batches:
        base.append(score_batch(score, evaluator.predictions([BASE_MEMBER], inputs, size), targets, 1))
        predictions = evaluator.predictions(top, inputs, size)
        each.append(score_batch(score, predictions, targets, len(top)))
        voted.append(score_batch(score, vote(predictions, how, weights=weights).prediction, targets, 1))
    base_scores, top_scores, vote_scores = (torch.cat(parts, dim=1) for parts in (base, each, voted))
    sampled = {record.index: _mean(scores) for record, scores in zip(top, top_scores, strict=True)}
    rest = [record for record in sample if record.index not in sampled]
    for outcome in run_in_chunks(rest, lambda chunk: evaluator.examples(chunk, batches, score), size):
        if outcome.result is not None:
            for record, scores in zip(outcome.items, outcome.result, strict=True):
                sampled[record.index] = _mean(scores)
    both = [record for record in sample if math.isfinite(sampled.get(record.index, math.nan))]
    held_out = [sampled[record.index] for record in both]
    return Report(
        how=how,
        k=len(top),
        examples=base_scores.shape[1],
        base=score_interval(base_scores[0]),
        top_1=score_interval(top_scores[0]),
        mean_top_k=score_interval(top_scores.double().mean(0)),
        vote=score_interval(vote_scores[0]),
        rank_correlation=spearman([record.value for record in both], held_out),
        correlated=len(both),
        density=density,
        held_out_density=solution_density(held_out, [r.sigma for r in both], _mean(base_scores[0])),
    )


def _mean(scores: Tensor) -> float:
    return math.fsum(scores.tolist()) / len(scores)


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
