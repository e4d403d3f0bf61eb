"""Problems in files: one JSON object per line, read with the number of the line in every error."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from .problems import TASKS, Problem, Source

Record = dict[str, Any]
Reader = Callable[[Record], Problem]

MAX_NEW_TOKENS = 512  # of a task of one's own


def read_problems(path: Path, task: str | None = None) -> list[Problem]:
    """The problems of a .jsonl file, answers where it has them, for a vote on them.

    A line is {"prompt": text} or {"messages": [{"role": text, "content": text}, ...]}, with "answer" and "id"
    if it likes, or a record as the named task has them, such as {"question": text} for gsm8k. ValueError says
    what is wrong and in which line.
    """
    reader: Reader | None = getattr(import_module(TASKS[task]), "problem", None) if task in TASKS else None

    def read(record: Record) -> Problem:
        if reader is None or "prompt" in record or "messages" in record:
            return own_problem(record)
        return reader(record)

    problems = list(_problems(path, read))
    if not problems:
        raise ValueError(f"{str(path)!r} must hold at least one problem")
    return problems


def own_source(path: Path) -> Source:
    """Problems of one's own, with answers; the scorer is the caller's to name."""

    def read(record: Record) -> Problem:
        problem = own_problem(record)
        if problem.answer is None:
            raise ValueError('a line must have "answer"')
        return problem

    train, test = pools(path, read)
    return Source(train, test, None, MAX_NEW_TOKENS)


def pools(path: Path, read: Reader) -> tuple[list[Problem], list[Problem] | None]:
    """The problems of a file, to be shared, or those of a folder's train.jsonl and, if any, test.jsonl."""
    if not path.is_dir():
        return list(_problems(path, read)), None
    train, test = path / "train.jsonl", path / "test.jsonl"
    if not train.is_file():
        raise ValueError(f"data must be a .jsonl file or a folder with train.jsonl, got {str(path)!r}")
    return list(_problems(train, read)), list(_problems(test, read)) if test.exists() else None


def load_dataset(read: Reader, name: str, *configuration: str, split: str) -> list[Problem]:
    """The problems of one split of a public data set; RuntimeError without the package or the network."""
    if find_spec("datasets") is None:
        raise RuntimeError(
            f"{name} is loaded by the package datasets: pip install datasets, or give a local copy as data"
        )
    try:
        records = import_module("datasets").load_dataset(name, *configuration, split=split)
    except Exception as error:  # it has many, and those of the network beneath it
        raise RuntimeError(
            f"{name} could not be loaded, give a local copy as data: {type(error).__name__}: {error}"
        ) from None
    return [read(dict(record)) for record in records]


def own_problem(record: Record) -> Problem:
    """A line of one's own file; ValueError says what is wrong with it."""
    messages = record.get("messages")
    if messages is not None:
        if not isinstance(messages, list) or not all(map(_is_message, messages)):
            raise ValueError(
                f'messages must be a list of {{"role": text, "content": text}}, got {messages!r}'
            )
        messages = tuple({"role": m["role"], "content": m["content"]} for m in messages)
    prompt = None if record.get("prompt") is None else text_of(record, "prompt")
    name = record.get("id")
    return Problem(prompt, messages, record.get("answer"), "" if name is None else str(name))


def text_of(record: Record, field: str) -> str:
    """A field that must be a text with something in it; ValueError otherwise."""
    value = record.get(field)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            f'"{field}" must be a text, got {value!r}; the line has {", ".join(record) or "nothing"}'
        )
    return value


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(k), str) for k in ("role", "content"))


def _problems(path: Path, read: Reader) -> Iterator[Problem]:
    for number, record in _records(path):
        try:
            problem = read(record)
            json.dumps([problem.content, problem.answer, problem.id], ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"{path.name}, line {number}: half of a surrogate pair is no character"
            ) from None
        except ValueError as error:
            raise ValueError(f"{path.name}, line {number}: {error}") from None
        yield problem


def _records(path: Path) -> Iterator[tuple[int, Record]]:
    if not path.is_file():
        raise ValueError(f"{str(path)!r} is not a file")
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, _record(path, number, line)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} must be UTF-8: {error}") from None


def _record(path: Path, number: int, line: str) -> Record:
    try:
        record = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name}, line {number}: it is not JSON: {error}") from None
    if not isinstance(record, dict):
        raise ValueError(
            f"{path.name}, line {number}: it must be an object {{...}}, got {line.strip()[:60]!r}"
        )
    return record


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
