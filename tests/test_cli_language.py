"""The commands for language models: search, vote, density and export, from files to files."""

import json
import subprocess
import sys
from itertools import pairwise

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("matplotlib")
pytest.importorskip("typer")

import language_case
import language_task
from commands import ONE_THREAD, call, good

import thickets
from thickets import options
from thickets.language import models
from thickets.language.models import open_model
from thickets.tasks import pretrain

pytestmark = pytest.mark.usefixtures("one_thread")


def search(folder, *more):
    """The arguments of a small search; later ones win."""
    return (
        "search", "--model", folder / "model", "--task", folder / "task.jsonl", "--scorer", "number",
        "--max-new-tokens", language_task.NEW, "--train", 12, "--test", 20, "--n", 8, "--top-k", 3,
        "--out", folder / "run", "--sigma", 3e-2, "0.05", *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A folder with model, task and run, and what the search printed as JSON."""
    folder = language_task.world(tmp_path_factory.mktemp("cli"))
    return folder, json.loads(good(*search(folder), "--json"))


def test_search_prints_what_it_writes_and_goes_on(ran):
    folder, report = ran
    assert json.loads((folder / "run" / "report.json").read_text()) == report
    assert report["run"]["sigmas"] == [0.03, 0.05]
    assert (report["n"], report["k"]) == (8, 3)
    shown = good(*search(folder))
    assert "### Accuracy on 20 held-out problems" in shown
    assert f"| vote of the best K | {report['vote']['accuracy']['value']:.3f} [" in shown
    assert f"thickets vote {folder / 'run'} --inputs {folder / 'run' / 'held_out.jsonl'}" in shown


def test_a_vote_in_a_fresh_process_is_that_of_the_run(ran):
    folder, report = ran
    command = [sys.executable, "-c", "from thickets.cli import main; main()", "vote", "run"]
    fresh = subprocess.run(
        [*command, "--inputs", folder / "run" / "held_out.jsonl", "--json"],
        capture_output=True, text=True, check=True, env=ONE_THREAD, cwd=folder,
    )  # fmt: skip
    answers = json.loads(fresh.stdout)
    assert answers["measured"] == {"metric": "accuracy", **report["vote"]["accuracy"]}
    assert len(answers["answers"]) == len(answers["confidence"]) == len(answers["prompts"]) == 20
    assert answers["experts"] == 3


def test_a_vote_needs_no_answers(ran, tmp_path):
    file = tmp_path / "asked.jsonl"
    file.write_text('{"prompt": "what is é?"}\n\n{"prompt": "7 and 8?", "id": "x"}\n', encoding="utf-8")
    answers = json.loads(good("vote", ran[0] / "run", "--inputs", file, "--how", "weighted", "--json"))
    assert answers["measured"] is None
    assert len(answers["answers"]) == 2
    shown = good("vote", ran[0] / "run", "--inputs", file, "--limit", 1)
    assert "1 of 2 problems shown." in shown
    assert "| what is é? |" in shown


def test_density_counts_the_members_above_the_base(ran):
    folder, report = ran
    found = json.loads(good("density", folder / "run", "--json"))
    assert found["density"] == report["density"]
    assert (found["scored"], found["base"]) == (8, report["selection"]["base"])


def test_an_exported_expert_is_a_model_that_from_pretrained_opens(ran, tmp_path):
    folder, _ = ran
    facts = json.loads(good("export", folder / "run", "--member", 1, "--to", tmp_path / "one", "--json"))
    expert = thickets.Thicket.load(folder / "run" / "experts.json").members[1]
    assert (facts["seed"], facts["sigma"], facts["score"]) == (expert.seed, expert.sigma, expert.score)
    opened = open_model(str(tmp_path / "one"))
    expected = thickets.perturb(language_task.model()).materialize(expert.seed, expert.sigma)
    state = opened.model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert opened.tokenizer("7 é").input_ids == language_case.tokenizer()("7 é").input_ids


def test_a_run_finds_its_base_where_it_is_now(tmp_path):
    folder = language_task.world(tmp_path)
    good(*search(folder, "--n", 2, "--top-k", 1))
    (folder / "model").rename(folder / "moved")
    run, inputs = folder / "run", folder / "run" / "held_out.jsonl"
    assert call("vote", run, "--inputs", inputs).exit_code == 2
    good("vote", run, "--inputs", inputs, "--model", folder / "moved")
    good("export", run, "--to", folder / "expert", "--model", folder / "moved")
    result = call("vote", run, "--inputs", inputs, "--model", folder / "expert")
    assert result.exit_code == 2
    assert "is not the base of the run" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--sigma", "5e-4", "1e-3", "2e-3", "--n", "5"], ["5e-4", "1e-3", "2e-3"]),
        (["--sigma", "5e-4,1e-3", "--sigma", "2e-3"], ["5e-4,1e-3", "2e-3"]),
        (["--n", "5", "7"], []),
        (["--sigma"], []),
    ],
)
def test_several_values_behind_one_option(arguments, expected):
    gathered = options.gathered(arguments, "--sigma")
    values = [b for a, b in pairwise(gathered) if a == "--sigma"]
    assert values == expected
    assert [a for a in gathered if a != "--sigma"] == [a for a in arguments if a != "--sigma"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n", 0], "n must be an integer >= 1, got 0"),
        (["--top-k", 9], "top_k must be at most n=8, got 9"),
        (["--sigma", "big"], "sigma must be numbers such as 0.001,0.002"),
        (["--sigma", "nan"], "sigma must be positive and finite"),
        (["--model", "nowhere/at/all"], "model must be a folder, a hub's id or 'arithmetic'"),
        (["--model", "."], "is a folder without config.json"),
        (["--task", "chess"], "task must be one of countdown, gsm8k, math500, arithmetic"),
        (["--train", 1000], "must have 1000 problems to train"),
        (["--scorer", "feeling"], "scorer must be one of exact, number"),
        (["--noise", "pink"], "noise must be"),
        (["--dtype", "int8"], "dtype must be auto, float32, bfloat16, float16, got 'int8'"),
        (["--device", "tpu9"], "device must be auto, cpu or cuda, got 'tpu9'"),
        (["--how", "loud"], "how must be majority or weighted, got 'loud'"),
        (["--memory", "much"], "memory must be whole numbers >= 1, got 'much'"),
        (["--backend", "abacus"], "backend must be 'auto' or one of"),
        (["--max-new-tokens", 60], "context"),
        (["--chat"], "chat template"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_bad_arguments_are_one_line_and_exit_code_2(ran, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = call(*search(ran[0], "--out", tmp_path / "run", *arguments))
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert result.stdout == ""
    assert not (tmp_path / "run").exists()


def test_damaged_folders_are_refused(ran, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    inputs = ("--inputs", ran[0] / "run" / "held_out.jsonl")
    for damage, message in (("{", "is damaged"), ('{"format": "other"}', "must have format")):
        (run / "run.json").write_text(damage)
        result = call("vote", run, *inputs)
        assert result.exit_code == 2
        assert message in result.stderr
    (run / "run.json").write_bytes((ran[0] / "run" / "run.json").read_bytes())
    assert "has no experts yet: let its search finish" in call("vote", run, *inputs).stderr
    result = call("vote", ran[0] / "run", *inputs, "--how", "logits")
    assert "how must be majority or weighted, got 'logits'" in result.stderr
    result = call("export", ran[0] / "run", "--to", tmp_path / "one.safetensors")
    assert result.exit_code == 2
    assert "to must be a folder" in result.stderr
    assert call("export", ran[0] / "run", "--to", tmp_path / "one", "--member", 3).exit_code == 2
    result = call("export", ran[0] / "run", "--to", ran[0] / "model" / ".." / "model")
    assert result.exit_code == 2
    assert "to must be another folder than the base's" in result.stderr


def test_pretrain_writes_a_model_that_search_opens(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "PHASES", [pretrain.PHASES[0]._replace(steps=2)])
    assert f"thickets search --model {tmp_path / 'new'}" in good("pretrain", "--out", tmp_path / "new")
    opened = open_model(str(tmp_path / "new"))
    assert opened.identity["dtype"] == "float32"
    assert opened.tokenizer("7+8").input_ids == open_model("arithmetic").tokenizer("7+8").input_ids


def test_the_embedded_model_and_its_task_are_the_defaults(tmp_path):
    small = ("--n", 2, "--top-k", 1, "--train", 20, "--test", 20)
    report = json.loads(good("search", "--out", tmp_path / "run", *small, "--json"))
    assert (report["run"]["model"], report["run"]["task"]) == ("arithmetic", "arithmetic")
    assert report["run"]["sigmas"] == [0.01, 0.015, 0.02]
    assert 0.2 < report["base"]["accuracy"]["value"] < 0.9
    inputs = tmp_path / "run" / "held_out.jsonl"
    assert json.loads(good("vote", tmp_path / "run", "--inputs", inputs, "--json"))["measured"] == {
        "metric": "accuracy",
        **report["vote"]["accuracy"],
    }


def test_a_model_that_does_not_fit_is_said_in_words(ran, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "free_memory", lambda device: 1000)
    result = call(*search(ran[0], "--out", tmp_path / "run"))
    assert result.exit_code == 1
    assert "GiB in float32, and cpu has 0.0 GiB free: try a smaller dtype" in result.stderr


def test_models_without_tokenizer_or_of_another_kind_are_refused(tmp_path):
    language_task.model().save_pretrained(tmp_path / "mute")
    with pytest.raises(ValueError, match="has no tokenizer that can be opened"):
        open_model(str(tmp_path / "mute"))
    from transformers import T5Config, ViTConfig

    ViTConfig().save_pretrained(tmp_path / "seeing")
    language_case.tokenizer().save_pretrained(tmp_path / "seeing")
    with pytest.raises(ValueError, match="is no language model: Unrecognized configuration class"):
        open_model(str(tmp_path / "seeing"))
    T5Config().save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match="must be a causal language model, got the encoder-decoder 't5'"):
        open_model(str(tmp_path / "t5"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be opened"):
        open_model(str(tmp_path / "broken"))


def test_the_command_line_starts_without_transformers():
    code = "import sys, thickets.cli; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=ONE_THREAD).returncode == 0
