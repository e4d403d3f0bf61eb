"""Scorers by name and imported ones: what texts answer, what is right, and code that misbehaves."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from thickets.tasks.problems import Answer, Problem, extract_answers, score_answers
from thickets.tasks.scoring import SCORERS, check_answer, open_scorer
from thickets.tasks.worker import Worker, WorkerError, WorkerTimeout
from thickets.votes import vote


def problem(answer: object) -> Problem:
    return Problem("What?", answer=answer, id="p")


def judged(name: str, text: str, answer: object) -> tuple[str, bool, bool] | None:
    scorer = open_scorer(name)
    found = scorer.extract(text, problem(None))
    return None if found is None else (found.value, found.formatted, scorer.correct(found, problem(answer)))


@pytest.mark.parametrize(
    ("name", "text", "answer", "expected"),
    [
        ("number", "18", 18, ("18", True, True)),
        ("number", "<answer>18.0</answer>", "18", ("18", True, True)),
        ("number", "He has 18 dollars.", 18, ("18", False, True)),
        ("number", r"\boxed{\frac{1}{2}}", 0.5, ("1/2", True, True)),
        ("number", "none", 18, None),
        ("number:hashes", "It is 18\n#### 18", "18", ("18", True, True)),
        ("number:hashes", "#### $1,018 dollars", 1018, ("1018", False, True)),
        ("number:hashes", r"\boxed{18}", 18, ("18", False, True)),
        ("number:hashes", "18", 18, ("18", False, True)),
        ("number:hashes", "#### what\nThe answer is 5. I had 3", 5, ("5", False, True)),
        ("number:bare", " 18.\n", 18, ("18", True, True)),
        ("number:bare", "<answer>18</answer>", 18, ("18", False, True)),
        ("exact", "paris.", "Paris", ("paris", True, True)),
        ("exact", "Let me see.\n\n**Ｐaris**", "Paris", ("paris", False, True)),
        ("exact", "The answer is Paris, of course", "Paris", ("paris, of course", False, False)),
        ("exact:tags", "<answer>New\n York</answer>", "new york", ("new york", True, True)),
        ("exact", "Straße", "STRASSE", ("strasse", True, True)),
        ("choice", "B", "B", ("B", True, True)),
        ("choice", "(b)", "(B)", ("B", True, True)),
        ("choice", "A bird is (C), I think.", "C", ("C", False, True)),
        ("choice", "B) because A is wrong", "B", ("B", False, True)),
        ("choice", "A dog is what I saw; so B", "B", ("B", False, True)),
        ("choice:boxed", r"\boxed{\text{(D)}}", "d", ("D", True, True)),
        ("choice", "no idea", "A", None),
        ("choice", "A is the correct answer", "A", ("A", False, True)),
        ("contains", "I like  Paris!", "paris", ("i like paris!", True, True)),
        ("contains", "comparisons", "paris", ("comparisons", True, False)),
    ],
)
def test_named_scorers(name: str, text: str, answer: object, expected: object) -> None:
    assert judged(name, text, answer) == expected


@pytest.mark.parametrize("name", ["number", "exact:tags", "choice", "contains", "math:boxed", "countdown"])
def test_a_scorer_opens_again_by_its_name(name: str) -> None:
    assert open_scorer(name).name == name


@pytest.mark.parametrize("text", ["", " \n", "\u200b", "<answer></answer>"])
def test_nothing_is_no_answer(text: str) -> None:
    scorers = [open_scorer(name) for name in ("number", "choice", "math", "countdown")]
    assert [scorer.extract(text, problem(None)) for scorer in scorers] == [None] * 4


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("number", "many"),
        ("number", None),
        ("number", True),
        ("choice", "AB"),
        ("exact", [1]),
        ("exact", ""),
        ("contains", "**"),
        ("exact", " . "),
        ("countdown", {"numbers": "x", "target": 1}),
        ("countdown", {"numbers": [-1], "target": 1}),
    ],
)
def test_an_answer_that_no_text_can_equal_is_refused(name: str, answer: object) -> None:
    with pytest.raises(ValueError, match="answer of problem 'p' must be"):
        check_answer(open_scorer(name), problem(answer))


@pytest.mark.parametrize("spec", ["numbr", "", ":", "a:", ":b"])
def test_unknown_scorers_are_told_what_exists(spec: str) -> None:
    with pytest.raises(ValueError, match=f"one of {', '.join(SCORERS)}, or 'package.module:object'"):
        open_scorer(spec)


def test_unknown_marks_are_told_what_exists() -> None:
    with pytest.raises(ValueError, match="a mark of tags, boxed, hashes, bare or none, got 'box'"):
        open_scorer("number:box")


def test_members_vote_with_answers_and_the_vote_is_scored_as_they_are() -> None:
    scorer = open_scorer("number:hashes")
    problems = [problem(18), problem(5)]
    texts = [["#### 17", "?"], ["so 18.0", "#### 5"], ["#### 18", "5"]]
    answers = extract_answers(scorer, texts, problems)
    assert score_answers(scorer, answers, problems) == [[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]
    votes = vote(answers)
    assert votes.answers == [Answer("18"), Answer("5")]
    assert score_answers(scorer, votes.prediction, problems) == [[1.0, 1.0]]
    assert hash(Answer("18", True)) == hash(Answer("18", False))


SCORER = """
import os
import subprocess
import time

