"""Answers of N members to problems: prompts in, generated text, answers out (a search's `predict`)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from thickets.language.decoding import Decoding
from thickets.language.generation import decode
from thickets.language.prompts import Prompts
from thickets.randopt.chunks import out_of_memory
from thickets.tasks.problems import Answer, extract_answers, score_answers

if TYPE_CHECKING:
    from thickets.perturbed import PerturbedModule
    from thickets.tasks.problems import Problem, Scorer

Answers = list[list[Answer | None]]  # N lists of B; None: the text holds no answer


@dataclass
class Answering:
    """How problems become answers.

    chat: problems go through the tokenizer's chat template. strict: an answer out of the asked format is
    none. batch: how many problems of a member run at once (None: all), fewer once those of one do
    not fit in memory. tokens, seconds: generated so far, and the time that took.
    """

    tokenizer: Any
    scorer: Scorer
    decoding: Decoding
    chat: bool = False
    strict: bool = False
    batch: int | None = None
    tokens: int = field(default=0, init=False)
    seconds: float = field(default=0.0, init=False)

    def __call__(self, pm: PerturbedModule, problems: Sequence[Problem]) -> Answers:
        """Answers of the N active members to B problems; with `strict` those in the asked format alone."""
        answers = extract_answers(self.scorer, self.texts(pm, problems), problems)
        return in_format(answers) if self.strict else answers

    def texts(self, pm: PerturbedModule, problems: Sequence[Problem]) -> list[list[str]]:
        """What the N active members of `pm.members(..., fold=False)` write: N lists of B texts."""
        started = time.perf_counter()
        members: list[list[str]] = [[] for _ in pm.active[0]]
        while len(members[0]) < len(problems):
            done = len(members[0])
            some = problems[done : done + (self.batch or len(problems))]
            try:
                made = decode(pm, self.prompts(some), self.decoding)
            except (MemoryError, RuntimeError) as error:
                # Several members are first tried in smaller groups.
                if not out_of_memory(error) or len(members) > 1 or len(some) == 1:
                    raise
                self.batch = (len(some) + 1) // 2
                continue
            for texts, more in zip(members, made.texts or (), strict=True):
                texts.extend(more)
            self.tokens += made.count
        self.seconds += time.perf_counter() - started
        return members

    def prompts(self, problems: Sequence[Problem]) -> Prompts:
        """The problems' prompts, or with `chat` messages; ValueError for one that has messages alone."""
        if self.chat:
            return Prompts.of([problem.chat for problem in problems], self.tokenizer, chat=True)
        for problem in problems:
            if problem.prompt is None:
                raise ValueError(
                    f"problem {problem.id!r} is a chat: it needs a tokenizer with a chat template, and chat"
                )
        return Prompts.of([problem.prompt or "" for problem in problems], self.tokenizer)

    def rate(self) -> str:
        """Tokens per second, as the progress bar shows it."""
        return f"{self.tokens / self.seconds:.0f} tokens/s" if self.seconds else ""


class Judge:
    """A scorer for a report, which no text may undo: what it raises on is no answer, or a wrong one.

    failures: the reasons. Each judgement is asked for once.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.scorer, self.name = scorer, scorer.name
        self.failures: list[str] = []
        self._judged: dict[tuple[str, bool, str], bool] = {}

    def extract(self, text: str, problem: Problem) -> Answer | None:
        """What the text answers; None if it answers nothing or the scorer raises."""
        try:
            return self.scorer.extract(text, problem)
        except Exception as error:
            self.failures.append(f"{type(error).__name__}: {error}")
            return None

    def correct(self, answer: Answer, problem: Problem) -> bool:
        """Whether that is the problem's answer; it is not if the scorer raises."""
        key = answer.value, answer.formatted, problem.content
        if key not in self._judged:
            try:
                self._judged[key] = self.scorer.correct(answer, problem)
            except Exception as error:
                self.failures.append(f"{type(error).__name__}: {error}")
                self._judged[key] = False
        return self._judged[key]


def in_format(answers: Answers) -> Answers:
    """The answers, but for those out of the asked format."""
    return [[a if a is not None and a.formatted else None for a in row] for row in answers]


def accuracy(scorer: Scorer, predictions: Answers, problems: Sequence[Problem]) -> Tensor:
    """1 where an answer is correct, else 0, float32 [N, B]: the one score of base, members and vote."""
    return torch.tensor(score_answers(scorer, predictions, problems))
