"""Where answers stand in texts, and numbers however they are written."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thickets.tasks.extraction import boxed, last_number, marked, number

F = Fraction


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("18", F(18)),
        ("18.0", F(18)),
        ("18.", F(18)),
        (".5", F(1, 2)),
        ("+7", F(7)),
        ("-5", F(-5)),
        ("−5", F(-5)),
        ("–5", F(-5)),
        ("1,234,567.50", F("1234567.5")),
        ("1,00,000", F(100000)),
        ("1\u202f234", F(1234)),
        (r"1{,}000", F(1000)),
        (r"10,\!080", F(10080)),
        ("1/3", F(1, 3)),
        ("-2 1/2", F(-5, 2)),
        ("2½", F(5, 2)),
        (r"\frac{3}{4}", F(3, 4)),
        (r"-\dfrac12", F(-1, 2)),
        (r"2\frac{1}{2}", F(5, 2)),
        ("7e3", F(7000)),
        ("$1,000", F(1000)),
        (r"\$18.90", F("18.9")),
        ("-$5", F(-5)),
        ("€ 5", F(5)),
        ("18%", F(18)),
        (r"18\%", F(18)),
        ("**18**", F(18)),
        (r"\text{18}", F(18)),
        ("١٨", F(18)),
        ("٣٫٥", F(7, 2)),
        ("１８", F(18)),
        ("५", F(5)),
        ("0" * 99 + "7", F(7)),
    ],
)
def test_numbers(text: str, expected: Fraction) -> None:
    assert number(text) == expected
    assert last_number(f"It was 3, but now it is {text}") == expected


@pytest.mark.parametrize(
    "text", ["", " ", "#", "x", "1,2", "1.2.3", "3 - 5", "8 euros", "1/0", "²", "1" * 101]
)
def test_what_is_no_number_alone(text: str) -> None:
    assert number(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("18 dollars", 18),
        ("5 + 13 = 18 apples.", 18),
        ("pages 10-15", 15),
        ("3 - 5", 5),
        ("1,2,3", 3),
        ("x=-3", -3),
        ("答案是18。", 18),
        ("in 2024, he had $1,500.", 1500),
        ("A1 B2", None),
        ("none", None),
        ("1/0", None),
    ],
)
def test_the_last_number_of_a_text(text: str, expected: int | None) -> None:
    assert last_number(text) == expected


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.fractions(max_denominator=1000) | st.integers(-(10**30), 10**30))
def test_python_s_own_writing_is_read_back(value: Fraction | int) -> None:
    assert number(str(value)) == value
    assert last_number(f"so {value}.") == value
    if isinstance(value, int):
        assert number(f"{value:,}") == value


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(max_size=200) | st.text("0123456789.,/-+$%\\{}frac boxed#<>answer\n", max_size=200))
def test_any_text_is_read_without_an_error(text: str) -> None:
    for asked in (None, "tags", "bare"):
        assert all(found.content for found in marked(text, asked))
    assert number(text) is None or last_number(text) is not None


def found(text: str, asked: str | None = None) -> list[tuple[str, str, bool]]:
    return [tuple(place) for place in marked(text, asked)]


def test_the_mark_that_was_asked_for_comes_first_and_is_the_only_formatted_one() -> None:
    text = "<answer> 1 </answer>\n\\boxed{2}\n#### 3\nThe answer is 4. Or 5"
    assert found(text, "boxed")[:4] == [
        ("boxed", "2", True),
        ("tags", "1", False),
        ("hashes", "3", False),
        ("said", "4", False),
    ]
    assert found(text, "boxed")[4] == ("text", text, False)
    assert [place[2] for place in found(text)] == [True, True, True, False, True]
    assert found("5", "bare") == [("text", "5", True)]


@pytest.mark.parametrize(
    ("text", "mark", "content"),
    [
        ("<answer>1</answer> no, <ANSWER >2</ answer>", "tags", "2"),
        ("<answer>1<answer>2</answer></answer>", "tags", "2"),
        ("İ<answer>İ1</answer>", "tags", "İ1"),
        ("#### Step 3\n#### 1\n#### 2\nthe end", "hashes", "1"),
        (r"\boxed{\frac{1}{2}} and \boxed{3", "boxed", r"\frac{1}{2}"),
        (r"\boxed{\boxed{3}}", "boxed", "3"),
        (r"\boxed {a\}b}", "boxed", r"a\}b"),
        ("The final Answer: **7**, I think", "said", "7**, I think"),
        ("Answer is 3.5. So", "said", "3.5"),
    ],
)
def test_the_last_complete_mark_counts_but_for_hashes(text: str, mark: str, content: str) -> None:
    assert (mark, content) in [place[:2] for place in found(text)]


@pytest.mark.parametrize(
    "text", ["<answer>1", "</answer>", "<answer> </answer>", "####", r"\boxed{", r"\boxed{}", " "]
)
def test_marks_without_content_are_none(text: str) -> None:
    assert {place[0] for place in found(text)} <= {"text"}


def test_a_box_is_found_by_its_braces() -> None:
    assert boxed("no box {1}") is None
    assert boxed(r"}}\boxed{1}{{") == "1"


@pytest.mark.parametrize(
    "unit",
    [
        "\\boxed{",
        "<answer>",
        "1,23",
        "1",
        "answer is ",
        "((",
        "\\frac{",
        "1 ",
        "1/",
        "####",
        "\\text{",
        "- ",
        " ",
        "𝟏",
    ],
)
def test_long_texts_take_little_time(unit: str) -> None:
    start = time.perf_counter()
    text = unit * 50_000
    list(marked(text))
    number(text)
    last_number(text)
    assert time.perf_counter() - start < 5.0
