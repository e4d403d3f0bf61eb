"""The command line: what it writes, what it answers in a fresh process, and how it fails."""

import json
import signal
import sqlite3
import subprocess
import sys
import time

import numpy
import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("pydantic")
pytest.importorskip("sklearn")
pytest.importorskip("typer")

from commands import ONE_THREAD, call, good
from safetensors.torch import load_file

import thickets
from thickets.tasks import digits, experiments, run, signals

pytestmark = pytest.mark.usefixtures("one_thread")

COMMANDS = ["demo", "search", "pretrain", "signals", "digits", "vote", "export", "density", "bench", "info"]
SHELL = [sys.executable, "-c", "from thickets.cli import main; main()"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of `thickets digits`, small."""
    out = tmp_path_factory.mktemp("cli") / "digits"
    good("digits", "--shift", "rotation", "--n", 20, "--top-k", 3, "--out", out, "--json")
    return out / "rotation"


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_there(command):
    text = good(*command.split(), "--help")
    assert "Usage" in text
    assert command or all(name in text for name in COMMANDS)


# What works


def test_digits_prints_what_it_writes(folder):
    out = folder.parent
    printed = good("digits", "--shift", "rotation", "--n", 20, "--top-k", 3, "--out", out, "--json")
    report = json.loads(printed)
    assert report == json.loads((out / "report.json").read_text())
    assert report["cases"][0]["settings"]["top_k"] == 3
    assert {path.name for path in out.iterdir()} == {"rotation", "digits.png", "report.json", "report.md"}
    table = good("digits", "--shift", "rotation", "--n", 20, "--top-k", 3, "--out", out)
    assert "| digits: rotation | accuracy ↑ |" in table
    assert str(out) in table


def test_a_vote_in_a_fresh_process_is_that_of_the_run(folder):
    inputs = folder / "held_out.npz"
    ours = json.loads(good("vote", folder.parent, "--inputs", inputs, "--json"))
    fresh = subprocess.run(
        [*SHELL, "vote", folder, "--inputs", inputs, "--json"],
        capture_output=True,
        text=True,
        check=True,
        env=ONE_THREAD,
    )
    assert json.loads(fresh.stdout) == ours | {"run": str(folder)}
    report = json.loads((folder / "report.json").read_text())
    assert ours["measured"] == {"metric": "accuracy", **report["vote"]}
    with numpy.load(inputs) as arrays:
        images = torch.from_numpy(arrays["inputs"])
    thicket = thickets.Thicket.load(folder / "experts.json")
    assert ours["answers"] == thicket.vote(run.load_base(folder)[1], images).answers.tolist()


def test_vote_shows_a_table_and_takes_another_rule(folder, tmp_path):
    numpy.savetxt(tmp_path / "scans.csv", digits.scans()[0][:5].flatten(1), delimiter=",")
    shown = good("vote", folder, "--inputs", tmp_path / "scans.csv", "--how", "logits", "--limit", 3)
    assert "3 experts" in shown
    assert "3 of 5 examples shown." in shown


def test_export_writes_the_member_that_voted(folder, tmp_path):
    facts = json.loads(good("export", folder, "--member", 1, "--to", tmp_path / "one.safetensors", "--json"))
    expert = thickets.Thicket.load(folder / "experts.json").members[1]
    assert (facts["seed"], facts["sigma"]) == (expert.seed, expert.sigma)
    model = run.load_base(folder)[1]
    expected = thickets.perturb(model).materialize(expert.seed, expert.sigma)
    written = load_file(tmp_path / "one.safetensors")
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], expected[name]) for name in expected)
    model.load_state_dict(written)


def test_density_counts_the_members_above_the_base(folder):
    found = json.loads(good("density", folder, "--json"))
    with sqlite3.connect(folder / "run.sqlite") as file:
        (base,) = file.execute("SELECT score FROM members WHERE number = -1").fetchone()
        scores = [score for (score,) in file.execute("SELECT score FROM members WHERE number >= 0")]
    assert found["density"][0]["above"] == sum(score > base for score in scores)
    assert (found["density"][0]["n"], found["scored"], found["base"]) == (20, 20, base)
    assert good("density", folder / "run.sqlite").startswith("### Solution density")


def test_the_demo_runs_both_experiments(tmp_path, monkeypatch):
    networks = {task: task.network for task in (signals, digits)}
    monkeypatch.setattr(signals, "HELD_OUT", 4)
    monkeypatch.setattr(signals, "network", lambda regime, seed: networks[signals](regime, seed, steps=2))
    monkeypatch.setattr(digits, "network", lambda seed: networks[digits](seed, steps=10))
    report = json.loads(good("demo", "--n", 4, "--out", tmp_path / "demo", "--json"))
    assert [case["case"] for case in report["cases"]] == [
        "thicket", "plateau", "haystack", "rotation", "noise",
    ]  # fmt: skip
    assert len(report["families"]) == 2
    assert all(len(comparison["rows"]) == 7 for comparison in report["families"])
    assert len(list((tmp_path / "demo").rglob("experts.json"))) == 5
    assert len(list((tmp_path / "demo").rglob("*.png"))) == 4


def test_signals_takes_its_options(tmp_path):
    report = json.loads(
        good(
            "signals", "--regime", "haystack", "--n", 5, "--examples", 4, "--horizon", 2,
            "--target", "square", "--sigma", "0.01,0.02", "--top-k", 0.4, "--noise", "lowrank-2",
            "--store", tmp_path / "store", "--out", tmp_path / "out", "--seed", 3,
            "--backend", "reference", "--json",
        )
    )  # fmt: skip
    (case,) = report["cases"]
    assert case["options"] == {"seed": 3, "target": "square", "examples": 4, "horizon": 2}
    settings = {"noise": "lowrank-2", "sigmas": [0.01, 0.02], "seed": 3, "n": 5, "top_k": 2, "vote": "mean"}
    assert settings.items() <= case["settings"].items()
    assert (tmp_path / "store" / "signals-haystack.sqlite").exists()
    folder = tmp_path / "out" / "haystack"
    answers = json.loads(good("vote", folder, "--inputs", folder / "held_out.npz", "--json"))
    assert answers["measured"].pop("metric") == "MSE"
    assert answers["measured"] == pytest.approx(case["vote"], rel=1e-5)  # another backend, of low rank too
    assert numpy.shape(answers["answers"]) == numpy.shape(answers["spread"]) == (signals.HELD_OUT, 60)


def test_info_and_bench_print_json():
    assert {backend["name"] for backend in json.loads(good("info", "--json"))["backends"]} >= {"reference"}
    assert "reference" in good("info")
    layer = ("--layers", "8x16", "--rows", 2, "--families", "rademacher", "--members", 2, "--seconds", 0.01)
    (result,) = json.loads(good("bench", *layer, "--json"))["results"]
    assert set(result["ratios"]["rademacher"]) == {"x loop", "x floor"}
    assert "Geometric means" in good("bench", *layer, "--dtype", "bfloat16", "--device", "cpu")


# What fails


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits", "--n", 0], "n must be an integer >= 1, got 0"),
        (["digits", "--n", 5, "--top-k", 6], "top_k must be at most n=5, got 6"),
        (["digits", "--top-k", "many"], "top-k must be a count or a share, got 'many'"),
        (["digits", "--sigma", "nan"], "sigma must be positive and finite"),
        (["digits", "--sigma", "-0.1"], "sigma must be positive and finite"),
        (["digits", "--sigma", "big"], "sigma must be numbers such as 0.001,0.002, got 'big'"),
        (["digits", "--shift", "tilt"], "shift must be one of rotation, blur, noise, got 'tilt'"),
        (["digits", "--noise", "pink"], "noise must be"),
        (["digits", "--families", "normal,pink"], "noise must be"),
        (["digits", "--runs", 0, "--families", "all", "--n", 2], "runs must be at least 1, got 0"),
        (["digits", "--backend", "abacus"], "backend must be 'auto' or one of"),
        (["signals", "--regime", "forest"], "regime must be one of thicket, plateau, haystack"),
        (["signals", "--seed", -1, "--regime", "haystack"], "seed must be"),
        (["vote", "nowhere", "--inputs", "x.npy"], "run 'nowhere' is not a folder"),
        (["density", "nowhere"], "run 'nowhere' is not a folder"),
        (["export", "nowhere"], "run 'nowhere' is not a folder"),
        (["bench", "--layers", "8by8"], "layers must be such as 512x512"),
        (["bench", "--rows", "0"], "rows must be whole numbers >= 1, got '0'"),
        (["bench", "--device", "tpu"], "device must be one of cpu"),
        (["bench", "--dtype", "int8"], "dtype must be one of float32, bfloat16, float16 here, got 'int8'"),
        (["vote", "nowhere"], "--inputs"),
        (["fly"], "fly"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_bad_arguments_are_one_line_and_exit_code_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(digits, "network", lambda seed: digits.untrained(seed))
    result = call(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    if not result.stderr.startswith("Usage"):
        assert result.stderr.splitlines()[-1].startswith("error: ")


def test_foreign_and_damaged_runs_are_refused(folder, tmp_path):
    copy = tmp_path / "run"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    inputs = ("--inputs", copy / "held_out.npz")
    experts = (copy / "experts.json").read_text()
    for damage, message in (
        (experts[:100], "not complete JSON"),
        (experts.replace("0.03", "0.04"), "edited"),
    ):
        (copy / "experts.json").write_text(damage)
        result = call("vote", copy, *inputs)
        assert result.exit_code == 2
        assert message in result.stderr
    (copy / "experts.json").write_text(experts)
    other = run.open_case("digits", "rotation", tmp_path / "other", seed=1)
    (copy / "base.safetensors").write_bytes((tmp_path / "other" / "base.safetensors").read_bytes())
    assert other.seed == 1
    assert "model must be the base" in call("vote", copy, *inputs).stderr
    result = call("digits", "--shift", "rotation", "--n", 20, "--seed", 1, "--out", folder.parent)
    assert result.exit_code == 2
    assert "holds another run" in result.stderr
    result = call("digits", "--shift", "rotation", "--n", 20, "--noise", "normal4", "--out", folder.parent)
    assert result.exit_code == 1
    assert "holds another run: noise" in result.stderr


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    result = call("signals", "--regime", "haystack", "--n", 2, "--out", tmp_path / "file")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("error: ")


def test_ctrl_c_keeps_the_progress(tmp_path):
    """SIGINT to a real process in the middle of its search; the same command then goes on."""
    command = [*SHELL, "digits", "--shift", "rotation", "--out", tmp_path, "--json", "--n"]
    store = tmp_path / "rotation" / "run.sqlite"
    process = subprocess.Popen([*command, "200000"], stderr=subprocess.PIPE, text=True, env=ONE_THREAD)
    deadline = time.monotonic() + 120
    while not _scored(store) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.strip() == "interrupted: progress kept, the same command goes on from there"
    kept = _scored(store)
    assert 0 < kept < 200000
    again = subprocess.run([*command, "30"], capture_output=True, text=True, check=True, env=ONE_THREAD)
    assert json.loads(again.stdout)["cases"][0]["settings"]["n"] == 30
    assert _scored(store) == max(kept, 30)


def _scored(store):
    if not store.exists():
        return 0
    try:
        with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as file:
            return file.execute("SELECT count(*) FROM members WHERE number >= 0").fetchone()[0]
    except sqlite3.Error:  # not yet laid out
        return 0


def test_an_interrupt_anywhere_is_exit_code_130(monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiments, "run_experiment", interrupt)
    result = call("digits")
    assert result.exit_code == 130
    assert "progress kept" in result.stderr


def test_a_missing_package_is_said_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "find_spec", lambda package: None)
    result = call("demo", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "experiments need matplotlib, sklearn: pip install 'thickets[tasks]'" in result.stderr
    assert not (tmp_path / "out").exists()
