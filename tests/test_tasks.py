"""The experiments: data, base networks, one case from search to folder, the comparison of families."""

import json
import math
import zipfile
from pathlib import Path

import numpy
import pytest
import torch

pytest.importorskip("pydantic")
pytest.importorskip("safetensors")
pytest.importorskip("sklearn")

from safetensors.torch import save_file
from torch.func import functional_call

import thickets
from thickets.statistics import wilson
from thickets.tasks import digits, families, run, signals
from thickets.tasks.case import generator
from thickets.tasks.inputs import read_inputs
from thickets.thicket import Thicket

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"n": 12, "top_k": 3, "correlate": 5, "random": 2, "progress": False}


def small_signals(**options):
    return signals.case("haystack", **{"examples": 6, "horizon": 4} | options)


# Data


@pytest.mark.parametrize("name", signals.WAVES)
def test_signals_have_the_period_and_amplitude_that_are_said(name):
    length = 400
    x = signals.draw(name, 50, torch.Generator().manual_seed(0), length)
    assert x.shape == (50, length)
    assert x.dtype == torch.float32
    assert bool((x.abs().amax(1) <= 1).all())
    assert bool((x.abs().amax(1) > 0.25).all())
    rises = ((x[:, 1:] > 0) & (x[:, :-1] <= 0)).sum(1)  # one per period
    assert int(rises.min()) >= length // 20 - 1
    assert int(rises.max()) <= length // 8 + 1


def test_lines_are_straight():
    x = signals.draw("lines", 20, torch.Generator().manual_seed(0)).double()
    assert float((x[:, 2:] - 2 * x[:, 1:-1] + x[:, :-2]).abs().max()) < 1e-6


def test_a_roll_out_feeds_its_forecasts_back():
    model = signals.untrained(3)
    window = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    expected = []
    with torch.no_grad():
        rolled = model(window, steps=12)
        for _ in range(12):
            expected.append(model.next_value(window))
            window = torch.cat([window[:, 1:], expected[-1]], 1)
    assert torch.equal(rolled, torch.cat(expected, 1))


def test_members_roll_out_alike_inside_of_the_model_and_outside():
    pm = thickets.perturb(signals.untrained(1))
    context = signals.draw("sine", 3, torch.Generator().manual_seed(0))[:, :10]
    with pm.members([1, 2], [0.05, 0.05]):
        inside = pm(context, steps=6)
    window = context.repeat(2, 1)
    with pm.members([1, 2], [0.05, 0.05], fold=False):
        for _ in range(6):
            window = torch.cat([window[:, 1:], pm(window, steps=1)], 1)
    assert torch.equal(inside, window[:, 4:].reshape(2, 3, 6))


def test_the_selection_and_held_out_signals_differ():
    case = small_signals(examples=50)
    chosen, held_out = case.select[0]["context"], case.held_out[0]["context"]
    assert not any(torch.equal(a, b) for a in chosen for b in held_out)
    assert case.select[1].shape == (50, 4)
    assert case.held_out[1].shape == (signals.HELD_OUT, 60)


def test_the_splits_of_the_digits_are_disjoint_and_complete(monkeypatch):
    numbered = torch.arange(1797.0)[:, None, None].expand(-1, 8, 8)
    monkeypatch.setattr(digits, "scans", lambda: (numbered, torch.arange(1797)))
    parts = digits.split(5)
    assert [len(labels) for _, labels in parts.values()] == [900, 200, 697]
    assert torch.equal(torch.cat([labels for _, labels in parts.values()]).sort().values, torch.arange(1797))
    assert all(torch.equal(images[:, 0, 0].long(), labels) for images, labels in parts.values())
    assert not torch.equal(parts["select"][1], digits.split(6)["select"][1])


