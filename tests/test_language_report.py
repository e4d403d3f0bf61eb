"""The numbers of a report, from answers made up at random: they must add up."""

import math

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("transformers")

from thickets.language.answering import Judge
from thickets.language.pages import examples, tables
from thickets.language.report import KINDS, Findings, counts
from thickets.randopt.run import SearchResult
from thickets.randopt.store import Record
from thickets.tasks.problems import Answer, Problem
from thickets.tasks.scoring import open_scorer

PROBLEMS = 40


def findings(seed=0, strict=False, k=5, n=12, how="majority"):
    """Members that answer at random: right, wrong, out of format, not at all."""
    draw = torch.Generator().manual_seed(seed)

    def answers():
        kinds = torch.randint(6, (PROBLEMS,), generator=draw).tolist()
        return [None if kind == 5 else Answer(str(kind % 3), kind < 3) for kind in kinds]

    problems = [Problem(f"problem {i} | `x`", answer="0") for i in range(PROBLEMS)]
    scores = torch.randint(2, (n + 1, 8), generator=draw).float()
    records = [
        Record(i, i, 0.1 * (1 + i % 2), float(row.double().mean()), row, None, 1.0)
        for i, row in zip(range(-1, n), scores, strict=True)
    ]
    result = SearchResult({"noise": "normal"}, n, records[0], tuple(records[1:]), k, None, None)
    sample = [(record, float(torch.rand((), generator=draw))) for record in records[1:5]]
    top = [answers() for _ in range(k)]
    texts = ["wrote | `this`"] * PROBLEMS
    scorer = Judge(open_scorer("number"))
    return Findings(result, problems, scorer, strict, how, result.top(), answers(), top, texts, sample)


@pytest.mark.parametrize("strict", [False, True], ids=["forgiving", "strict"])
@pytest.mark.parametrize("seed", range(5))
def test_the_sources_of_the_gain_add_up(seed, strict):
    report = findings(seed, strict).as_dict()
    sources, kinds = report["sources"], report["kinds"]
    assert sum(row["n"] for row in kinds) == PROBLEMS
    gained = sources["format_repaired"] + sources["reasoning_gained"] - sources["lost"]
    assert report["gain"]["value"] == pytest.approx(gained / PROBLEMS)
    accuracy = report["vote"]["accuracy"]
    assert accuracy["value"] - report["base"]["accuracy"]["value"] == pytest.approx(gained / PROBLEMS)
    assert sum(row["vote_right"] for row in kinds) == round(accuracy["value"] * PROBLEMS)
    for name in ("base", "top_1", "mean_top_k", "vote"):
        assert report[name]["accuracy"] == report[name]["strict" if strict else "forgiving"]
        for share in map(report[name].get, ("strict", "forgiving", "in_format", "answered")):
            assert 0 <= share["low"] <= share["value"] <= share["high"] <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_answer_of_the_base_is_counted_as_what_it_is(kind):
    given = {
        "right, in format": Answer("0"),
        "right, out of format": Answer("0", formatted=False),
        "wrong, in format": Answer("1"),
        "wrong, out of format": Answer("1", formatted=False),
        "no answer": None,
    }[kind]
    found = findings()
    found.base[:] = [given] * PROBLEMS
    (row,) = [row for row in found.kinds() if row["n"]]
    assert (row["base"], row["n"]) == (kind, PROBLEMS)


def test_strict_votes_are_of_formatted_answers_alone():
    found = findings(strict=True, k=3)
    found.top[:] = [[Answer("0", formatted=False)] * PROBLEMS] * 2 + [[Answer("1")] * PROBLEMS]
    assert {answer.value for answer in found.votes.answers} == {"1"}
    assert {answer.value for answer in found.vote(3, strict=False).answers} == {"0"}
    assert found.as_dict()["vote"]["strict"]["value"] == 0
    assert found.as_dict()["vote"]["forgiving"]["value"] == 1


def test_a_weighted_vote_weighs_by_score():
    found = findings(k=3, how="weighted")
    found.top[:] = [[Answer("0")] * PROBLEMS, [Answer("1")] * PROBLEMS, [Answer("1")] * PROBLEMS]
    best, second, third = (record.value for record in found.experts)
    expected = "0" if best >= second + third else "1"
    assert {answer.value for answer in found.votes.answers} == {expected}


@pytest.mark.parametrize("k", [1, 2, 5, 39, 40, 41, 50, 1000])
def test_the_curve_runs_from_one_to_all(k):
    chosen = counts(k)
    assert (chosen[0], chosen[-1]) == (1, k)
    assert chosen == sorted(set(chosen))
    assert len(chosen) <= 41
    assert k > 40 or chosen == list(range(1, k + 1))


def test_what_is_undefined_is_none():
    found = findings(n=5, k=1)
    found = Findings(**{**vars_of(found), "sample": []})
    report = found.as_dict()
    assert report["rank_correlation"] is None
    assert report["held_out_density"] == []
    assert all(math.isfinite(report["gain"][key]) for key in ("value", "low", "high"))


def test_the_page_keeps_texts_in_their_cells():
    found = findings()
    report = {**found.as_dict(), "run": {"noise": "normal", "strict": False, "asked_format": "a digit"}}
    for table in tables(report):
        assert {len(row) for row in table.rows} == {len(table.heads)}
        assert table.markdown().count("\n| ") == len(table.rows) + 2
    rows = [line for line in examples(found).splitlines() if line.startswith("| `")]
    assert rows
    assert {line.count("|") for line in rows} == {5}


def vars_of(found):
    """The fields of findings, without what was computed from them."""
    return {name: getattr(found, name) for name in Findings.__dataclass_fields__}
