"""Combine the predictions of N members into one answer per example: function `vote`.

Members are ordered best first (by score). A member abstains with None in a list of answers, and with NaN in a
tensor of floats. Nothing here knows of networks: the same function serves labels, logits, free text and
numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

HOWS = ("majority", "weighted", "probabilities", "logits", "mean", "median")

Predictions = Tensor | Sequence[Sequence[Any]]


class Votes(NamedTuple):
    """What the members agreed on.

    answers:     [B] labels (-1 where all abstained), a list of B answers (None where all abstained), or the
                 combined numbers [B, ...] of `mean` and `median` (NaN where all abstained).
    confidence:  float64 [B]: the share of all members' weight behind the answer (abstentions count against
                 it) for `majority` and `weighted`, the answer's probability for `probabilities` and `logits`,
                 None otherwise.
    spread:      float64 [B, ...]: standard deviation over the members for `mean` and `median`, None
                 otherwise.
    prediction:  the ensemble as one member, in the form of the predictions given ([1, B, ...] or one list of
                 B), so that a score function of members scores the vote too.
    """

    answers: Any
    confidence: Tensor | None
    spread: Tensor | None
    prediction: Any


def vote(predictions: Predictions, how: str = "majority", *, weights: Sequence[float] | None = None) -> Votes:
    """Combine the predictions of N members, best first, into one answer for each of B examples.

    predictions: labels [N, B] (integer or bool), scores of classes [N, B, C] (floating, argmax is the
        answer), numbers [N, B, ...] (floating, for `mean` and `median`), or N lists of B hashable answers;
        None abstains.
    how: `majority`; `weighted` (needs weights); `probabilities`, the mean of softmax(predictions); `logits`,
        the mean of predictions; `mean` and `median` for regression. All but `majority` and `median` take
        weights.
    weights: N finite numbers >= 0, not all 0.
    A tie goes to the answer of the best-ranked member among the tied. ValueError or TypeError names the
    argument. For logits x [N, B, C]: vote(x, "majority").answers == torch.mode(x.argmax(-1), 0).values up to
    ties.
    """
    if how not in HOWS:
        raise ValueError(f"how must be one of {', '.join(HOWS)}, got {how!r}")
    predictions = _checked(predictions)
    share = _shares(weights, how, len(predictions))
    if how in ("majority", "weighted"):
        return _count(predictions, share)
    if how in ("probabilities", "logits"):
        return _average_classes(predictions, how, share)
    return _average_numbers(predictions, how, share)


def score_weights(scores: Sequence[float]) -> list[float]:
    """Scores as the weights of a weighted majority; ValueError for negative ones, which are no weights."""
    if any(score < 0 for score in scores):
        raise ValueError(
            f"weights must be given for how='weighted': scores are the default, got {min(scores)} < 0"
        )
    return list(scores)


def join(parts: Sequence[Predictions]) -> Predictions:
    """Predictions of several groups of members as one: [N1, B, ...], [N2, B, ...] -> [N1 + N2, B, ...]."""
    tensors = [part for part in parts if isinstance(part, Tensor)]
    if len(tensors) == len(parts):
        return torch.cat(tensors)
    return [answers for part in parts for answers in part]


def _checked(predictions: Any) -> Tensor | list[list[Any]]:
    if hasattr(predictions, "__array__") and not isinstance(predictions, Tensor):
        predictions = torch.as_tensor(predictions)
    if isinstance(predictions, Tensor):
        if predictions.dim() < 2 or len(predictions) == 0:
            raise ValueError(f"predictions must be [N, B, ...] with N >= 1, got {tuple(predictions.shape)}")
        return predictions.detach()
    if isinstance(predictions, str) or not isinstance(predictions, Sequence):
        raise TypeError(
            f"predictions must be [N, B, ...] or N lists of B answers, got {type(predictions).__name__}"
        )
    if len(predictions) == 0:
        raise ValueError("predictions must hold at least one member, got an empty list")
    if all(isinstance(answers, Tensor) for answers in predictions):
        shapes = {tuple(answers.shape) for answers in predictions}
        if len(shapes) > 1:
            raise ValueError(f"predictions must have one shape for all members, got {sorted(shapes)}")
        return _checked(torch.stack(list(predictions)))
    for n, answers in enumerate(predictions):
        if isinstance(answers, str) or not isinstance(answers, Sequence):
            raise TypeError(f"predictions[{n}] must be a list of B answers, got {type(answers).__name__}")
        if len(answers) != len(predictions[0]):
            raise ValueError(
                f"predictions[{n}] must have B={len(predictions[0])} answers, got {len(answers)}"
            )
    return [list(answers) for answers in predictions]


def _shares(weights: Sequence[float] | None, how: str, n: int) -> Tensor:
    """The members' weights scaled to the sum 1, float64 [N]."""
    if weights is None:
        if how == "weighted":
            raise ValueError(f"weights must be N={n} numbers for how='weighted', got None")
        return torch.full((n,), 1.0 / n, dtype=torch.float64)
    if how in ("majority", "median"):
        raise ValueError(
            f"weights must be None for how={how!r}, got {n} weights; a weighted majority is how='weighted'"
        )
    values = torch.as_tensor(weights, dtype=torch.float64).cpu()
    if values.shape != (n,):
        raise ValueError(f"weights must be [N={n}], got {tuple(values.shape)}")
    if not bool(values.isfinite().all()) or bool((values < 0).any()) or float(values.sum()) <= 0:
        raise ValueError(f"weights must be finite, >= 0 and not all 0, got {values.tolist()}")
    return values / values.sum()


