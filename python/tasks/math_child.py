"""LaTeX compared by math-verify, in a worker's process, which loads this file by its path."""

from __future__ import annotations

import logging
import re
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify
from sympy import Basic, Expr, Float, Pow, Rational, cancel, latex  # type: ignore[import-untyped]

logging.getLogger("math_verify").setLevel(logging.ERROR)  # the worker sees to the time, as it must in threads

POWER = 12  # the highest that is multiplied out

# Alone: what is not LaTeX would go through sympy's `parse_expr`, which evaluates code.
_LATEX = [LatexExtractionConfig()]


def canonical(text: str) -> str | None:
    """One LaTeX text for expressions that sympy makes the same object of; None for what it cannot read."""
    found = _parsed(text)
    if not found:
        return None
    simple = found[0].doit() if isinstance(found[0], Basic) else found[0]
    if isinstance(simple, Float):
        simple = Rational(str(simple))
    for form in (_expanded(simple), simple):
        written = re.sub(r"(?<=\d) (?=i\b)", "", str(latex(form)))  # as 5i it is read as complex
        if equal(text, written) and equal(written, text):
            return written
    return None


def _expanded(expression: Any) -> Any:
    """One form of equal polynomials and of their quotients, where no large power makes that long."""
    if not isinstance(expression, Expr) or not expression.free_symbols:
        return expression
    if any(not power.exp.is_number or abs(power.exp) > POWER for power in expression.atoms(Pow)):
        return expression
    return cancel(expression)


def equal(gold: str, other: str) -> bool:
    """Whether two LaTeX texts say the same."""
    left, right = _parsed(gold), _parsed(other)
    return bool(left and right and verify(left, right, timeout_seconds=None))


def _parsed(text: str) -> list[Any]:
    found: list[Any] = parse(
        f"${text}$", extraction_config=_LATEX, fallback_mode="no_fallback", parsing_timeout=None
    )
    return found


canonical(
    r"x^2 + \frac{1}{2}"
)  # the parser makes its tables at its first call: no caller's limit is spent on it
