"""Tasks of language models as data: problems to select members by, problems to judge them by, and a scorer.

`open_task` makes a `Task` of a name or of a file. What a text answers is the scorer's business (scoring.py):
it extracts an `Answer`, which members vote with, and says whether it is correct.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

TASKS = {  # name -> the module whose `source(train, test, seed, data)` is the task's Source
    "countdown": "thickets.tasks.countdown",
    "gsm8k": "thickets.tasks.gsm8k",
    "math500": "thickets.tasks.math500",
    "arithmetic": "thickets.tasks.arithmetic",
}


@dataclass(frozen=True)
class Problem:
    """One question, as a plain prompt or as messages of a chat, and what its answer should be.

    messages: {"role": ..., "content": ...} each; only a chat template makes text of them.   answer: a JSON
    value that the task's scorer understands, None where it is not known.   id: the same in every process.
    ValueError unless exactly one of prompt and messages is given and is not empty.
    """

    prompt: str | None = None
    messages: tuple[dict[str, str], ...] | None = None
    answer: Any = None
    id: str = ""

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("a problem must have either a prompt or messages")
        if not (self.prompt or self.messages):
            raise ValueError("a problem's prompt or messages must not be empty")
        if not self.id:
            object.__setattr__(self, "id", blake2b(self.content.encode(), digest_size=8).hexdigest())

    @property
    def content(self) -> str:
        """What is asked, up to spacing: two problems of equal content are the same problem."""
        texts = (
            [self.prompt or ""]
            if self.messages is None
            else [text for message in self.messages for text in (message["role"], message["content"])]
        )
        return "\n".join(" ".join(text.split()) for text in texts)

    @property
    def chat(self) -> tuple[dict[str, str], ...]:
        """The messages; a plain prompt is one message of the user."""
        return self.messages or ({"role": "user", "content": self.prompt or ""},)


@dataclass(frozen=True)
class Answer:
    """What a text answers, in canonical form: equal values are one answer in a vote, in whatever format."""

    value: str
    formatted: bool = field(default=True, compare=False)  # given as the task asked for it


class Scorer(Protocol):
    """How a task reads answers; `extract` never looks at the answer of the problem."""

    @property
    def name(self) -> str: ...
    def extract(self, text: str, problem: Problem) -> Answer | None:
        """What the text answers; None if it answers nothing."""
        ...

    def correct(self, answer: Answer, problem: Problem) -> bool:
        """Whether that is the problem's answer, in whatever format it was given."""
        ...


@dataclass(frozen=True)
class Task:
    """Problems to select members by (`train`), others to judge them by (`test`), and how answers are read.

    max_new_tokens, stop: how long an answer may be and what ends it.   asked_format: how the prompt asks for
    the answer, in words.
    """

    name: str
    train: tuple[Problem, ...]
    test: tuple[Problem, ...]
    scorer: Scorer
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    asked_format: str = ""


@dataclass(frozen=True)
class Source:
    """Where a task's problems come from: at least as many as were asked for, or else `open_task` refuses.

    test: None where it has no problems of its own and shares those of `train`.   scorer: a name; None where
    the caller must say.
    """

    train: Sequence[Problem]
    test: Sequence[Problem] | None
    scorer: str | None
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    asked_format: str = ""


def open_task(
    spec: str,
    *,
    train: int = 200,
    test: int = 200,
    seed: int = 0,
    data: Path | None = None,
    scorer: str | None = None,
) -> Task:
    """The task of that name, or of the problems in a .jsonl file or a folder of train.jsonl and test.jsonl.

    train, test: how many problems of each, >= 1; no problem is in both, by what it asks.   seed: which ones.
    For one seed, the test problems do not depend on `train`.   data: the file or folder that holds a named
    task's problems; by default they are generated, or loaded from the network by the package `datasets`.
    scorer: see `scoring.open_scorer`; a named task brings its own. ValueError for an unknown name, malformed
    lines, answers that the scorer cannot read and too few problems; RuntimeError where a package is missing.
    """
    from . import scoring

    for name, count in (("train", train), ("test", test)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be a number of problems >= 1, got {count!r}")
    source = _source(spec, train, test, seed, data)
    judge = scorer or source.scorer
    if judge is None:
        raise ValueError(f"scorer must be given for the problems of {spec!r}: {scoring.expected()}")
    chosen = _split(spec, source, train, test, seed)
    task = Task(
        spec,
        *chosen,
        scoring.open_scorer(judge),
        source.max_new_tokens,
        source.stop,
        source.asked_format,
    )
    for problem in (*task.train, *task.test):
        scoring.check_answer(task.scorer, problem)
    return task


def extract_answers(
    scorer: Scorer, texts: Sequence[Sequence[str]], problems: Sequence[Problem]
) -> list[list[Answer | None]]:
    """What N members' texts [N][B] answer to B problems, [N][B]."""
    return [
        [scorer.extract(text, problem) for text, problem in zip(row, problems, strict=True)] for row in texts
    ]


def score_answers(
    scorer: Scorer, answers: Sequence[Sequence[Answer | None]], problems: Sequence[Problem]
) -> list[list[float]]:
    """1.0 for a correct answer, 0.0 for a wrong or none, [N][B] of N members' answers to B problems."""
    return [
        [
            float(answer is not None and scorer.correct(answer, problem))
            for answer, problem in zip(row, problems, strict=True)
        ]
        for row in answers
    ]


def _source(spec: str, train: int, test: int, seed: int, data: Path | None) -> Source:
    if spec in TASKS:
        source: Source = import_module(TASKS[spec]).source(train, test, seed, data)
        return source
    path = Path(spec)
    if not path.exists():
        raise ValueError(
            f"task must be one of {', '.join(TASKS)}, a .jsonl file or a folder of train.jsonl and"
            f" test.jsonl, got {spec!r}"
        )
    if data is not None:
        raise ValueError(f"data must be None where the task is a file itself, got {str(data)!r}")
    from .records import own_source

    return own_source(path)


def _split(
    spec: str, source: Source, train: int, test: int, seed: int
) -> tuple[tuple[Problem, ...], tuple[Problem, ...]]:
    shared = source.test is None
    judged = _draw(source.train if source.test is None else source.test, seed, {})
    held_out = judged[:test]
    selecting = _draw(source.train, seed, {problem.content: problem for problem in held_out})[:train]
    if len(held_out) < test or len(selecting) < train:
        held = f"{len(judged)}" if shared else f"{len(selecting)} to train and {len(judged)} to test"
        raise ValueError(
            f"task {spec!r} must have {train} problems to train and {test} others to test, got {held} in all,"
            " counting each once"
        )
    return tuple(selecting), tuple(held_out)


def _draw(pool: Sequence[Problem], seed: int, without: Mapping[str, Problem]) -> list[Problem]:
    """Each content once, but for those of `without`, in an order that depends on seed and contents alone."""
    distinct: dict[str, Problem] = {}
    for problem in pool:
        distinct.setdefault(problem.content, problem)
    left = [problem for content, problem in distinct.items() if content not in without]
    return sorted(left, key=lambda p: blake2b(f"{seed} {p.content}".encode()).digest())
