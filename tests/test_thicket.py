"""The artefact: saved, loaded, voted again in another process; damaged, edited or foreign: refused."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from search_case import SETTINGS, accuracy, batches, margin, network
from torch import nn

import thickets
from thickets.thicket import Thicket, ThicketError, _digest

X = batches(1, first=9)[0][0]


@functools.cache
def found():
    return thickets.search(network(), data=batches(), score=accuracy, **SETTINGS)


@functools.cache
def thicket(precision="exact", noise="normal"):
    arguments = SETTINGS | {"precision": precision, "noise": noise, "n": 10}
    return thickets.search(network(), data=batches(), score=accuracy, **arguments).thicket()


def save_edited(path, edit, new_digest=True):
    """Saves a thicket, changes its JSON and, as a careful forger would, its digest."""
    thicket().save(path)
    content = json.loads(path.read_text())
    edit(content)
    if new_digest:
        content.pop("digest", None)
        content["digest"] = _digest(content)
    path.write_text(json.dumps(content))
    return path


def test_the_file_comes_back_as_it_was(tmp_path):
    path = tmp_path / "experts.json"
    for saved in (thicket(), thicket("storage", "normal4"), found().thicket(0.5)):
        saved.save(path)
        assert Thicket.load(path) == saved
    assert [p.name for p in tmp_path.iterdir()] == ["experts.json"]
    assert path.stat().st_size < 5000


def test_it_says_where_it_comes_from():
    result = found()
    thicket = result.thicket()
    assert [(m.index, m.seed, m.sigma, m.score) for m in thicket.members] == [
        (r.index, r.seed, r.sigma, r.score) for r in result.top()
    ]
    assert thicket.contract == thickets.CONTRACT_VERSION
    assert thicket.base == thickets.perturb(network()).fingerprint
    assert (thicket.noise, thicket.precision) == ("normal", "exact")
    provenance = thicket.provenance
    assert (provenance.seed, provenance.n, provenance.sigmas, provenance.mirrored) == (
        11,
        40,
        (0.1, 0.3),
        False,
    )
    assert provenance.base_score == result.base.score
    assert provenance.thickets == thickets.__version__


def test_seeds_outlive_readers_that_know_only_doubles(tmp_path):
    thicket().save(tmp_path / "experts.json")
    content = json.loads((tmp_path / "experts.json").read_text(), parse_int=float)
    assert [int(m["seed"]) for m in content["members"]] == [m.seed for m in thicket().members]


def test_a_fresh_process_predicts_the_same_bits(tmp_path):
    path, output = tmp_path / "experts.json", tmp_path / "out.pt"
    thicket().save(path)
    subprocess.run(
        [sys.executable, Path(__file__).with_name("search_case.py"), "vote", path, output], check=True
    )
    theirs = torch.load(output)
    assert theirs["predictions"].equal(thicket().predictions(network(), X))
    ours = thicket().vote(network(), X, "probabilities")
    assert theirs["votes"][0].equal(ours.answers)
    assert theirs["votes"][1].equal(ours.confidence)


def test_predictions_are_those_of_the_members_whatever_the_chunk():
    thicket_ = thicket()
    pm = thickets.perturb(network())
    with pm.members([m.seed for m in thicket_.members], [m.sigma for m in thicket_.members]):
        expected = pm(X)
    for change in ({}, {"chunk": 1}, {"chunk": 3}, {"memory": 1}):
        assert thicket_.predictions(network(), X, **change).equal(expected)
    assert thicket_.predictions(pm, X).equal(expected)
    answers = thicket_.vote(network(), X).answers
    assert answers.equal(thickets.vote(expected).answers)


def test_a_weighted_vote_takes_the_scores():
    thicket_ = thicket()
    predictions = thicket_.predictions(network(), X)
    scores = [m.score for m in thicket_.members]
    expected = thickets.vote(predictions, "weighted", weights=scores)
    assert thicket_.vote(network(), X, "weighted").confidence.equal(expected.confidence)
    given = thicket_.vote(network(), X, "weighted", weights=[1, 0, 0, 0, 0]).answers
    assert given.equal(predictions[0].argmax(-1))


def test_the_exported_member_is_the_evaluated_one(tmp_path):
    for precision in ("exact", "storage"):
        thicket_ = thicket(precision)
        for rank in (0, 3):
            path = tmp_path / f"{precision}-{rank}.safetensors"
            thicket_.export(network(), rank, path)
            net = network()
            net.load_state_dict(load_file(path))
            assert torch.allclose(net(X), thicket_.predictions(network(), X)[rank], atol=1e-5)
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
            assert metadata["seed"] == str(thicket_.members[rank].seed)
            assert float(metadata["sigma"]) == thicket_.members[rank].sigma
            assert metadata["base"] == thicket_.base


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.embedding(ids))


def test_a_member_with_tied_parameters_is_exported_whole(tmp_path):
    torch.manual_seed(0)
    net = Tied().eval()
    ids, targets = torch.arange(7), torch.arange(7)
    result = thickets.search(net, data=[(ids, targets)], score=accuracy, **SETTINGS | {"n": 6})
    result.thicket().export(net, 0, tmp_path / "member.safetensors")
    state = load_file(tmp_path / "member.safetensors")
    assert state["head.weight"].equal(state["embedding.weight"])
    again = Tied().eval()
    again.load_state_dict(state)
    assert torch.allclose(again(ids), result.thicket().predictions(net, ids)[0], atol=1e-5)


def test_filters_are_part_of_it(tmp_path):
    result = thickets.search(
        network(), data=batches(), score=accuracy, **SETTINGS | {"n": 6}, include="0.*", exclude="*.bias"
    )
    result.thicket().save(tmp_path / "experts.json")
    loaded = Thicket.load(tmp_path / "experts.json")
    loaded.export(network(), 0, tmp_path / "member.safetensors")
    state, base = load_file(tmp_path / "member.safetensors"), network().state_dict()
    assert {name for name in base if not state[name].equal(base[name])} == {"0.weight"}


def test_an_error_in_predict_shows_where_it_was():
    def predict(pm, inputs):
        raise LookupError("no tokenizer")

    with pytest.raises(LookupError, match="no tokenizer") as caught:
        thicket().vote(network(), X, predict=predict, chunk=2)
    assert caught.traceback[-1].name == "predict"


def test_negative_scores_are_no_weights():
    result = thickets.search(network(), data=batches(), score=margin, **SETTINGS | {"n": 6})
    with pytest.raises(ValueError, match="weights must be given"):
        result.thicket().vote(network(), X, "weighted")
    assert len(result.thicket().vote(network(), X, "weighted", weights=[1] * 5).answers) == 25


# --- refusals ----------------------------------------------------------------------------------------------


def test_another_base_is_refused_naming_both_fingerprints(tmp_path):
    net = network()
    with torch.no_grad():
        net[0].weight[0, 0] += 1e-6
    other = thickets.perturb(net).fingerprint
    for use in (
        lambda: thicket().vote(net, X),
        lambda: thicket().export(net, 0, tmp_path / "member.safetensors"),
    ):
        with pytest.raises(ThicketError, match=f"base {thicket().base}, got another: {other}"):
            use()
    assert not list(tmp_path.iterdir())


def test_a_model_perturbed_otherwise_is_refused():
    with pytest.raises(ThicketError, match="perturbed with noise 'normal', got 'rademacher'"):
        thicket().vote(thickets.perturb(network(), noise="rademacher"), X)
    with pytest.raises(ThicketError, match="perturbed with precision 'exact', got 'storage'"):
        thicket().vote(thickets.perturb(network(), precision="storage"), X)
    with pytest.raises(ThicketError, match="perturbed with filters"):
        thicket().vote(thickets.perturb(network(), exclude="*.bias"), X)


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "experts.json"
    thicket().save(path)
    whole = path.read_bytes()
    for length in [*range(0, len(whole) - 2, 53), len(whole) - 2]:
        path.write_bytes(whole[:length])
        with pytest.raises(ThicketError, match=r"experts\.json.* is not complete JSON"):
            Thicket.load(path)


@pytest.mark.parametrize(
    "old_and_new", [('"sigma": 0.1', '"sigma": 0.2'), ('"score": 0', '"score": 1')], ids=str
)
def test_an_edit_by_hand_is_noticed(tmp_path, old_and_new):
    path = tmp_path / "experts.json"
    thicket().save(path)
    path.write_text(path.read_text().replace(*old_and_new, 1))
    with pytest.raises(ThicketError, match="was edited or damaged"):
        Thicket.load(path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(contract=2), "version 2 of the noise contract"),
        (lambda c: c.update(format="thickets.thicket/9"), "must have format"),
        (lambda c: c.update(extra=1), "extra: Extra inputs are not permitted"),
        (lambda c: c["members"][1].update(note="x"), r"members\.1\.note: Extra inputs"),
        (lambda c: c.pop("filters"), "filters: Field required"),
        (lambda c: c["filters"].update(backend="x"), r"filters\.backend: Extra inputs"),
        (lambda c: c["filters"].update(include=7), r"filters\.include"),
        (lambda c: c["members"][0].update(seed=5), r"members\.0\.seed: .*decimal string"),
        (lambda c: c["members"][0].update(seed="-5"), r"members\.0\.seed: .*decimal string"),
        (lambda c: c["members"][0].update(seed=str(2**64)), r"members\.0\.seed: .*less than"),
        (lambda c: c["members"][0].update(sigma="0.1"), r"members\.0\.sigma"),
        (lambda c: c["members"][0].update(sigma=True), r"members\.0\.sigma"),
        (lambda c: c.update(members=[]), "members: "),
        (lambda c: c.update(noise="pink"), "noise: "),
        (lambda c: c.update(precision="rough"), "precision: "),
        (lambda c: c.update(base="../../etc"), "base: "),
    ],
    ids=lambda value: value if isinstance(value, str) else "edit",
)
def test_a_careful_edit_must_still_be_valid(tmp_path, edit, message):
    with pytest.raises(ThicketError, match=message):
        Thicket.load(save_edited(tmp_path / "experts.json", edit))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not complete JSON"),
        ("[]", "must have format"),
        ("null", "must have format"),
        ('{"format": NaN}', "NaN is not a JSON number"),
        ("[" * 100_000, "is not complete JSON"),
        ("1" * 5000, "is not complete JSON"),
        (b"\xff\xfe\x00", "is not complete JSON"),
        ("__import__('os').system('touch owned')", "is not complete JSON"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_not_a_thicket_is_refused(tmp_path, text, message):
    path = tmp_path / "experts.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ThicketError, match=message):
        Thicket.load(path)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "experts.json"
    thicket().save(path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write '.*experts\.json': No space left"):
        found().thicket().save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["experts.json"]


def test_paths_that_cannot_be_written_are_named(tmp_path):
    for path in (tmp_path / "nowhere" / "experts.json", tmp_path, Path("/proc/experts.json")):
        with pytest.raises(OSError, match=f"cannot write '{path}'"):
            thicket().save(path)
        with pytest.raises(OSError, match=f"cannot write '{path}'"):
            thicket().export(network(), 0, path)
    with pytest.raises(FileNotFoundError):
        Thicket.load(tmp_path / "nothing.json")


def test_ranks_that_are_not_there_are_refused(tmp_path):
    for rank in (-1, 5):
        with pytest.raises(IndexError, match=r"index must be a rank in \[0, 5\)"):
            thicket().export(network(), rank, tmp_path / "member.safetensors")
