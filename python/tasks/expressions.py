"""Arithmetic that a model wrote: parsed with limits and computed in fractions, never evaluated as code.

    sum     = product (("+" | "-") product)*
    product = factor (("*" | "/") factor)*
    factor  = ("+" | "-")* (number | "(" sum ")")

Numbers are decimal, such as 12 or 0.5. Without powers no value has more digits than the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

LENGTH, DEPTH = 1000, 50  # characters, and parentheses within each other

_TOKEN = re.compile(r"\s*(?:([0-9]+(?:\.[0-9]+)?|\.[0-9]+)|([-+*/()]))", re.ASCII)


@dataclass(frozen=True)
class Sum:
    """terms[0] + terms[1] + ..., those with sign -1 subtracted."""

    terms: tuple[tuple[int, Expression], ...]


@dataclass(frozen=True)
class Product:
    """factors[0] * factors[1] * ..., those with power -1 divided by."""

    factors: tuple[tuple[int, Expression], ...]


Expression = Fraction | Sum | Product


def parse(text: str) -> Expression:
    """The expression that the whole text is; ValueError where it is none, or is beyond LENGTH or DEPTH."""
    if len(text) > LENGTH:
        raise ValueError(f"expression must have at most {LENGTH} characters, got {len(text)}")
    parser = _Parser(list(_tokens(text)))
    found = parser.sum(0)
    parser.end()
    return found


def value(expression: Expression) -> Fraction:
    """What the expression comes to, exactly; ZeroDivisionError where that is not defined."""
    if isinstance(expression, Fraction):
        return expression
    if isinstance(expression, Sum):
        return sum((sign * value(term) for sign, term in expression.terms), Fraction(0))
    result = Fraction(1)
    for power, factor in expression.factors:
        result = result * value(factor) if power > 0 else result / value(factor)
    return result


def numbers(expression: Expression) -> Iterator[Fraction]:
    """The numbers that are written in the expression, from left to right."""
    if isinstance(expression, Fraction):
        yield expression
    else:
        for _, part in _parts(expression):
            yield from numbers(part)


def canonical(expression: Expression) -> str:
    """One text for all orders and groupings of the same sums and products: "(3+4)*2" for 2 * (4 + 3).

    The value is the same wherever that of `expression` is defined.
    """
    if isinstance(expression, Fraction):
        return _decimal(expression)
    plus, minus = "+-" if isinstance(expression, Sum) else "*/"
    written = [
        (sign < 0, f"({canonical(part)})" if isinstance(part, Sum) else canonical(part))
        for sign, part in _flat(expression)
    ]
    text = "".join((minus if second else plus) + part for second, part in sorted(written))
    return text.removeprefix(plus)


def _decimal(number: Fraction) -> str:
    """A number whose denominator divides a power of ten, without needless zeros."""
    places = 0
    while (number * 10**places).denominator != 1:
        places += 1
    digits = str(number * 10**places).rjust(places + 1, "0")
    return f"{digits[:-places]}.{digits[-places:]}" if places else digits


def _flat(expression: Sum | Product) -> Iterator[tuple[int, Expression]]:
    """Its parts, with those of parts of the same kind in place of these."""
    for sign, part in _parts(expression):
        if isinstance(part, Sum | Product) and type(part) is type(expression):
            yield from ((sign * inner, deeper) for inner, deeper in _flat(part))
        else:
            yield sign, part


def _parts(expression: Sum | Product) -> tuple[tuple[int, Expression], ...]:
    return expression.terms if isinstance(expression, Sum) else expression.factors


def _tokens(text: str) -> Iterator[str]:
    position, end = 0, len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"expression must be numbers, + - * / and parentheses, got {text[position:]!r}")
        yield match[1] or match[2]
        position = match.end()


class _Parser:
    """Recursive descent over tokens; only parentheses go deeper."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens[::-1]

    def sum(self, depth: int) -> Expression:
        terms = [self.product(depth)]
        while self.next_is("+-"):
            turn = -1 if self.tokens.pop() == "-" else 1
            sign, term = self.product(depth)
            terms.append((turn * sign, term))
        return terms[0][1] if len(terms) == 1 and terms[0][0] > 0 else Sum(tuple(terms))

    def product(self, depth: int) -> tuple[int, Expression]:
        """Its sign, which is that of all its factors, and the product without it."""
        sign, factor = self.factor(depth)
        factors = [(1, factor)]
        while self.next_is("*/"):
            power = -1 if self.tokens.pop() == "/" else 1
            turn, factor = self.factor(depth)
            factors.append((power, factor))
            sign *= turn
        return sign, factor if len(factors) == 1 else Product(tuple(factors))

    def factor(self, depth: int) -> tuple[int, Expression]:
        sign = 1
        while self.next_is("+-"):
            sign = -sign if self.tokens.pop() == "-" else sign
        found = self.atom(depth)
        if isinstance(found, Sum) and len(found.terms) == 1:  # a negative in parentheses
            return -sign, found.terms[0][1]
        return sign, found

    def atom(self, depth: int) -> Expression:
        token = self.tokens.pop() if self.tokens else "the end"
        if token[0] in ".0123456789":
            return Fraction(token)
        if token != "(":
            raise ValueError(f"expression must have a number or a parenthesis, got {token}")
        if depth >= DEPTH:
            raise ValueError(f"expression must have at most {DEPTH} parentheses within each other")
        found = self.sum(depth + 1)
        if not self.next_is(")"):
            raise ValueError("expression must close its parentheses")
        self.tokens.pop()
        return found

    def next_is(self, kinds: str) -> bool:
        return bool(self.tokens) and self.tokens[-1] in kinds

    def end(self) -> None:
        if self.tokens:
            raise ValueError(f"expression must have an operator before {self.tokens[-1]!r}")