def test_shifts_do_what_they_say():
    images = digits.scans()[0][:20]
    torch.testing.assert_close(digits.rotate(images, 0.0), images)
    torch.testing.assert_close(digits.rotate(images, 90.0), torch.rot90(images, 1, (1, 2)), atol=1e-5, rtol=0)
    dot = torch.zeros(1, 8, 8)
    dot[0, 4, 4] = 1.0
    blurred = digits.blur(dot)
    assert float(blurred.sum()) == pytest.approx(1.0, abs=1e-6)
    assert float(blurred[0, 4, 5] / blurred[0, 4, 4]) == pytest.approx(math.exp(-1 / (2 * 0.8**2)), rel=1e-5)
    noise = digits.add_noise(images) - images
    assert float(noise.std()) == pytest.approx(0.3, rel=0.1)
    assert torch.equal(digits.add_noise(images), digits.add_noise(images))


def test_generators_differ_by_role_and_seed():
    draws = {(seed, role): torch.rand(1, generator=generator(seed, role)) for seed in (0, 1) for role in "ab"}
    assert len({float(value) for value in draws.values()}) == 4


# Base networks


def test_pretraining_is_deterministic_and_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, two = digits.network(0, steps=5), digits.network(0, steps=5)
    three = digits.network(1, steps=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one[1].weight, three[1].weight)
    assert not one.training


def test_pretraining_learns():
    images, labels = digits.split(0)["held out"]
    with torch.no_grad():
        right = digits.score(digits.network(0, steps=60)(images)[None], labels).mean()
    assert float(right) > 0.8
    x = torch.cat([signals.draw(name, 64, generator(9, "test")) for name in signals.FAMILIES])
    with torch.no_grad():
        errors = [
            float((signals.network("thicket", 0, steps).next_value(x[:, :10]) - x[:, 10:11]).square().mean())
            for steps in (1, 60)
        ]
    assert errors[1] < 0.5 * errors[0]


