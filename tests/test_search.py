"""The search: what it finds, that nothing but (master seed, index) decides it, and that nothing stops it."""

import contextlib
import functools
import hashlib
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from search_case import SETTINGS, accuracy, batches, contents, margin, network
from torch import nn

import thickets
from thickets import sample_member, search
from thickets.randopt.evaluation import Member
from thickets.randopt.store import Store, StoreError
from thickets.statistics import wilson


def run(**change):
    return search(network(), **({"data": batches(), "score": margin} | SETTINGS | change))


@functools.cache
def whole():
    """The search that others must agree with."""
    return run()


class Counting:
    """A score that counts members, and does something on the way."""

    __qualname__ = margin.__qualname__

    def __init__(self, act=lambda scores: scores):
        self.members = 0
        self.act = act

    def __call__(self, predictions, targets):
        self.members += len(predictions)
        return self.act(margin(predictions, targets))


# --- members -----------------------------------------------------------------------------------------------


def test_members_are_pinned():
    """These values are part of every stored run: they must never change."""
    assert sample_member(0, 0, (1e-3, 2e-3)) == Member(0, 6862032215077421309, 1e-3)
    assert sample_member(0, 2**40, (1e-3, 2e-3)) == Member(2**40, 16109539971448768785, 1e-3)
    # The definition, word by word:
    words = [(2**64 - 1).to_bytes(8, "little"), (12).to_bytes(8, "little")]
    digest = hashlib.blake2b(b"".join(words), digest_size=16, person=b"thickets.member").digest()
    seed, choice = (int.from_bytes(part, "little") for part in (digest[:8], digest[8:]))
    sigmas = [0.1, 0.2, 0.3, 0.4, 0.5]
    assert sample_member(2**64 - 1, 12, sigmas) == Member(12, seed, sigmas[choice * 5 // 2**64])
    assert sample_member(2**64 - 1, 25, sigmas, mirrored=True) == Member(
        25, seed, -sigmas[choice * 5 // 2**64]
    )


def test_a_member_depends_on_master_seed_and_index_alone():
    sigmas = (1e-3, 2e-3, 3e-3)
    members = [sample_member(5, i, sigmas) for i in range(3000)]
    assert members[77] == sample_member(5, 77, (3e-3, 1e-3, 2e-3))  # a set has no order
    assert len({m.seed for m in members} | {sample_member(6, i, sigmas).seed for i in range(3000)}) == 6000
    for sigma in sigmas:
        assert abs(sum(m.sigma == sigma for m in members) - 1000) < 5 * math.sqrt(3000 * 2 / 9)
    assert max(m.seed for m in members) > 2**63  # all 64 bits are in use


def test_mirrored_members_come_in_pairs():
    for j in range(50):
        plus, minus = (sample_member(1, i, (0.1, 0.2), mirrored=True) for i in (2 * j, 2 * j + 1))
        assert plus.seed == minus.seed
        assert plus.sigma == -minus.sigma > 0


@pytest.mark.parametrize(
    ("master", "i", "message"), [(-1, 0, "seed must"), (2**64, 0, "seed must"), (0, -1, "i must")]
)
def test_members_out_of_range_are_refused(master, i, message):
    with pytest.raises(ValueError, match=message):
        sample_member(master, i, (0.1,))


# --- what a search finds -----------------------------------------------------------------------------------


def test_scores_are_those_of_the_materialised_members():
    result = whole()
    pm = thickets.perturb(network())
    net = network()
    for record in result.records[:10]:
        assert Member(record.index, record.seed, record.sigma) == sample_member(11, record.index, (0.1, 0.3))
        net.load_state_dict(pm.materialize(record.seed, record.sigma))
        expected = torch.cat([margin(net(x)[None], y) for x, y in batches()], 1)[0].detach()
        assert torch.allclose(record.examples, expected, atol=1e-5)
        assert record.score == pytest.approx(float(expected.double().mean()), abs=1e-5)
    base = torch.cat([margin(network()(x)[None], y) for x, y in batches()], 1).detach()
    assert result.base.score == pytest.approx(float(base.double().mean()), abs=1e-6)
    assert result.scores.tolist() == [record.score for record in result.records]
    assert not result.failures


def test_the_best_come_first():
    result = whole()
    order = sorted(result.scores.tolist(), reverse=True)
    assert [r.score for r in result.top()] == order[:5]
    assert [r.score for r in result.top(7)] == order[:7]
    assert [r.score for r in result.top(0.25)] == order[:10]
    assert len(result.top(0.001)) == 1
    assert len(result.top(1.0)) == 40
    assert len(result.top(1)) == 1


def test_equal_scores_are_ordered_by_index():
    result = run(score=lambda p, t: torch.zeros(p.shape[:2]))
    assert [r.index for r in result.top()] == [0, 1, 2, 3, 4]


def test_density_counts_members_above_the_base_per_sigma():
    result = whole()
    for row, sigma in zip(result.density(), (0.1, 0.3), strict=True):
        scores = [r.score for r in result.records if r.sigma == sigma]
        above = sum(score > result.base.score for score in scores)
        assert (row.sigma, row.n, row.above, row.share) == (
            sigma,
            len(scores),
            above,
            wilson(above, len(scores)),
        )


def test_the_base_and_the_global_generator_are_left_alone():
    net = network()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = torch.get_rng_state()
    search(net, data=batches(), score=margin, **SETTINGS)
    assert torch.get_rng_state().equal(state)
    assert all(tensor.equal(before[name]) for name, tensor in net.state_dict().items())


def test_a_perturbed_model_is_searched_as_it_is():
    pm = thickets.perturb(network())
    assert contents(search(pm, data=batches(), score=margin, **SETTINGS).records) == contents(whole().records)


@pytest.mark.parametrize(
    "change",
    [{"noise": "hadamard"}, {"precision": "storage"}, {"include": "0.*"}, {"backend": "reference"}],
    ids=str,
)
def test_a_perturbed_model_is_not_perturbed_otherwise(change):
    (name,) = change
    with pytest.raises(ValueError, match=f"{name} must be left out for a model already perturbed"):
        search(thickets.perturb(network()), data=batches(), score=margin, **SETTINGS, **change)


def test_noise_reaches_the_members():
    assert contents(run(noise="rademacher", n=5).records) != contents(run(n=5).records)
    assert contents(run(seed=12, n=5).records) != contents(run(n=5).records)


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = network()

    def forward(self, a, b):
        return self.layer(a + b)


@pytest.mark.parametrize(
    "form", [tuple, lambda pair: dict(zip("ab", pair, strict=True))], ids=["tuple", "dict"]
)
def test_inputs_may_be_a_tuple_or_a_dict(form):
    data = [(form((x, torch.zeros_like(x))), y) for x, y in batches()]
    result = search(Sum().eval(), data=data, score=margin, **SETTINGS | {"n": 6})
    assert len(result.scored) == 6


def test_predict_may_return_lists_of_answers():
    def predict(pm, x):
        return [["even" if c % 2 == 0 else "odd" for c in row] for row in pm(x).argmax(-1).tolist()]

    def score(predictions, targets):
        names = ["even" if t % 2 == 0 else "odd" for t in targets.tolist()]
        return torch.tensor([[float(a == b) for a, b in zip(row, names, strict=True)] for row in predictions])

    result = run(predict=predict, score=score)
    report = result.evaluate(batches(1, first=5))
    assert report.vote.value in {i / 25 for i in range(26)}
    votes = result.thicket().vote(network(), batches(1, first=5)[0][0], predict=predict)
    assert set(votes.answers) <= {"even", "odd"}


def test_a_generator_of_batches_is_read_once():
    assert contents(run(data=(b for b in batches())).records) == contents(whole().records)


def test_nothing_is_printed_off_a_terminal_and_a_bar_on_one(capsys, monkeypatch):
    run(n=5, progress=True)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    result = run(n=5, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "5/5" in err
    assert f"best {max(result.scores.tolist()):.4g}" in err
    run(n=5, progress=lambda: "9 tokens/s")
    assert "/s 9 tokens/s" in capsys.readouterr().err


# --- chunks, parts, extensions -----------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"chunk": 1}, {"chunk": 7}, {"chunk": 1000}, {"memory": 10_000}], ids=str)
def test_results_do_not_depend_on_chunks(change):
    assert contents(run(**change).records) == contents(whole().records)


def test_running_out_of_memory_only_makes_chunks_smaller():
    def act(scores):
        if len(scores) > 3:
            raise torch.OutOfMemoryError("too many")
        return scores

    assert contents(run(score=Counting(act), chunk=16).records) == contents(whole().records)


def test_a_larger_n_extends_a_run(tmp_path):
    store = tmp_path / "run.sqlite"
    run(n=15, store=store)
    score = Counting()
    result = run(store=store, score=score, chunk=8)
    assert score.members == 2 * (40 - 15)  # two batches; neither the base nor a scored member is run again
    assert contents(result.records) == contents(whole().records)
    score = Counting()
    assert contents(run(n=15, store=store, score=score).records) == contents(whole().records[:15])
    assert score.members == 0


def test_a_run_can_be_split(tmp_path):
    one, two = tmp_path / "one.sqlite", tmp_path / "two.sqlite"
    part = run(store=one, members=range(25))
    assert [r.index for r in part.records] == list(range(25))
    run(store=two, members=range(25, 40))
    with Store(one, part.run) as file:
        file.absorb(two)
    score = Counting()
    assert contents(run(store=one, score=score).records) == contents(whole().records)
    assert score.members == 0


def test_members_that_another_process_scores_meanwhile_are_left_to_it(tmp_path):
    store = tmp_path / "run.sqlite"

    def act(scores):
        if (
            score.members == 2 * 11
        ):  # the base and the first chunk of ten are through: another process comes by
            run(store=store, members=range(10, 30))
        return scores

    score = Counting(act)
    assert contents(run(store=store, score=score, chunk=10).records) == contents(whole().records)
    assert score.members == 2 * (1 + 10 + 10)


# --- failures ----------------------------------------------------------------------------------------------


def bad(predictions):
    """Which members a test lets fail: about a third, never the base."""
    return predictions[:, 0, 0] > -0.48


@pytest.mark.parametrize("chunk", [1, 6, 40])
def test_a_failing_member_takes_no_other_with_it(chunk):
    pm = thickets.perturb(network())
    with pm.members([r.seed for r in whole().records], [r.sigma for r in whole().records]):
        expected = bad(pm(batches()[0][0])).tolist()
    assert 3 < sum(expected) < 30

    def raising(predictions, targets):
        if bad(predictions).any() and len(targets) == 25 and targets.equal(batches()[0][1]):
            raise ArithmeticError("no answer")
        return margin(predictions, targets)

    def nan(predictions, targets):
        if targets.equal(batches()[0][1]):
            return margin(predictions, targets).masked_fill(bad(predictions)[:, None], math.nan)
        return margin(predictions, targets)

    for score, reason in ((raising, "ArithmeticError: no answer"), (nan, "the score of an example is nan")):
        result = run(score=score, chunk=chunk)
        assert result.failures == {i: reason for i, fails in enumerate(expected) if fails}
        good = [r for r, fails in zip(whole().records, expected, strict=True) if not fails]
        assert contents(result.scored) == contents(good)


def test_failures_are_kept_and_retried_on_request(tmp_path):
    store = tmp_path / "run.sqlite"

    def break_all(scores):
        if score.members > 2:  # the base is past
            raise OSError("the grader is down")
        return scores

    score = Counting(break_all)
    result = run(store=store, score=score, n=6)
    assert result.failures == dict.fromkeys(range(6), "OSError: the grader is down")
    with pytest.raises(ValueError, match=r"top_k=5 is more than the 0 members scored \(6 failed\)"):
        result.top()
    score = Counting()
    assert len(run(store=store, score=score, n=6).failures) == 6
    assert score.members == 0
    assert contents(run(store=store, n=6, retry_failures=True).records) == contents(whole().records[:6])


def test_errors_of_the_base_are_raised():
    def broken(predictions, targets):
        raise KeyError("label")

    with pytest.raises(KeyError, match="label"):
        run(score=broken)
    with pytest.raises(ValueError, match=r"score must be finite for the base model, but .* is nan"):
        run(score=lambda p, t: margin(p, t) * math.nan)
    with pytest.raises(ValueError, match=r"score must return \[N=1, B\].*got \(25,\)"):
        run(score=lambda p, t: margin(p, t)[0])


# --- interruptions -----------------------------------------------------------------------------------------


def test_ctrl_c_keeps_every_score(tmp_path):
    store = tmp_path / "run.sqlite"

    def interrupt(scores):
        if score.members > 2 * 21:
            raise KeyboardInterrupt
        return scores

    score = Counting(interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(store=store, score=score, chunk=5)
    score = Counting()
    assert contents(run(store=store, score=score, chunk=5).records) == contents(whole().records)
    assert score.members == 2 * 20


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)], ids=str)
def test_a_killed_process_loses_nothing_and_repeats_nothing(tmp_path, sent, code):
    store = tmp_path / "run.sqlite"
    process = subprocess.Popen([sys.executable, Path(__file__).with_name("search_case.py"), "search", store])
    try:
        deadline = time.monotonic() + 60
        while stored(store) < 10:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(sent)
    assert process.wait() == code
    kept = stored(store)
    assert 10 <= kept < 40
    score = Counting()
    assert contents(run(store=store, score=score, chunk=4).records) == contents(whole().records)
    assert score.members == 2 * (40 - kept)
    with Store(store) as file:
        assert len(file.records(0, 1000)) == 40


def stored(path):
    with contextlib.suppress(StoreError), Store(path) as file:
        return len(file.indices(0, 1000))
    return 0


# --- refusals ----------------------------------------------------------------------------------------------


def other_network():
    net = network()
    with torch.no_grad():
        net[0].bias[0] += 1e-3
    return net


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"noise": "normal4"}, "noise: file 'normal', this run 'normal4'"),
        ({"precision": "storage"}, "precision: file 'exact', this run 'storage'"),
        ({"seed": 12}, "seed: file 11, this run 12"),
        ({"sigma": 0.1}, r"sigmas: file \[0.1, 0.3\], this run \[0.1\]"),
        ({"mirrored": True}, "mirrored: file False, this run True"),
        ({"exclude": "2.*"}, "filters: file"),
        ({"data": batches(1)}, "data: file"),
        ({"score": accuracy}, "score: file 'margin', this run 'accuracy'"),
        ({"model": other_network()}, "base: file '[0-9a-f]+', this run '[0-9a-f]+'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_store_of_another_run_is_refused(tmp_path, change, named):
    arguments = {"model": network(), "data": batches(), "score": margin, "store": tmp_path / "run.sqlite"}
    arguments |= SETTINGS | {"n": 2, "top_k": 1}
    search(**arguments)
    with pytest.raises(StoreError, match=f"holds another run: {named}[^;]*$"):
        search(**arguments | change)
    search(**arguments)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sigma": -0.1}, ValueError, "sigma must be positive and finite"),
        ({"sigma": 0.0}, ValueError, "sigma must be positive"),
        ({"sigma": (0.1, math.nan)}, ValueError, "sigma must be positive and finite in float32, got nan"),
        ({"sigma": math.inf}, ValueError, "sigma must be positive and finite"),
        ({"sigma": 1e-60}, ValueError, "in float32, got 1e-60"),
        ({"sigma": ()}, ValueError, "sigma must hold at least one"),
        ({"sigma": (0.1, 0.1)}, ValueError, "sigma must not repeat"),
        ({"sigma": "0.1"}, ValueError, "sigma must be positive"),
        ({"n": 0}, ValueError, "n must be an integer >= 1, got 0"),
        ({"n": 2.5}, ValueError, "n must be an integer"),
        ({"seed": -1}, ValueError, r"seed must be an integer in \[0, 18446744073709551616\), got -1"),
        ({"seed": 2**64}, ValueError, "seed must"),
        ({"top_k": 41}, ValueError, "top_k must be at most n=40, got 41"),
        ({"top_k": 0}, ValueError, "top_k must be a count >= 1"),
        ({"top_k": 1.5}, ValueError, r"share in \(0, 1\]"),
        ({"top_k": math.nan}, ValueError, r"share in \(0, 1\]"),
        ({"top_k": "5"}, ValueError, "top_k must be an int"),
        ({"chunk": 0}, ValueError, "chunk must be None or"),
        ({"memory": "lots"}, ValueError, "memory must be 'auto' or bytes"),
        ({"members": range(30, 41)}, ValueError, r"members must be a range within \[0, n=40\)"),
        ({"members": [1, 2]}, ValueError, "members must be a range"),
        ({"data": []}, ValueError, "data must hold at least one"),
        ({"data": batches()[0]}, TypeError, "item 0 is Tensor; a single batch is given as"),
        ({"noise": "pink"}, ValueError, "noise must be"),
        ({"store": "/proc/run.sqlite"}, StoreError, "/proc/run.sqlite"),
    ],
    ids=lambda value: f"{value}" if isinstance(value, dict) else "",
)
def test_bad_arguments_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        run(**change)
