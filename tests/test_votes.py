"""Combining predictions: every rule against values computed by hand."""

import math

import pytest
import torch

from thickets.votes import HOWS, join, vote


def test_majority_of_labels_with_confidence():
    result = vote(torch.tensor([[1, 5], [2, 5], [2, 7]]))
    assert result.answers.tolist() == [2, 5]
    assert result.confidence.tolist() == pytest.approx([2 / 3, 2 / 3])
    assert result.prediction.tolist() == [[2, 5]]


def test_a_tie_goes_to_the_best_ranked_of_the_tied():
    assert vote(torch.tensor([[9], [4], [4], [9]])).answers.tolist() == [9]
    assert vote(torch.tensor([[3], [9], [4], [4], [9]])).answers.tolist() == [9]
    assert vote([["b"], ["a"], ["a"], ["b"], ["z"]]).answers == ["b"]


def test_floating_predictions_vote_by_argmax():
    logits = torch.tensor([[[0.0, 2.0, 1.0]], [[5.0, 0.0, 0.0]], [[0.0, 1.0, 0.5]]])
    result = vote(logits)
    assert result.answers.tolist() == [1]
    assert result.prediction.tolist() == [[[0.0, 1.0, 0.0]]]
    assert result.prediction.dtype == logits.dtype


def test_lists_of_any_hashable_answers():
    result = vote([["x", (1, 2), 3.5], ["y", (1, 2), 4], ["y", (9, 9), None]])
    assert result.answers == ["y", (1, 2), 3.5]
    assert result.confidence.tolist() == pytest.approx([2 / 3, 2 / 3, 1 / 3])
    assert result.prediction == [["y", (1, 2), 3.5]]


def test_none_abstains_and_counts_against_the_confidence():
    result = vote([[None, "a", None], [None, None, None], ["b", "a", None], ["b", "c", None]])
    assert result.answers == ["b", "a", None]
    assert result.confidence.tolist() == pytest.approx([0.5, 0.5, 0.0])
    assert vote([[math.nan], ["a"]]).answers == ["a"]


def test_a_row_with_nan_abstains():
    logits = torch.tensor([[[math.nan, 9.0]], [[math.nan, 9.0]], [[1.0, 0.0]]])
    for how in ("majority", "probabilities", "logits"):
        assert vote(logits, how).answers.tolist() == [0]
    result = vote(logits[:2])
    assert result.answers.tolist() == [-1]
    assert result.confidence.tolist() == [0.0]
    assert result.prediction.isnan().all()


def test_weighted_majority_and_its_exact_ties():
    labels = torch.tensor([[0], [1], [1]])
    assert vote(labels, "weighted", weights=[0.9, 0.2, 0.3]).answers.tolist() == [0]
    result = vote(labels, "weighted", weights=[1, 1, 2])
    assert result.answers.tolist() == [1]
    assert result.confidence.tolist() == [0.75]
    # 0.1 + 0.2 > 0.3 in float64: still a tie, and the best-ranked member wins it.
    assert vote(labels, "weighted", weights=[0.3, 0.1, 0.2]).answers.tolist() == [0]


def test_mean_of_probabilities_and_of_logits_differ():
    # softmax: (0.5, 0.5) and (1, e^-10) / (1 + e^-10): the mean of probabilities favours 0, as do the logits;
    # a third member with a huge logit for 1 decides the mean of logits alone.
    logits = torch.tensor([[[2.0, 0.0]], [[2.0, 0.0]], [[0.0, 30.0]]])
    probabilities = vote(logits, "probabilities")
    p = 1 / (1 + math.exp(-2))
    expected = (2 * p + 1 / (1 + math.exp(30))) / 3
    assert probabilities.answers.tolist() == [0]
    assert probabilities.confidence.tolist() == pytest.approx([expected])
    assert probabilities.prediction[0, 0].softmax(-1).tolist() == pytest.approx([expected, 1 - expected])
    means = vote(logits, "logits")
    assert means.answers.tolist() == [1]
    assert means.prediction[0, 0].tolist() == pytest.approx([4 / 3, 10.0])
    assert means.confidence.tolist() == pytest.approx([1 / (1 + math.exp(4 / 3 - 10))])
    assert vote(logits, "logits", weights=[1, 1, 0]).answers.tolist() == [0]


def test_masked_classes_do_not_spread_to_members_without_weight():
    logits = torch.tensor([[[1.0, -math.inf]], [[-math.inf, 1.0]]])
    assert vote(logits, "logits", weights=[1, 0]).answers.tolist() == [0]


def test_mean_and_median_of_numbers():
    values = torch.tensor([[1.0, 10.0], [2.0, 20.0], [6.0, math.nan], [7.0, math.nan]])
    mean = vote(values, "mean")
    assert mean.answers.tolist() == [4.0, 15.0]
    assert mean.spread.tolist() == pytest.approx([math.sqrt((9 + 4 + 4 + 9) / 4), 5.0])
    assert mean.answers.dtype == torch.float32
    assert mean.confidence is None
    assert vote(values, "median").answers.tolist() == [4.0, 15.0]
    assert vote(values[:3], "median").answers.tolist() == [2.0, 15.0]
    assert vote(values, "mean", weights=[3, 1, 0, 0]).answers.tolist() == [1.25, 12.5]
    assert vote([[1, None], [4.0, None]], "mean").prediction == [[2.5, None]]
    assert vote(torch.tensor([[1], [2]]), "median").answers.tolist() == [1.5]


