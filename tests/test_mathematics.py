"""The scorer `math`: equal expressions vote together and are right, however they are written."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from thickets.tasks.mathematics import Mathematics
from thickets.tasks.problems import Answer, Problem

pytest.importorskip("math_verify")


@pytest.fixture(scope="module")
def scorer() -> Mathematics:
    return Mathematics("boxed")


def problem(answer: object) -> Problem:
    return Problem("What?", answer=answer)


def value(scorer: Mathematics, text: str) -> str | None:
    answer = scorer.extract(text, problem(None))
    return None if answer is None else answer.value


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\frac{1}{2}", "0.5"),
        (r"\dfrac24", r"\frac12"),
        (r"\frac{1}{\sqrt 2}", r"\frac{\sqrt{2}}{2}"),
        ("1,000", "1000"),
        (r"\$18.90", "18.9"),
        (r"90^\circ", "90"),
        (r"10\%", "10"),
        (r"5\text{ cm}", "5"),
        ("-q+p", "p - q"),
        (r"\left(3,\frac{\pi}{2}\right)", r"(3, \pi/2)"),
        (r"\{3,2,1\}", "1,2,3"),
        (r"\text{Evelyn}", "evelyn"),
        (r"\sqrt{50}", r"5\sqrt2"),
        ("(x+1)^2", "x^2 + 2x + 1"),
        ("x(x+1)", "x^2+x"),
        (r"\frac{3}{x}+1", r"\frac{3+x}{x}"),
        (r"\frac{x+1}{2}", r"\frac{x}{2} + \frac12"),
        (r"\text{June 20}", "June 20"),
        (r"x \in [-2,7]", "[-2,7]"),
        (r"90\degree", "90"),
        ("90°", "90"),
        ("6-5i", "-5i + 6"),
        (r"-1-i\sqrt3", r"-1-\sqrt{3}i"),
        ("4210_5", "4210_{5}"),
        (r"10:30 \text{ a.m.}", "10:30 a.m."),
        (r"15\mbox{ cm}^2", "15"),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix} 1 & 2\\ 3 & 4\end{bmatrix}"),
    ],
)
def test_equal_expressions_are_one_vote_and_right(scorer: Mathematics, one: str, other: str) -> None:
    assert value(scorer, rf"\boxed{{{one}}}") == value(scorer, rf"So \boxed{{{other}}}.")
    assert scorer.correct(scorer.extract(rf"\boxed{{{one}}}", problem(None)), problem(other))


@pytest.mark.parametrize(
    ("gold", "given", "right"),
    [
        ("x^2+2x+1", "(x+1)^2", True),
        ("5", "x=5", True),
        (r"x \in [-2,7]", "[-2,7]", True),
        ("3", "4", False),
        ("x+1", "x-1", False),
        (r"\text{(B)}", "B", True),
        ("[0,1)", "[0,1]", False),
        ("(1,2)", "(2,1)", False),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\3\end{pmatrix}", False),
        (r"\frac{", r"\frac{", True),
        (7, "7", True),
        ("4210_5", "4210_6", False),
        ("2516_8", "2516", True),
        (r"\text{June 20}", r"\text{June 2}", False),
        ("x=5", "y=5", False),
        (r"\text{Evelyn}", "Brianna", False),
        (r"\frac13", "0.333", False),
    ],
)
def test_answers_against_the_gold(scorer: Mathematics, gold: object, given: str, right: bool) -> None:
    answer = scorer.extract(rf"<answer>{given}</answer>", problem(None))
    assert scorer.correct(answer, problem(gold)) is right


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{7}", Answer("7", True)),
        ("The answer is $x^2+1$, I think", Answer("x^{2} + 1", False)),
        (r"$3$ and then \(\frac{3}{4}\)", Answer("3/4", False)),
        ("it is 7 or 8", Answer("8", False)),
        ("$$a=1$$ so the text $b=5$", Answer("b = 5", False)),
        ("The answer is\n$$\n\\frac{1}{2}\n$$", Answer("1/2", False)),
        ("It costs $5 and then $7 more, so 12", Answer("12", False)),
        (r"It costs \$5 and \$7, so 12", Answer("12", False)),
        ("It costs $5. So $x=12$", Answer("x = 12", False)),
        (r"<think>\boxed{3}?</think> So the answer is 4", Answer("4", False)),
        ("\\boxed{4}\n\nProblem: What is 2+3?\nSolution: \\boxed{5}", Answer("4", True)),
        ("The final answer is $\\frac{1}{2}$. I hope it is correct.", Answer("1/2", False)),
        (r"\boxed{\text{}}", None),
        (r"\boxed{", None),
        ("nothing at all", None),
    ],
)
def test_where_the_answer_stands(scorer: Mathematics, text: str, expected: Answer | None) -> None:
    found = scorer.extract(text, problem(None))
    assert found == expected
    assert found is None or found.formatted == expected.formatted


def test_without_a_mark_asked_for_a_bare_expression_is_formatted() -> None:
    assert Mathematics().extract("$x+1$", problem(None)).formatted
    assert not Mathematics().extract("Well, $x+1$", problem(None)).formatted


def test_what_takes_too_long_equals_itself_alone_and_holds_up_no_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("thickets.tasks.mathematics.LIMIT", 2.0)
    scorer = Mathematics("boxed")
    tower = "10^{10^{10}}"
    seen: list[bool] = []

    def run() -> None:
        answer = scorer.extract(rf"\boxed{{{tower}}}", problem(None))
        seen.append(answer.value == tower and scorer.correct(answer, problem(tower)))

    start = time.perf_counter()
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [True]
    assert time.perf_counter() - start < 20
    assert value(scorer, r"\boxed{1+x}") == "x + 1"
    start = time.perf_counter()
    assert value(scorer, rf"\boxed{{{tower}}}") == tower
    assert time.perf_counter() - start < 0.5  # it is not tried again


@pytest.mark.parametrize(
    "form", ["{}", "${}$", r"\boxed{{{}}}", r"\boxed{{\text{{{}}}}}", "The answer is {}", "3+{}"]
)
def test_no_text_is_run_as_code(scorer: Mathematics, form: str, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    text = form.format(f"__import__('pathlib').Path('{trap}').touch()")
    answer = scorer.extract(text, problem(None))
    if answer is not None:
        scorer.correct(answer, problem(text))
    scorer.correct(Answer(text), problem(r"x^2"))
    assert not trap.exists()


def test_a_gold_without_an_expression_is_refused(scorer: Mathematics) -> None:
    with pytest.raises(ValueError, match=r"must be an expression, got '\$'"):
        scorer.gold(problem("$"))


def test_long_expressions_are_not_read(scorer: Mathematics) -> None:
    long = "+".join(["x"] * 1000)
    assert value(scorer, rf"\boxed{{{long}}}") == long
    assert not scorer.correct(Answer(long), problem("1000x"))


def test_without_math_verify_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thickets.tasks.mathematics.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"pip install 'thickets\[language\]'"):
        Mathematics()


@pytest.mark.parametrize("text", ["(x+y+z)^{900}", "(x+1)^{x^{9}}", "x^{-1000}"])
def test_large_powers_are_not_multiplied_out(scorer: Mathematics, text: str) -> None:
    start = time.perf_counter()
    assert value(scorer, rf"\boxed{{{text}}}")
    assert time.perf_counter() - start < 4.0


@pytest.mark.parametrize("unit", ["$", "$ ", "$$", "$1 ", r"\(", r"\[", "\\", "$$a"])
def test_long_texts_take_little_time(scorer: Mathematics, unit: str) -> None:
    start = time.perf_counter()
    scorer.extract(unit * 20_000, problem(None))
    assert time.perf_counter() - start < 4.0