def _count(predictions: Tensor | list[list[Any]], share: Tensor) -> Votes:
    if isinstance(predictions, list):
        labels, valid = _codes(predictions)
        winner, confidence = _most_supported(labels, valid, share)
        answers = [
            predictions[n][b] if voted else None
            for b, (n, voted) in enumerate(zip(winner.tolist(), valid.any(0).tolist(), strict=True))
        ]
        return Votes(answers, confidence, None, [answers])
    if predictions.is_floating_point():
        _require_classes(predictions)
        valid = ~predictions.isnan().any(-1)
        labels = predictions.argmax(-1)
    else:
        if predictions.dim() != 2:
            raise ValueError(f"predictions of integers must be labels [N, B], got {tuple(predictions.shape)}")
        valid = torch.ones_like(predictions, dtype=torch.bool)
        labels = predictions
    winner, confidence = _most_supported(labels, valid, share.to(labels.device))
    chosen = labels.gather(0, winner[None])[0]
    if not predictions.is_floating_point():
        return Votes(chosen, confidence, None, chosen[None])
    return _classes(
        chosen,
        confidence,
        torch.nn.functional.one_hot(chosen, predictions.shape[-1]),
        valid.any(0),
        predictions,
    )


def _codes(predictions: list[list[Any]]) -> tuple[Tensor, Tensor]:
    """One integer per distinct answer: labels and valid [N, B]; None and NaN are not valid."""
    codes: dict[Any, int] = {}
    rows = []
    for n, answers in enumerate(predictions):
        try:
            rows.append([-1 if _abstains(a) else codes.setdefault(a, len(codes)) for a in answers])
        except TypeError as error:
            raise TypeError(f"predictions[{n}] must hold hashable answers: {error}") from None
    labels = torch.tensor(rows, dtype=torch.int64).reshape(len(rows), -1)
    return labels, labels >= 0


def _abstains(answer: Any) -> bool:
    return answer is None or (isinstance(answer, float) and math.isnan(answer))


