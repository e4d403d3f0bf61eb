"""A run on a language task: scores and votes against members alone, resuming, and what is refused."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("matplotlib")

import language_task
from PIL import Image

import thickets
from thickets.language import answering as answering_module
from thickets.language import run as running
from thickets.language.folder import read_texts
from thickets.language.generation import decode
from thickets.language.models import open_model
from thickets.randopt.store import Store
from thickets.tasks.problems import open_task
from thickets.tasks.scoring import open_scorer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A folder with model, task and the run, and its report."""
    folder = language_task.world(tmp_path_factory.mktemp("language"))
    return folder, language_task.run(folder)


def records(folder):
    with Store(folder / "run" / "run.sqlite") as store:
        return store.base(), store.records(0, 2**62)


def correct(texts, problems):
    scorer = open_scorer("number")
    answers = [scorer.extract(text, problem) for text, problem in zip(texts, problems, strict=True)]
    return answers, [a is not None and scorer.correct(a, p) for a, p in zip(answers, problems, strict=True)]


def test_scores_are_those_of_the_materialised_members_alone(ran):
    folder, _ = ran
    task = open_task(str(folder / "task.jsonl"), train=12, test=20, scorer="number")
    pm = thickets.perturb(language_task.model())
    base, members = records(folder)
    assert len(members) == 10
    assert len({member.score for member in members}) > 1
    for record in (base, *members[:4]):
        state = pm.materialize(record.seed, record.sigma)
        texts = [language_task.text_alone(state, problem.prompt) for problem in task.train]
        assert record.examples.tolist() == correct(texts, task.train)[1]


def test_the_folder_holds_what_the_report_says(ran):
    folder, report = ran
    run = folder / "run"
    assert json.loads((run / "report.json").read_text()) == report
    names = {path.name for path in run.iterdir()} - {"run.sqlite-shm", "run.sqlite-wal"}
    assert names == {
        "run.json", "run.sqlite", "experts.json", "held_out.jsonl", "answers.jsonl",
        "report.json", "report.md", "scores.png", "votes.png", "transfer.png",
    }  # fmt: skip
    base, members = records(folder)
    best = sorted(members, key=lambda r: (-r.score, r.index))[:3]
    experts = thickets.Thicket.load(run / "experts.json").members
    assert [e.index for e in experts] == [r.index for r in best]
    assert report["selection"] == {"base": base.score, "best": best[0].score}
    assert report["speed"]["tokens_per_second"] > 0
    asked = [json.loads(line)["prompt"] for line in (run / "held_out.jsonl").read_text().splitlines()]
    task = open_task(str(folder / "task.jsonl"), train=12, test=20, scorer="number")
    assert asked == [problem.prompt for problem in task.test]


def test_accuracies_are_those_of_the_texts(ran):
    folder, report = ran
    task = open_task(str(folder / "task.jsonl"), train=12, test=20, scorer="number")
    texts = read_texts(folder / "run", 20)
    experts = thickets.Thicket.load(folder / "run" / "experts.json").members
    _, base = correct(texts[-1], task.test)
    answers, right = zip(*(correct(texts[e.index], task.test) for e in experts), strict=True)
    voted = []
    for b, problem in enumerate(task.test):
        values = [row[b].value for row in answers if row[b] is not None]
        voted.append(bool(values) and Counter(values).most_common(1)[0][0] == problem.answer)
    assert report["base"]["accuracy"]["value"] == pytest.approx(sum(base) / 20)
    assert report["top_1"]["accuracy"]["value"] == pytest.approx(sum(right[0]) / 20)
    assert report["mean_top_k"]["accuracy"]["value"] == pytest.approx(sum(map(sum, right)) / 60)
    assert report["vote"]["accuracy"]["value"] == pytest.approx(sum(voted) / 20)
    assert report["curve"][-1]["value"] == report["vote"]["accuracy"]["value"]
    assert report["curve"][0]["value"] == report["top_1"]["accuracy"]["value"]
    assert report["gain"]["value"] == pytest.approx((sum(voted) - sum(base)) / 20)
    assert {*texts} == {-1, *(e.index for e in experts), *range(5)}


def test_pictures_are_drawn(ran):
    for name in ("scores", "votes", "transfer"):
        image = Image.open(ran[0] / "run" / f"{name}.png").convert("RGB")
        colours = {colour for count, colour in image.getcolors(maxcolors=2**24) if count > 50}
        assert image.width == 1650
        assert (213, 94, 0) in colours  # the base, in orange
        assert len(colours) > 3


