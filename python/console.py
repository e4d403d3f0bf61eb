"""What every command does alike: errors in one line with an exit code, results as tables or JSON."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import typer

if TYPE_CHECKING:
    from thickets.tasks.tables import Table

P = ParamSpec("P")
R = TypeVar("R")


def reported(command: Callable[P, R]) -> Callable[P, R]:
    """Errors as one line on stderr: exit code 2 for what was given, 1 for what failed, 130 for Ctrl-C."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            _fail("interrupted: progress kept, the same command goes on from there", 130)
        except BrokenPipeError:
            raise
        except (ValueError, TypeError, IndexError) as error:
            _fail(f"error: {error}", 2)
        except (RuntimeError, OSError, MemoryError, ImportError, sqlite3.Error) as error:
            _fail(f"error: {error}", 1)

    return run


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(" ".join(message.split()), err=True)
    raise typer.Exit(code)


def show(facts: dict[str, Any], shown: Sequence[Table | str], as_json: bool) -> None:
    """JSON if asked for; else tables, drawn on a terminal and as Markdown elsewhere, and lines."""
    if as_json:
        typer.echo(json.dumps(facts, allow_nan=False))
        return
    for item in shown:
        if isinstance(item, str) or not sys.stdout.isatty():
            typer.echo(item if isinstance(item, str) else item.markdown())
            continue
        from rich.console import Console
        from rich.table import Table as Drawn

        drawn = Drawn(*item.heads, title=item.title, caption=item.note)
        for row in item.rows:
            drawn.add_row(*row)
        Console(markup=False, highlight=False).print(drawn)  # brackets are intervals here