def test_scores_by_hand():
    predictions = torch.tensor([[[0.0, 2.0]], [[3.0, 1.0]]])
    assert signals.score(predictions, torch.tensor([[1.0, 1.0]])).tolist() == [[-1.0], [-2.0]]
    logits = torch.tensor([[[0.1, 0.9], [0.9, 0.1], [float("nan"), 0.0]]])
    assert digits.score(logits, torch.tensor([1, 1, 0])).tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: signals.case("forest"), "regime must be one of thicket, plateau, haystack, got 'forest'"),
        (lambda: small_signals(target="cosine"), "family must be one of lines, sine"),
        (lambda: small_signals(examples=0), "examples must be at least 1, got 0"),
        (lambda: small_signals(horizon=61), r"horizon must be in \[1, 60\], got 61"),
        (lambda: digits.case("tilt"), "shift must be one of rotation, blur, noise, got 'tilt'"),
        (lambda: signals.as_inputs(torch.zeros(3, 9)), r"inputs must be contexts \[B, 10\], got \(3, 9\)"),
        (lambda: digits.as_inputs(torch.zeros(3, 8)), r"inputs must be scans \[B, 8, 8\] or \[B, 64\]"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# One case


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("case")
    case = run.open_case("signals", "haystack", folder, seed=0, examples=6, horizon=4)
    return folder, run.run_case(case, folder, **SMALL)


def test_the_report_is_that_of_members_built_by_hand(outcome):
    """Materialised weights, the base's own forward, a plain mean: nothing of ours but the noise."""
    _, found = outcome
    case, (inputs, targets) = found.case, found.case.held_out
    pm = thickets.perturb(case.model)
    rolled = [
        functional_call(case.model, pm.materialize(record.seed, record.sigma), (inputs["context"],))
        for record in found.result.top()
    ]
    predictions = torch.stack(rolled).detach()
    errors = (predictions - targets).square().mean((1, 2))
    ensemble = (predictions.mean(0) - targets).square().mean()
    with torch.no_grad():
        base = (case.model(inputs["context"]) - targets).square().mean()
    report = found.as_dict()
    assert report["base"]["value"] == pytest.approx(float(base), rel=1e-5)
    assert report["top_1"]["value"] == pytest.approx(float(errors[0]), rel=1e-5)
    assert report["mean_top_k"]["value"] == pytest.approx(float(errors.mean()), rel=1e-5)
    assert report["vote"]["value"] == pytest.approx(float(ensemble), rel=1e-5)
    assert report["vote"]["low"] < report["vote"]["value"] < report["vote"]["high"]
    torch.testing.assert_close(found.ensemble, predictions.mean(0), atol=1e-5, rtol=1e-5)
    assert (report["metric"], report["settings"]["n"], report["settings"]["top_k"]) == ("MSE", 12, 3)


def test_the_members_are_scored_on_the_selection_data_and_its_horizon_alone(outcome):
    _, found = outcome
    case, (inputs, targets) = found.case, found.case.select
    pm = thickets.perturb(case.model)
    record = found.result.records[4]
    with torch.no_grad():
        rolled = functional_call(
            case.model, pm.materialize(record.seed, record.sigma), (inputs["context"], inputs["steps"])
        )
    assert rolled.shape == (6, 4)
    assert record.score == pytest.approx(-float((rolled - targets).square().mean()), rel=1e-5)


def test_the_folder_holds_all_that_a_later_process_needs(outcome):
    folder, found = outcome
    assert {path.name for path in folder.iterdir()} == {
        "base.safetensors", "experts.json", "held_out.npz", "report.json", "run.sqlite",
    }  # fmt: skip
    assert json.loads((folder / "report.json").read_text()) == json.loads(json.dumps(found.as_dict()))
    task, model, thicket = run.load_run(folder)
    assert task is signals
    assert thicket == Thicket.load(folder / "experts.json")
    inputs, targets = read_inputs(folder / "held_out.npz")
    votes = thicket.vote(model, task.as_inputs(inputs), task.HOW, stored=True)
    assert torch.equal(votes.answers, found.ensemble)
    assert torch.equal(targets, found.case.held_out[1])


def test_the_same_case_goes_on_where_it_was(outcome):
    folder, found = outcome
    case = run.open_case("signals", "haystack", folder, seed=0, examples=6, horizon=4)
    again = run.run_case(case, folder, **SMALL | {"n": 14})
    known = [(record.index, record.score, record.seconds) for record in found.result.records]
    assert [(r.index, r.score, r.seconds) for r in again.result.records[:12]] == known  # not evaluated again
    assert len(again.result.records) == 14


def test_another_case_is_refused_in_the_folder(outcome):
    folder, _ = outcome
    with pytest.raises(ValueError, match=r"holds another run.*choose another folder"):
        run.open_case("signals", "haystack", folder, seed=0, examples=7, horizon=4)


def test_a_damaged_base_is_refused(tmp_path):
    (tmp_path / "base.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is not the base of a run"):
        run.load_base(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "base.safetensors")
    with pytest.raises(ValueError, match="is not the base of a run"):
        run.load_base(tmp_path)


def test_a_run_is_found_or_refused(outcome, tmp_path):
    folder, _ = outcome
    assert run.find_run(folder) == folder
    with pytest.raises(ValueError, match="is not a folder"):
        run.find_run(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no experts"):
        run.find_run(tmp_path)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for file in ("experts.json", "base.safetensors"):
            (tmp_path / name / file).touch()
    with pytest.raises(ValueError, match=r"holds several: choose one of .*one, .*two"):
        run.find_run(tmp_path)


# Families


def test_no_two_runs_of_a_comparison_share_a_member(monkeypatch):
    outcomes = []

    def spy(*args, **kwargs):
        outcomes.append(run.run_case(*args, **kwargs))
        return outcomes[-1]

    monkeypatch.setattr(families, "run_case", spy)
    monkeypatch.setattr(signals, "HELD_OUT", 8)
    compared = families.compare(small_signals(), n=5, runs=2, families=("normal", "hadamard"), progress=False)
    seeds = [record.seed for o in outcomes for record in o.result.records]
    assert len(seeds) == len(set(seeds)) == 5 * 2 * 3
    assert [row.label for row in compared.rows] == ["normal", "hadamard", "normal again"]
    assert [o.result.run["noise"] for o in outcomes] == ["normal"] * 2 + ["hadamard"] * 2 + ["normal"] * 2
    row = compared.rows[1]
    above = sum(int((o.result.scores > o.result.base.value).sum()) for o in outcomes[2:4])
    assert row.density == wilson(above, 10)
    votes = [o.interval("vote").value for o in outcomes[2:4]]
    assert row.vote.value == pytest.approx(sum(votes) / 2)
    assert row.vote.low < min(votes) < max(votes) < row.vote.high  # Student's t of two runs is wide
    text = json.dumps(compared.as_dict(), allow_nan=False)
    assert json.loads(text)["rows"][0]["quantiles"]["0.01"]["high"] is None  # ten members cannot bound it


def test_quantiles_cover_the_truth_as_often_as_they_say():
    rng = torch.Generator().manual_seed(0)
    for q in (0.1, 0.5, 0.99):
        spans = [families.quantile_interval(torch.rand(200, generator=rng), q) for _ in range(400)]
        covered = sum(span.low <= q <= span.high for span in spans) / 400
        assert 0.925 <= covered <= 0.995
    with pytest.raises(ValueError, match="at least one number"):
        families.quantile_interval(torch.zeros(0), 0.5)


# Inputs from files


def test_inputs_come_from_every_format(tmp_path):
    x, y = numpy.random.default_rng(0).normal(size=(5, 10)), numpy.arange(5)
    numpy.save(tmp_path / "a.npy", x)
    numpy.savez(tmp_path / "a.npz", inputs=x, targets=y)
    numpy.savez(tmp_path / "b.npz", x)
    numpy.savetxt(tmp_path / "a.csv", x, delimiter=",")
    save_file({"inputs": torch.from_numpy(x)}, tmp_path / "a.safetensors")
    for name in ("a.npy", "a.npz", "b.npz", "a.csv", "a.safetensors"):
        inputs, targets = read_inputs(tmp_path / name)
        assert torch.equal(inputs, torch.from_numpy(x).float())
        assert (targets is not None) == (name == "a.npz")


def test_bad_inputs_are_refused(tmp_path):
    numpy.save(tmp_path / "pickled.npy", numpy.array([{}], dtype=object), allow_pickle=True)
    numpy.savez(tmp_path / "names.npz", a=numpy.zeros(3), b=numpy.zeros(3))
    numpy.save(tmp_path / "nan.npy", numpy.array([[1.0, numpy.nan]]))
    numpy.save(tmp_path / "empty.npy", numpy.zeros((0, 10)))
    numpy.savez(tmp_path / "targets.npz", inputs=numpy.zeros((3, 10)), targets=numpy.zeros(2))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "nan.npy").read_bytes()[:70])
    (tmp_path / "text.npz").write_text("text")
    with zipfile.ZipFile(tmp_path / "none.npz", "w"):
        pass
    (tmp_path / "text.csv").write_text("a,b\n")
    (tmp_path / "text.safetensors").write_text("text")
    (tmp_path / "text.pt").write_text("text")
    for name, message in {
        "pickled.npy": "cannot be read as .npy",
        "cut.npy": "cannot be read as .npy",
        "names.npz": "must hold an array `inputs`, got a, b",
        "none.npz": "must hold an array `inputs`, got none",
        "nan.npy": "must be finite",
        "empty.npy": r"must be numbers \[B, ...\]",
        "targets.npz": r"targets must be \[B=3, ...\], got \(2,\)",
        "text.npz": "cannot be read as .npz",
        "text.csv": "cannot be read as .csv",
        "text.safetensors": "cannot be read as .safetensors",
        "text.pt": "must be a file of .npy, .npz, .csv, .safetensors, got 'text.pt'",
        "missing.npy": "is not a file",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_inputs(Path(tmp_path / name))
