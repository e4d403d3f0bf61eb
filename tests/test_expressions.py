"""Arithmetic in texts against Python's own fractions: values, canonical forms, limits."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thickets.tasks.expressions import DEPTH, LENGTH, canonical, numbers, parse, value

COMPUTE = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
}


class Written:
    """A text with the value that Python's fractions give it (None where it is not defined)."""

    def __init__(self, text: str, fraction: Fraction | None, leaves: list[Fraction]) -> None:
        self.text, self.fraction, self.leaves = text, fraction, leaves

    def __repr__(self) -> str:
        return self.text


def _number(n: int, places: int) -> Written:
    digits = str(n).rjust(places + 1, "0")
    text = f"{digits[:-places]}.{digits[-places:]}" if places else digits
    return Written(text, Fraction(n, 10**places), [Fraction(n, 10**places)])


def _combined(left: Written, op: str, right: Written, space: str) -> Written:
    try:
        undefined = left.fraction is None or right.fraction is None
        fraction = None if undefined else COMPUTE[op](left.fraction, right.fraction)
    except ZeroDivisionError:
        fraction = None
    text = f"({left.text}{space}{op}{right.text})"
    return Written(text, fraction, left.leaves + right.leaves)


def _negative(inner: Written) -> Written:
    return Written(f"-{inner.text}", None if inner.fraction is None else -inner.fraction, inner.leaves)


trees = st.recursive(
    st.builds(_number, st.integers(0, 999), st.integers(0, 2)),
    lambda inner: (
        st.builds(_combined, inner, st.sampled_from("+-*/"), inner, st.sampled_from(["", " ", "\n"]))
        | st.builds(_negative, inner)
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(trees)
def test_values_are_those_of_fractions(tree: Written) -> None:
    expression = parse(tree.text)
    assert list(numbers(expression)) == tree.leaves
    if tree.fraction is None:
        with pytest.raises(ZeroDivisionError):
            value(expression)
    else:
        assert value(expression) == tree.fraction


@settings(max_examples=200, deadline=None, derandomize=True)
@given(trees)
def test_the_canonical_form_has_the_same_value_and_is_its_own(tree: Written) -> None:
    expression = parse(tree.text)
    again = parse(canonical(expression))
    assert canonical(again) == canonical(expression)
    if tree.fraction is not None:
        assert value(again) == tree.fraction


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 99), min_size=2, max_size=6), st.sampled_from("+*"), st.randoms())
def test_order_and_grouping_make_no_other_expression(
    leaves: list[int], op: str, shuffle: random.Random
) -> None:
    in_order = op.join(map(str, leaves))
    shuffle.shuffle(leaves)
    nested = str(leaves[0])
    for leaf in leaves[1:]:
        nested = f"({leaf}{op}{nested})"
    assert canonical(parse(nested)) == canonical(parse(in_order))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from("+-*/"), st.integers(1, 50)), max_size=12))
def test_precedence_is_that_of_python(steps: list[tuple[str, int]]) -> None:
    text = "7" + "".join(f" {op} {n}" for op, n in steps)
    total, term = Fraction(0), Fraction(7)  # everything before the term in hand, and that term
    for op, n in steps:
        if op in "*/":
            term = COMPUTE[op](term, Fraction(n))
        else:
            total, term = total + term, Fraction(n if op == "+" else -n)
    assert value(parse(text)) == total + term


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(max_size=40) | st.text("0123456789+-*/(). ", max_size=40))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        expression = parse(text)
    except ValueError:
        return
    assert canonical(parse(canonical(expression))) == canonical(expression)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("(3+4)*2", "2*(4 + 3)"),
        ("10-(3-2)", "2+10-3"),
        ("8/(4/2)", "2*8/4"),
        ("-(2-3)", "3-2"),
        ("2*-3", "-3*2"),
        ("-(2*3)", "(-2)*3"),
        ("0.50", ".5"),
    ],
)
def test_equal_forms(one: str, other: str) -> None:
    assert canonical(parse(one)) == canonical(parse(other))


def test_other_expressions_of_the_same_value_stay_apart() -> None:
    assert canonical(parse("2*(3+4)")) != canonical(parse("2*3+2*4"))
    assert canonical(parse("1+2*3")) != canonical(parse("(1+2)*3"))
    assert canonical(parse("6-4")) != canonical(parse("4-6"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "1 2",
        "1+",
        "(1",
        "1)",
        "()",
        "2(3)",
        "2**3",
        "1e5",
        "1_000",
        "x",
        "__import__('os')",
        "1.2.3",
        "٣",
        "1,5",
    ],
)
def test_what_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expression must"):
        parse(text)


def test_limits() -> None:
    assert value(parse("(" * DEPTH + "1" + ")" * DEPTH)) == 1
    with pytest.raises(ValueError, match="parentheses within each other"):
        parse("(" * (DEPTH + 1) + "1" + ")" * (DEPTH + 1))
    assert value(parse("-" * (LENGTH - 1) + "1")) == -1
    assert value(parse("1" + "+1" * (LENGTH // 2 - 1))) == LENGTH // 2
    with pytest.raises(ValueError, match="characters"):
        parse("1" * (LENGTH + 1))