def _most_supported(labels: Tensor, valid: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """labels, valid [N, B], share [N] -> best-ranked member with the winning answer, answer's share [B]."""
    ranked, order = labels.sort(dim=0, stable=True)
    starts = torch.zeros_like(ranked, dtype=torch.int64)
    starts[1:] = ranked[1:] != ranked[:-1]
    group = starts.cumsum(0)
    weight = (share[:, None] * valid).gather(0, order)
    total = torch.zeros_like(weight).scatter_add_(0, group, weight)
    support = torch.zeros_like(weight).scatter_(0, order, total.gather(0, group))
    # Rounding makes 0.1 + 0.2 and 0.3 the tie that they are; argmax returns the first, that is the
    # best-ranked.
    support = torch.where(valid, support.round(decimals=12), -1.0)
    winner = support.argmax(0)
    return winner, support.gather(0, winner[None])[0].clamp_min(0.0)


def _classes(
    answers: Tensor, confidence: Tensor, combined: Tensor, voted: Tensor, predictions: Tensor
) -> Votes:
    prediction = combined.to(predictions.dtype).masked_fill(~voted[:, None], float("nan"))
    return Votes(answers.masked_fill(~voted, -1), confidence.masked_fill(~voted, 0.0), None, prediction[None])


def _require_classes(predictions: Any) -> None:
    if not isinstance(predictions, Tensor) or not predictions.is_floating_point() or predictions.dim() != 3:
        came = (
            f"{predictions.dtype} {tuple(predictions.shape)}"
            if isinstance(predictions, Tensor)
            else "lists of answers"
        )
        raise ValueError(
            f"predictions must be floating [N, B, C] for a vote on classes, got {came}; numbers take 'mean'"
        )
    if predictions.shape[-1] == 0:
        raise ValueError(f"predictions must have C >= 1 classes, got {tuple(predictions.shape)}")


def _average_classes(predictions: Any, how: str, share: Tensor) -> Votes:
    _require_classes(predictions)
    total = torch.zeros(predictions.shape[1:], dtype=torch.float64, device=predictions.device)
    weight = torch.zeros_like(total[:, :1])
    for x, w in zip(predictions, share.tolist(), strict=True):
        if w == 0.0:
            continue
        valid = ~x.isnan().any(-1, keepdim=True)
        value = x.double().softmax(-1) if how == "probabilities" else x.double()
        total += torch.where(valid, w * value, 0.0)
        weight += w * valid
    combined = total / weight
    probability = combined if how == "probabilities" else combined.softmax(-1)
    # The members' predictions are logits: their mean probability, as logits, is its logarithm.
    logits = combined.log() if how == "probabilities" else combined
    answers = combined.argmax(-1)
    confidence = probability.gather(-1, answers[:, None])[:, 0]
    return _classes(answers, confidence, logits, weight[:, 0] > 0, predictions)


def _average_numbers(predictions: Tensor | list[list[Any]], how: str, share: Tensor) -> Votes:
    if isinstance(predictions, list):
        given: Tensor | None = None
        try:
            rows = [[math.nan if a is None else float(a) for a in answers] for answers in predictions]
        except (TypeError, ValueError) as error:
            raise TypeError(f"predictions must be numbers for how={how!r}: {error}") from None
        values = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), -1)
    else:
        given = predictions
        values = predictions.double()
    valid = ~values.isnan()
    weight = (share.to(values.device).reshape(-1, *[1] * (values.dim() - 1)) * valid).double()
    mean = torch.where(valid, values * weight, 0.0).sum(0) / weight.sum(0)
    spread = (torch.where(valid, (values - mean) ** 2 * weight, 0.0).sum(0) / weight.sum(0)).sqrt()
    answers = _median(values, valid) if how == "median" else mean
    if given is None:
        listed = [None if math.isnan(a) else a for a in answers.tolist()]
        return Votes(answers, None, spread, [listed])
    answers = answers.to(given.dtype) if given.is_floating_point() else answers
    return Votes(answers, None, spread, answers[None])


def _median(values: Tensor, valid: Tensor) -> Tensor:
    """Middle value, or the mean of the two middle values, of those that are valid, [N, ...] -> [...]."""
    ordered = values.sort(dim=0).values  # NaN sorts last
    count = valid.sum(0, keepdim=True)
    low = ordered.gather(0, ((count - 1) // 2).clamp_min(0))
    high = ordered.gather(0, count // 2)
    return ((low + high) / 2)[0]