def test_mean_keeps_the_shape_of_the_predictions():
    values = torch.randn(5, 3, 4, 2)
    assert torch.allclose(vote(values, "mean").answers, values.mean(0))
    assert torch.allclose(vote(values, "median").answers, values.median(0).values)
    assert vote(values, "mean").prediction.shape == (1, 3, 4, 2)


@pytest.mark.parametrize("how", ["majority", "weighted", "probabilities", "logits"])
def test_one_member_is_its_own_vote(how):
    logits = torch.randn(1, 6, 3)
    assert vote(logits, how, weights=[2.0] if how == "weighted" else None).answers.equal(logits[0].argmax(-1))


def test_majority_equals_counting_on_random_labels():
    labels = torch.randint(0, 4, (31, 200), generator=torch.Generator().manual_seed(0))
    result = vote(labels)
    for b in range(200):
        column = labels[:, b].tolist()
        most = max(column.count(a) for a in column)
        assert result.answers[b] == next(a for a in column if column.count(a) == most)
        assert float(result.confidence[b]) == pytest.approx(most / 31)


def test_lists_tensors_and_arrays_agree():
    labels = torch.randint(0, 3, (7, 11), generator=torch.Generator().manual_seed(1))
    expected = vote(labels)
    for form in (labels.tolist(), list(labels), labels.numpy()):
        result = vote(form)
        assert list(result.answers) == expected.answers.tolist()
        assert result.confidence.equal(expected.confidence)


def test_bool_and_empty_batches():
    assert vote(torch.tensor([[True], [False], [True]])).answers.tolist() == [True]
    assert vote(torch.zeros(3, 0, dtype=torch.int64)).answers.shape == (0,)
    assert vote([[], []]).answers == []
    assert vote(torch.zeros(3, 0, 4)).answers.shape == (0,)


def test_join_puts_groups_of_members_together():
    assert join([torch.zeros(2, 3), torch.ones(1, 3)]).shape == (3, 3)
    assert join([[["a"]], [["b"], ["c"]]]) == [["a"], ["b"], ["c"]]


@pytest.mark.parametrize(
    ("predictions", "how", "weights", "message"),
    [
        (torch.zeros(3, 2, dtype=torch.int64), "most", None, "how must be one of majority"),
        (torch.zeros(3, 2), "majority", None, r"predictions must be floating \[N, B, C\]"),
        (torch.zeros(3, 2, dtype=torch.int64), "logits", None, r"floating \[N, B, C\]"),
        ([["a"]], "probabilities", None, "lists of answers"),
        (torch.zeros(3, dtype=torch.int64), "majority", None, r"predictions must be \[N, B, ...\]"),
        (torch.zeros(3, 2, 4, dtype=torch.int64), "majority", None, r"labels \[N, B\]"),
        (torch.zeros(0, 2, dtype=torch.int64), "majority", None, "N >= 1"),
        (torch.zeros(2, 3, 0), "majority", None, "C >= 1"),
        ([], "majority", None, "at least one member"),
        ([["a"], ["a", "b"]], "majority", None, r"predictions\[1\] must have B=1 answers, got 2"),
        ([torch.zeros(2), torch.zeros(3)], "mean", None, "one shape for all members"),
        ([["a"], ["b"]], "weighted", None, "weights must be N=2 numbers"),
        ([["a"], ["b"]], "weighted", [1.0], r"weights must be \[N=2\]"),
        ([["a"], ["b"]], "weighted", [1.0, -1.0], "weights must be finite, >= 0"),
        ([["a"], ["b"]], "weighted", [1.0, math.nan], "weights must be finite"),
        ([["a"], ["b"]], "weighted", [0.0, 0.0], "not all 0"),
        ([["a"], ["b"]], "majority", [1.0, 2.0], "weights must be None for how='majority'"),
    ],
)
def test_bad_values_are_refused(predictions, how, weights, message):
    with pytest.raises(ValueError, match=message):
        vote(predictions, how, weights=weights)


@pytest.mark.parametrize(
    ("predictions", "how", "message"),
    [
        ("abc", "majority", "predictions must be"),
        (7, "majority", "predictions must be"),
        (["ab", "cd"], "majority", r"predictions\[0\] must be a list"),
        ([[["a"]], [["b"]]], "majority", "hashable"),
        ([["a"]], "mean", "must be numbers"),
    ],
)
def test_bad_types_are_refused(predictions, how, message):
    with pytest.raises(TypeError, match=message):
        vote(predictions, how)


def test_every_rule_is_listed():
    assert set(HOWS) == {"majority", "weighted", "probabilities", "logits", "mean", "median"}
