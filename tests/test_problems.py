"""Tasks: where problems come from, that train and test never overlap, and what is refused in words."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thickets.tasks import problems
from thickets.tasks.countdown import generate, solutions
from thickets.tasks.expressions import numbers, parse, value
from thickets.tasks.problems import TASKS, Problem, open_task
from thickets.tasks.records import read_problems


def write(path: Path, *records: object) -> Path:
    path.write_text(
        "\n".join(json.dumps(r) if not isinstance(r, str) else r for r in records), encoding="utf-8"
    )
    return path


def own(path: Path, n: int, start: int = 0) -> Path:
    return write(path, *({"prompt": f"What is {i}?", "answer": i} for i in range(start, start + n)))


def contents(chosen: tuple[Problem, ...]) -> list[str]:
    return [problem.content for problem in chosen]


def test_a_problem_has_a_prompt_or_messages() -> None:
    asked = Problem(" How\n many? ", answer=3)
    assert asked.content == "How many?"
    assert asked.chat == ({"role": "user", "content": " How\n many? "},)
    assert asked.id == Problem("How many?").id != Problem("How few?").id
    messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"})
    assert Problem(messages=messages).chat == messages
    for wrong in ({}, {"prompt": "a", "messages": messages}, {"prompt": ""}, {"messages": ()}):
        with pytest.raises(ValueError, match="a problem"):
            Problem(**wrong)


def test_own_problems_are_split_by_seed_without_overlap(tmp_path: Path) -> None:
    file = own(tmp_path / "mine.jsonl", 50)
    task = open_task(str(file), train=30, test=20, scorer="number")
    assert (len(task.train), len(task.test), task.scorer.name) == (30, 20, "number")
    assert not set(contents(task.train)) & set(contents(task.test))
    again = open_task(str(file), train=10, test=20, scorer="number")
    assert again.test == task.test
    assert again.train == task.train[:10]
    assert open_task(str(file), train=30, test=20, seed=1, scorer="number").test != task.test


def test_the_split_does_not_depend_on_the_order_of_the_file(tmp_path: Path) -> None:
    records = [{"prompt": f"What is {i}?", "answer": i} for i in range(20)]
    one = open_task(str(write(tmp_path / "one.jsonl", *records)), train=5, test=5, scorer="number")
    other = open_task(str(write(tmp_path / "two.jsonl", *records[::-1])), train=5, test=5, scorer="number")
    assert (one.train, one.test) == (other.train, other.test)


def test_a_problem_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    lines = [{"prompt": f"What  is {i % 5}?", "answer": i % 5} for i in range(20)]
    file = write(tmp_path / "mine.jsonl", *lines, {"prompt": " What is 3?\n", "answer": 3})
    task = open_task(str(file), train=3, test=2, scorer="number")
    assert len({*contents(task.train), *contents(task.test)}) == 5
    with pytest.raises(ValueError, match="must have 4 problems to train and 2 others to test, got 5 in all"):
        open_task(str(file), train=4, test=2, scorer="number")


def test_a_folder_has_its_own_test_problems_and_no_leak_to_train(tmp_path: Path) -> None:
    own(tmp_path / "train.jsonl", 10)
    own(tmp_path / "test.jsonl", 8, start=6)
    task = open_task(str(tmp_path), train=6, test=8, scorer="number")
    assert sorted(problem.answer for problem in task.test) == list(range(6, 14))
    assert sorted(problem.answer for problem in task.train) == list(range(6))
    with pytest.raises(
        ValueError, match="7 problems to train and 8 others to test, got 6 to train and 8 to test"
    ):
        open_task(str(tmp_path), train=7, test=8, scorer="number")
    (tmp_path / "test.jsonl").unlink()
    assert len(open_task(str(tmp_path), train=6, test=4, scorer="number").test) == 4


def test_messages_keep_their_roles_and_are_told_apart_from_prompts(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Größe? 大きさ"}, {"role": "assistant", "content": "¿"}]
    file = write(
        tmp_path / "a.jsonl", {"messages": messages, "answer": "é", "id": 7}, {"prompt": "x", "answer": "y"}
    )
    task = open_task(str(file), train=1, test=1, scorer="exact")
    chat = next(problem for problem in (*task.train, *task.test) if problem.messages)
    assert (list(chat.messages), chat.answer, chat.id) == (messages, "é", "7")
    nameless = read_problems(
        write(tmp_path / "b.jsonl", {"prompt": "x", "id": None}, {"prompt": "y", "id": 0})
    )
    assert [problem.id for problem in nameless] == [Problem("x").id, "0"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "it is not JSON"),
        ('{"prompt": "a", "answer": NaN}', "NaN is no JSON"),
        ("[1]", "it must be an object"),
        ("[" * 100_000, "it is not JSON"),
        ("{}", "either a prompt or messages"),
        ('{"prompt": "", "answer": 1}', '"prompt" must be a text'),
        ('{"prompt": 3, "answer": 1}', '"prompt" must be a text, got 3'),
        (
            '{"prompt": "a", "messages": [{"role": "user", "content": "b"}], "answer": 1}',
            "either a prompt or messages",
        ),
        ('{"messages": [], "answer": 1}', "must not be empty"),
        ('{"messages": "a", "answer": 1}', "messages must be a list"),
        ('{"messages": [{"role": "user"}], "answer": 1}', "messages must be a list"),
        ('{"prompt": "a"}', 'must have "answer"'),
        ('{"prompt": "\\ud800", "answer": 1}', "surrogate"),
        ('{"prompt": "a", "answer": "\\ud800"}', "surrogate"),
    ],
)
def test_a_malformed_line_is_named_by_its_number(tmp_path: Path, line: str, said: str) -> None:
    file = write(tmp_path / "mine.jsonl", {"prompt": "a", "answer": 1}, "", line)
    with pytest.raises(ValueError, match=rf"mine.jsonl, line 3: .*{said}"):
        open_task(str(file), train=1, test=1, scorer="number")


def test_what_else_is_refused(tmp_path: Path) -> None:
    file = own(tmp_path / "mine.jsonl", 5)
    with pytest.raises(
        ValueError, match=rf"task must be one of {', '.join(TASKS)}, a .jsonl file .* got 'coutdown'"
    ):
        open_task("coutdown")
    with pytest.raises(ValueError, match=r"scorer must be given .* one of exact, number"):
        open_task(str(file), train=1, test=1)
    with pytest.raises(ValueError, match="data must be None where the task is a file"):
        open_task(str(file), train=1, test=1, scorer="number", data=file)
    with pytest.raises(ValueError, match="got 0 in all"):
        open_task(str(write(tmp_path / "empty.jsonl", "")), train=1, test=1, scorer="number")
    with pytest.raises(ValueError, match=r"folder with train\.jsonl"):
        open_task(str(tmp_path), train=1, test=1, scorer="number")
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "é"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.jsonl must be UTF-8"):
        open_task(str(tmp_path / "latin.jsonl"), train=1, test=1, scorer="number")
    with pytest.raises(ValueError, match="must be a number, got 'many'"):
        open_task(
            str(
                write(
                    tmp_path / "many.jsonl", {"prompt": "a", "answer": "many"}, {"prompt": "b", "answer": 1}
                )
            ),
            train=1,
            test=1,
            scorer="number",
        )
    for name in ("train", "test"):
        for count in (0, -1, True, 2.0):
            with pytest.raises(ValueError, match=f"{name} must be a number of problems >= 1"):
                open_task("countdown", **{name: count})


def test_problems_to_vote_on_need_no_answer(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.jsonl", {"prompt": "a"}, {"question": "How many?"}, {"prompt": "b", "answer": 2}
    )
    read = read_problems(file, "gsm8k")
    assert [problem.answer for problem in read] == [None, None, 2]
    assert "How many?" in read[1].prompt
    assert "####" in read[1].prompt
    with pytest.raises(ValueError, match=r"line 2: .*either a prompt or messages"):
        read_problems(file)
    with pytest.raises(ValueError, match="at least one problem"):
        read_problems(write(tmp_path / "none.jsonl", "\n"))
    with pytest.raises(ValueError, match="is not a file"):
        read_problems(tmp_path / "missing.jsonl")


def test_countdown_is_generated_solvable_and_reproducible() -> None:
    task = open_task("countdown", train=40, test=20, seed=3)
    assert open_task("countdown", train=40, test=20, seed=3).train == task.train
    assert open_task("countdown", train=10, test=20, seed=3).test == task.test
    assert open_task("countdown", train=40, test=20, seed=4).test != task.test
    both = (*task.train, *task.test)
    assert len({tuple(sorted(problem.answer["numbers"])) for problem in both}) == 60
    for problem in both:
        given, target = problem.answer["numbers"], problem.answer["target"]
        assert all(str(n) in problem.prompt for n in [*given, target])
        assert target in solutions(tuple(given))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=3))
def test_solutions_use_every_number_once_and_make_their_target(given: list[int]) -> None:
    found = solutions(tuple(given))
    assert sum(given) in found
    for target, written in found.items():
        expression = parse(written)
        assert value(expression) == target
        assert sorted(numbers(expression)) == sorted(given)


@pytest.mark.parametrize(
    ("text", "value_", "formatted", "right"),
    [
        ("<think>hm</think> <answer>(5 - 2) * 8</answer>", "(5-2)*8", True, True),
        ("<answer>8 × (5 − 2)</answer>", "(5-2)*8", True, True),
        (r"<answer>8 \times \left(5-2\right)</answer>", "(5-2)*8", True, True),
        ("<answer>(5-2)*8 = 24</answer>", "(5-2)*8", False, True),
        (r"\boxed{8\cdot(5-2)}", "(5-2)*8", False, True),
        ("First 5-2 = 3.\nThen 8*(5-2) = 24, done.", "(5-2)*8", False, True),
        ("<answer>24</answer>", "24", True, False),
        ("<answer>5+2+8</answer>", "2+5+8", True, False),
        ("<answer>(5-2)*8*1</answer>", "(5-2)*1*8", True, False),
        ("<answer>8*3</answer>", "3*8", True, False),
    ],
)
def test_countdown_reads_and_judges_expressions(text: str, value_: str, formatted: bool, right: bool) -> None:
    task = open_task("countdown", train=1, test=1)
    problem = Problem("q", answer={"numbers": [2, 5, 8], "target": 24})
    answer = task.scorer.extract(text, problem)
    assert (answer.value, answer.formatted, task.scorer.correct(answer, problem)) == (
        value_,
        formatted,
        right,
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no idea",
        "<answer>x</answer>",
        "<answer>1/0</answer>",
        "<answer>8/(5-5)*0</answer>",
        "- 5",
        "1.",
        "24",
        "<answer>" + "(" * 2000,
    ],
)
def test_countdown_without_an_expression_is_no_answer(text: str) -> None:
    task = open_task("countdown", train=1, test=1)
    assert task.scorer.extract(text, task.train[0]) is None


def test_countdown_from_a_file(tmp_path: Path) -> None:
    records = [problem.answer for problem, _ in zip(generate(0), range(6), strict=False)]
    file = write(tmp_path / "games.jsonl", *records)
    assert len(open_task("countdown", train=4, test=2, data=file).train) == 4
    with pytest.raises(ValueError, match=r'line 1: "numbers" .from 0. and "target" must be whole numbers'):
        open_task("countdown", train=1, test=1, data=write(file, {"numbers": [1, 2.5], "target": 3}))
    with pytest.raises(ValueError, match=r"must be whole numbers, got \[-1, 2\] and 3"):
        open_task("countdown", train=1, test=1, data=write(file, {"numbers": [-1, 2], "target": 3}))


def test_a_game_of_the_same_numbers_in_another_order_is_the_same(tmp_path: Path) -> None:
    games = [{"nums": [1, 2, n], "target": 3 + n} for n in range(3, 8)]
    turned = [{"numbers": game["nums"][::-1], "target": game["target"]} for game in games]
    task = open_task("countdown", train=2, test=3, data=write(tmp_path / "games.jsonl", *games, *turned))
    assert len({tuple(sorted(p.answer["numbers"])) for p in (*task.train, *task.test)}) == 5
    write(tmp_path / "train.jsonl", *games)
    write(tmp_path / "test.jsonl", *turned[:3])
    with pytest.raises(ValueError, match="got 2 to train and 3 to test"):
        open_task("countdown", train=3, test=3, data=tmp_path)


def test_gsm8k_from_files(tmp_path: Path) -> None:
    for name, n in (("train", 6), ("test", 4)):
        write(
            tmp_path / f"{name}.jsonl",
            *({"question": f"{name} {i}?", "answer": f"It is <<1+1=2>>2.\n#### {i},000"} for i in range(n)),
        )
    task = open_task("gsm8k", train=5, test=4, data=tmp_path)
    assert {problem.answer for problem in task.test} == {"0,000", "1,000", "2,000", "3,000"}
    answer = task.scorer.extract("so\n#### 3000", task.test[0])
    assert [task.scorer.correct(answer, problem) for problem in task.test].count(True) == 1
    with pytest.raises(ValueError, match=r'train\.jsonl, line 1: "question" must be a text'):
        open_task("gsm8k", train=1, test=1, data=write(tmp_path / "train.jsonl", {"answer": "1"}).parent)


def test_math500_from_files(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    file = write(
        tmp_path / "math.jsonl",
        {"problem": "What is half?", "answer": r"\frac{1}{2}"},
        {"problem": "And twice that?", "solution": r"Clearly \boxed{1}."},
    )
    task = open_task("math500", train=1, test=1, data=file)
    by_answer = {problem.answer: problem for problem in (*task.train, *task.test)}
    assert set(by_answer) == {r"\frac{1}{2}", "1"}
    half = by_answer[r"\frac{1}{2}"]
    assert task.scorer.correct(task.scorer.extract(r"It is \boxed{0.5}", half), half)
    with pytest.raises(ValueError, match=r'line 1: "solution" must have its answer in .boxed'):
        open_task("math500", data=write(file, {"problem": "a", "solution": "b"}))


@pytest.mark.parametrize("name", ["gsm8k", "math500"])
def test_the_network_is_asked_for_what_no_file_holds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thickets.tasks.records.find_spec", lambda package: None)
    with pytest.raises(RuntimeError, match="pip install datasets, or give a local copy as data"):
        open_task(name)

    def offline(*arguments: str, split: str) -> list[dict[str, str]]:
        raise ConnectionError(f"no route to {arguments[0]}")

    monkeypatch.setattr("thickets.tasks.records.find_spec", lambda package: object())
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=offline))
    with pytest.raises(RuntimeError, match="could not be loaded, give a local copy as data: ConnectionError"):
        open_task(name)

    def online(*arguments: str, split: str) -> list[dict[str, str]]:
        return [
            {"question": f"{split} {i}", "problem": f"{split} {i}", "answer": f"#### {i}"} for i in range(6)
        ]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=online))
    task = open_task(name, train=3, test=3)
    assert not set(contents(task.train)) & set(contents(task.test))


def test_every_named_task_is_a_module_with_a_source() -> None:
    for name, module in TASKS.items():
        assert callable(problems.import_module(module).source), name