def test_the_report_is_a_page(ran):
    folder, report = ran
    text = (folder / "run" / "report.md").read_text()
    assert "### Accuracy on 20 held-out problems" in text
    assert f"| base | {report['base']['accuracy']['value']:.3f} [" in text
    assert text.count("![") == 3


def test_more_members_go_on_where_it_was_and_nothing_is_made_twice(tmp_path, monkeypatch):
    folder = language_task.world(tmp_path)
    language_task.run(folder, n=4, top_k=2)
    _, before = records(folder)
    answers = folder / "run" / "answers.jsonl"
    lines = answers.read_text().splitlines()
    # As after a crash in the middle of a line.
    answers.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:30])
    report = language_task.run(folder, n=8, top_k=2, chunk=3)
    _, after = records(folder)
    assert [r.examples.tolist() for r in after[:4]] == [r.examples.tolist() for r in before]
    assert [r.seconds for r in after[:4]] == [r.seconds for r in before]
    assert len(after) == 8
    kept = [json.loads(line)["index"] for line in answers.read_text().splitlines() if line.endswith("}")]
    assert len(kept) == len(set(kept)) == len(read_texts(folder / "run", 20))

    def refuse(*_, **__):
        raise AssertionError("generated again")

    monkeypatch.setattr("thickets.language.answering.decode", refuse)
    again = language_task.run(folder, n=8, top_k=2)
    timing = {"seconds", "speed", "machine"}
    assert {k: v for k, v in again.items() if k not in timing} == {
        k: v for k, v in report.items() if k not in timing
    }


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_new_tokens": 4}, "max_new_tokens: 5 there, 4 now"),
        ({"sigma": 0.03}, r"sigmas: \[0.03, 0.05\] there, \[0.03\] now"),
        ({"noise": "rademacher"}, "noise: 'normal' there, 'rademacher' now"),
        ({"strict": True}, "strict: False there, True now"),
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"test": 21}, "test: "),
        ({"scorer": "number:boxed"}, "scorer: "),
        ({"temperature": 0.5}, "temperature: "),
        ({"dtype": "bfloat16"}, "dtype: 'float32' there, 'bfloat16' now"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_run_in_the_same_folder_is_refused(ran, fields, named):
    folder, _ = ran

    def times():  # but for those of files that SQLite makes to read beside a writer
        files = [path for path in (folder / "run").iterdir() if not path.name.startswith("run.sqlite-")]
        return {path: path.stat().st_mtime_ns for path in files}

    before = times()
    with pytest.raises(ValueError, match=f"holds another run.*{named}"):
        language_task.run(folder, **fields)
    assert times() == before


def test_a_run_that_scored_nothing_gives_its_folder_to_another(tmp_path, monkeypatch):
    folder = language_task.world(tmp_path)
    task = open_task(str(folder / "task.jsonl"), train=12, test=20, scorer="number")
    bad = replace(task, scorer=Flaky((task.train[0].prompt, None)))
    with monkeypatch.context() as patch:
        patch.setattr(running, "open_task", lambda *_, **__: bad)
        with pytest.raises(RuntimeError, match="scorer 'flaky': no"):
            language_task.run(folder, n=2, top_k=1)
    report = language_task.run(folder, n=2, top_k=1, correlate=0, noise="rademacher")
    assert (report["run"]["scorer"], report["run"]["noise"]) == ("number", "rademacher")


def test_a_folder_with_scores_of_another_kind_is_left_alone(ran, tmp_path):
    (tmp_path / "run.sqlite").write_bytes(b"scores")
    settings = language_task.settings(ran[0] / "model", ran[0] / "task.jsonl", n=2, top_k=1)
    with pytest.raises(ValueError, match="holds a run of another kind: choose another folder"):
        running.run_search(settings, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.sqlite"]


def test_answers_of_a_run_whose_scores_are_gone_are_not_those_of_the_next(tmp_path):
    folder = language_task.world(tmp_path)
    language_task.run(folder, n=2, top_k=1, correlate=0)
    before = read_texts(folder / "run", 20)
    (folder / "run" / "run.sqlite").unlink()
    language_task.run(folder, n=2, top_k=1, correlate=0, max_new_tokens=2)
    after = read_texts(folder / "run", 20)
    assert before[-1] != after[-1] == [text[:2] for text in before[-1]]


def test_a_base_whose_files_changed_is_refused_and_a_moved_one_is_not(tmp_path):
    folder = language_task.world(tmp_path)
    language_task.run(folder, n=2, top_k=1, correlate=0)
    moved = language_task.save_model(tmp_path / "elsewhere")
    settings = replace(language_task.settings(moved, folder / "task.jsonl"), n=2, top_k=1, correlate=0)
    running.run_search(settings, folder / "run")
    model = language_task.model()
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    for where, message in (
        ("model", "has changed since the search"),
        ("elsewhere", "is not the base of the run"),
    ):
        model.save_pretrained(tmp_path / where)
        with pytest.raises(ValueError, match=message):
            running.run_search(replace(settings, model=str(tmp_path / where)), folder / "run")


def test_strict_counts_formatted_answers_alone(tmp_path):
    folder = language_task.world(tmp_path)
    report = language_task.run(folder, strict=True, n=4, top_k=2)
    assert report["vote"]["accuracy"] == report["vote"]["strict"]
    base, _ = records(folder)
    assert base.score <= records_base(folder)


def records_base(folder):
    """The base's score on the same problems in any format."""
    task = open_task(str(folder / "task.jsonl"), train=12, test=20, scorer="number")
    state = language_task.model().state_dict()
    return sum(correct([language_task.text_alone(state, p.prompt) for p in task.train], task.train)[1]) / 12


class Flaky:
    """A scorer that raises on one text about one problem; on any, if that is None."""

    name = "flaky"

    def __init__(self, bad):
        self.bad = bad

    def extract(self, text, problem):
        if problem.prompt == self.bad[0] and self.bad[1] in (text, None):
            raise RuntimeError("scorer 'flaky': no")
        return open_scorer("number").extract(text, problem)

    def correct(self, answer, problem):
        return answer.value == problem.answer


def test_a_scorer_that_raises_fails_its_member_alone(ran, tmp_path, monkeypatch):
    folder, _ = ran
    task = open_task(str(folder / "task.jsonl"), train=12, test=20, scorer="number")
    base, members = records(folder)
    pm, asked = thickets.perturb(language_task.model()), task.train[0].prompt
    texts = {
        r.index: language_task.text_alone(pm.materialize(r.seed, r.sigma), asked) for r in (base, *members)
    }
    bad = next(text for text in texts.values() if text != texts[-1])
    monkeypatch.setattr(running, "open_task", lambda *_, **__: replace(task, scorer=Flaky((asked, bad))))
    settings = language_task.settings(folder / "model", folder / "task.jsonl", n=10)
    report = running.run_search(settings, tmp_path / "run")
    assert {int(i) for i in report["failures"]} == {i for i, text in texts.items() if text == bad}
    assert set(report["failures"].values()) == {"RuntimeError: scorer 'flaky': no"}
    assert "members failed; the first, " in (tmp_path / "run" / "report.md").read_text()


def test_a_scorer_that_raises_on_a_held_out_text_leaves_the_report(ran, tmp_path, monkeypatch):
    folder, report = ran
    task = open_task(str(folder / "task.jsonl"), train=12, test=20, scorer="number")
    scorer = Flaky((task.test[0].prompt, None))
    monkeypatch.setattr(running, "open_task", lambda *_, **__: replace(task, scorer=scorer))
    settings = language_task.settings(folder / "model", folder / "task.jsonl")
    found = running.run_search(settings, tmp_path / "run")
    texts = read_texts(tmp_path / "run", 20)
    assert found["unread"] == {"answers": len(texts), "first": "RuntimeError: scorer 'flaky': no"}
    assert found["base"]["answered"]["value"] <= report["base"]["answered"]["value"]
    page = (tmp_path / "run" / "report.md").read_text()
    assert f"The scorer failed on {len(texts)} held-out answers, which count as wrong; the first: " in page
    assert report["unread"] is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"chat": True}, "chat template"),
        ({"max_new_tokens": 60}, "context"),
        ({"max_new_tokens": 0}, "max_new_tokens must be an integer"),
        ({"temperature": -1.0}, "temperature must be a number > 0"),
        ({"train": 50}, "must have 50 problems to train and 20 others to test"),
        ({"scorer": None}, "scorer must be given"),
        ({"noise": "pink"}, "noise must be"),
        ({"sigma": (0.1, float("nan"))}, "sigma must be positive and finite"),
        ({"how": "mean"}, "how must be majority or weighted, got 'mean'"),
        ({"n": 2}, "top_k must be at most n=2, got 3"),
        ({"batch": 0}, "batch must be"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_run_is_said_before_anything_is_written(ran, tmp_path, fields, message):
    settings = language_task.settings(ran[0] / "model", ran[0] / "task.jsonl", **fields)
    with pytest.raises(ValueError, match=message):
        running.run_search(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_chat_template_is_used_where_there_is_one(ran, tmp_path):
    template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    language_task.save_model(tmp_path / "model", chat_template=template)
    assert open_model(str(tmp_path / "model")).tokenizer.chat_template == template
    task = ran[0] / "task.jsonl"
    common = {"n": 1, "top_k": 1, "correlate": 0, "test": 4}
    chat = running.run_search(language_task.settings(tmp_path / "model", task, **common), tmp_path / "a")
    plain = running.run_search(
        language_task.settings(tmp_path / "model", task, chat=False, **common), tmp_path / "b"
    )
    assert (chat["run"]["chat"], plain["run"]["chat"]) == (True, False)
    texts = [read_texts(tmp_path / name, 4)[-1] for name in "ab"]
    prompts = [
        json.loads(line)["prompt"] for line in (tmp_path / "a" / "held_out.jsonl").read_text().splitlines()
    ]
    state = language_task.model().state_dict()
    assert texts[0] == [language_task.text_alone(state, f"{prompt} ") for prompt in prompts]
    assert texts[1] == [language_task.text_alone(state, prompt) for prompt in prompts]
    assert texts[0] != texts[1]


def test_drawn_answers_do_not_depend_on_chunks(ran, tmp_path):
    found = []
    for name, chunk, batch in (("a", 1, None), ("b", 3, 7)):
        settings = language_task.settings(
            ran[0] / "model", ran[0] / "task.jsonl", temperature=1.5, n=3, top_k=1, chunk=chunk, batch=batch,
            test=12, correlate=0,
        )  # fmt: skip
        running.run_search(settings, tmp_path / name)
        with Store(tmp_path / name / "run.sqlite") as store:
            found.append([record.examples.tolist() for record in store.records(-1, 3)])
        found.append(read_texts(tmp_path / name, 12))
    greedy = read_texts(ran[0] / "run", 20)
    assert found[:2] == found[2:]
    assert found[1][-1] != greedy[-1][:12]


def test_problems_of_a_member_that_do_not_fit_are_halved(ran, monkeypatch):
    folder, _ = ran
    task = open_task(str(folder / "task.jsonl"), train=12, test=20, scorer="number")
    opened = open_model(str(folder / "model"))
    answering = running.answering_of(language_task.settings(folder / "model", folder), task, opened)
    pm, calls = thickets.perturb(opened.model), []

    def scarce(pm, prompts, decoding):
        calls.append(len(prompts))
        if len(prompts) * len(pm.active[0]) > 4:
            raise torch.OutOfMemoryError("no more")
        return decode(pm, prompts, decoding)

    def texts(seeds):
        with pm.members(seeds, [0.03] * len(seeds), fold=False):
            return answering.texts(pm, task.train)

    expected = texts([5])
    monkeypatch.setattr(answering_module, "decode", scarce)
    with pytest.raises(torch.OutOfMemoryError):  # two members are the search's to part
        texts([5, 6])
    assert texts([5]) == expected
    assert calls == [12, 12, 6, 3, 3, 3, 3]
    monkeypatch.setattr(answering_module, "decode", lambda pm, prompts, _: scarce(pm, [0] * 5, None))
    answering.batch = 1
    with pytest.raises(torch.OutOfMemoryError):
        texts([5])


def test_no_result_depends_on_how_many_problems_run_at_once(ran, tmp_path):
    settings = language_task.settings(ran[0] / "model", ran[0] / "task.jsonl", batch=5, chunk=1)
    report = running.run_search(settings, tmp_path / "run")
    keys = ("base", "vote", "curve", "density", "selection", "run")
    assert {key: report[key] for key in keys} == {key: ran[1][key] for key in keys}