print("noise on the standard output")

class Words:
    def extract(self, text, problem):
        if text == "hang":
            time.sleep(60)
        if text == "raise":
            raise KeyError("boom")
        if text == "exit":
            os._exit(3)
        if text == "number":
            return 3
        if text == "child":
            sleeper = subprocess.Popen(["sleep", "60"])
            if problem.answer:
                return str(sleeper.pid)
            time.sleep(60)
        if text == "input":
            return input()
        if text == "pid":
            return str(os.getpid())
        return {"value": text, "formatted": False} if text == "sloppy" else text or None

    def correct(self, value, problem):
        if value == "yes":
            return "yes"
        return value == problem.answer["word"] and problem.prompt == "What?"
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    path = tmp_path / "own scorer.py"
    path.write_text(SCORER)
    return f"{path}:Words"


def test_an_imported_scorer_runs_in_a_process_of_its_own(own: str) -> None:
    scorer = open_scorer(own)
    assert scorer.name == own
    right = problem({"word": "é"})
    assert scorer.extract("é", right) == Answer("é")
    assert scorer.correct(Answer("é"), right) is True
    assert scorer.correct(Answer("e"), right) is False
    assert scorer.extract("", right) is None
    sloppy = scorer.extract("sloppy", right)
    assert sloppy is not None
    assert not sloppy.formatted
    assert scorer.extract("pid", right).value != str(os.getpid())


def test_a_scorer_that_raises_hangs_or_crashes_is_named_and_goes_on(own: str) -> None:
    scorer = open_scorer(own, limit=0.5)
    for text, said in [
        ("raise", "KeyError: 'boom'"),
        ("hang", "took more than 0.5 s"),
        ("exit", "ended its process"),
    ]:
        with pytest.raises(RuntimeError, match=said) as caught:
            scorer.extract(text, problem({"word": "a"}))
        assert own in str(caught.value)
        assert scorer.extract("a", problem({"word": "a"})) == Answer("a")
    with pytest.raises(RuntimeError, match="must return a text"):
        scorer.extract("number", problem(1))
    with pytest.raises(RuntimeError, match="must return a bool, got 'yes'"):
        scorer.correct(Answer("yes"), problem(1))


@pytest.mark.parametrize("spec", ["no.such.module:x", "json:no_such", "/no/such/file.py:x"])
def test_a_scorer_that_cannot_be_imported_is_named(spec: str) -> None:
    with pytest.raises(ValueError, match=f"{spec}' cannot be imported"):
        open_scorer(spec)


def test_a_module_of_the_search_path_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_scorer.py").write_text(SCORER + "\nwords = Words()\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert open_scorer("my_scorer:words").extract("a", problem("a")) == Answer("a")


def test_threads_share_a_worker_and_a_slow_call_is_killed_in_any_of_them(own: str) -> None:
    worker = Worker(own, limit=0.5)
    seen: dict[str, object] = {}

    def call(text: str) -> None:
        try:
            seen[text] = worker.call("extract", text, {})
        except WorkerTimeout:
            seen[text] = "timeout"

    threads = [threading.Thread(target=call, args=(text,)) for text in ["a", "hang", "b", "c"]]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {"a": "a", "hang": "timeout", "b": "b", "c": "c"}
    assert time.perf_counter() - start < 20


def test_a_worker_that_is_forgotten_ends_its_process(own: str) -> None:
    worker = Worker(own)
    pid = int(worker.call("extract", "pid", {}))
    os.kill(pid, 0)
    del worker
    gc.collect()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_a_scorer_started_ends_with_it(own: str) -> None:
    worker = Worker(own, limit=1.0)
    pid = int(worker.call("extract", "child", {"answer": True}))
    with pytest.raises(WorkerTimeout):
        worker.call("extract", "child", {"answer": False})
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]:
            break
        time.sleep(0.05)
    else:
        pytest.fail(f"process {pid} goes on")


def test_a_scorer_cannot_read_what_its_process_is_told(own: str) -> None:
    worker = Worker(own, limit=5.0)
    with pytest.raises(WorkerError, match="EOFError"):
        worker.call("extract", "input", {})
    assert worker.call("extract", "a", {}) == "a"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space")
def test_memory_is_limited() -> None:
    worker = Worker("builtins", memory=1 << 30)
    with pytest.raises(WorkerError, match="MemoryError"):
        worker.call("bytearray", 4 << 30)
