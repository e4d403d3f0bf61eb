"""The held-out report: base, top-1, mean of the top K and vote, all by the search's own score."""

import functools
import json
import math

import pytest
import torch
from search_case import SETTINGS, accuracy, batches, margin, network

import thickets
from thickets import search
from thickets.statistics import spearman, wilson


def run(**change):
    return search(network(), **({"data": batches(), "score": margin} | SETTINGS | change))


@functools.cache
def whole():
    """The search that the tests only read."""
    return run()


def test_the_report_scores_everything_alike():
    result = run(score=accuracy)
    held_out = batches(3, first=50)
    report = result.evaluate(held_out, correlate=30)
    pm = thickets.perturb(network())
    records = result.top() + [r for r in result.scored[:30] if r not in result.top()]
    with pm.members([r.seed for r in records], [r.sigma for r in records]):
        logits = [pm(x) for x, _ in held_out]
    scores = torch.cat([accuracy(p, y) for p, (_, y) in zip(logits, held_out, strict=True)], 1)
    assert report.examples == 75
    assert report.k == 5
    assert report.top_1 == wilson(int(scores[0].sum()), 75)
    assert report.mean_top_k.value == pytest.approx(float(scores[:5].mean()))
    assert report.mean_top_k.low < report.mean_top_k.value < report.mean_top_k.high
    votes = [thickets.vote(p[:5]).answers for p in logits]
    right = sum(int((v == y).sum()) for v, (_, y) in zip(votes, held_out, strict=True))
    assert report.vote == wilson(right, 75)
    base = sum(int((network()(x).argmax(-1) == y).sum()) for x, y in held_out)
    assert report.base == wilson(base, 75)
    mean = dict(zip([r.index for r in records], scores.double().mean(1).tolist(), strict=True))
    sample = result.scored[:30]
    assert report.correlated == 30
    assert report.rank_correlation == pytest.approx(
        spearman([r.score for r in sample], [mean[r.index] for r in sample])
    )
    assert report.density == result.density()
    assert sum(row.n for row in report.held_out_density) == 30
    assert json.loads(json.dumps(report.as_dict(), allow_nan=False))["vote"]["value"] == report.vote.value


@pytest.mark.parametrize("how", ["weighted", "probabilities", "logits"])
def test_the_report_takes_every_rule_for_classes(how):
    report = run(score=accuracy, n=10).evaluate(batches(1, first=50), how=how, correlate=0)
    assert report.how == how
    assert 0 <= report.vote.low <= report.vote.value <= report.vote.high <= 1
    assert math.isnan(report.rank_correlation)
    assert report.as_dict()["rank_correlation"] is None


@pytest.mark.parametrize("how", ["mean", "median"])
def test_the_report_of_a_regression(how):
    def error(predictions, targets):
        return -(predictions - targets.double()[:, None]).square().mean(-1)

    result = run(score=error)
    ((x, y),) = held_out = batches(1, first=50)
    report = result.evaluate(held_out, how=how, chunk=2)
    predictions = result.thicket().predictions(network(), x)
    combined = predictions.mean(0) if how == "mean" else predictions.median(0).values
    assert report.vote.value == pytest.approx(float(error(combined[None], y).mean()), rel=1e-5)


def test_the_report_wants_other_data_than_the_search():
    with pytest.raises(ValueError, match="data must be held out"):
        whole().evaluate(batches())
    with pytest.raises(ValueError, match="more than the 40 members scored"):
        whole().evaluate(batches(1, first=50), top_k=41)
    with pytest.raises(ValueError, match="correlate must be an integer >= 0, got -1"):
        whole().evaluate(batches(1, first=50), correlate=-1)
    with pytest.raises(ValueError, match=r"weights must be given .* got -.* < 0"):  # log-probabilities
        whole().evaluate(batches(1, first=50), how="weighted")
