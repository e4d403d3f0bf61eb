"""What the options of the command line say, as values; ValueError naming the option where that is nothing."""

from __future__ import annotations


def numbers(text: str) -> list[float] | None:
    """Numbers apart by commas; None of nothing."""
    try:
        return [float(part) for part in text.split(",")] if text else None
    except ValueError:
        raise ValueError(f"sigma must be numbers such as 0.001,0.002, got {text!r}") from None


def gathered(arguments: list[str], option: str) -> list[str]:
    """Arguments in which each of the numbers behind an option has an option of its own."""
    result: list[str] = []
    for argument in arguments:
        if len(result) > 1 and result[-2] == option and _is_number(argument):
            result.append(option)
        result.append(argument)
    return result


def _is_number(text: str) -> bool:
    try:
        return bool(numbers(text))
    except ValueError:
        return False


def top_k(text: str) -> int | float | None:
    """A count, or a share as a float; None of nothing."""
    try:
        return None if not text else int(text) if text.isdigit() else float(text)
    except ValueError:
        raise ValueError(f"top-k must be a count or a share, got {text!r}") from None


def families(text: str) -> tuple[str, ...]:
    """Names of noise families, or "all"."""
    from thickets.noise import family
    from thickets.tasks.families import FAMILIES

    return FAMILIES if text == "all" else tuple(str(family(part)) for part in text.split(",") if part)


def one_of(text: str, names: tuple[str, ...], option: str) -> str:
    """The text, if it is one of the names."""
    if text not in names:
        raise ValueError(f"{option} must be one of {', '.join(names)} here, got {text!r}")
    return text


def shape(text: str) -> tuple[int, int]:
    """512x768 as (outputs, inputs)."""
    outputs, cross, inputs = text.partition("x")
    if not cross:
        raise ValueError(f"layers must be such as 512x512,768x3072, got {text!r}")
    return count(outputs, "layers"), count(inputs, "layers")


def count(text: str | int, name: str) -> int:
    """A whole number of at least 1."""
    if not str(text).strip().isdecimal() or int(text) < 1:
        raise ValueError(f"{name} must be whole numbers >= 1, got {text!r}")
    return int(text)
