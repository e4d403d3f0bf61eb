r"""MATH-500: competition problems whose answer is an expression in \boxed{...} (Hendrycks et al. 2021).

The 500 problems serve both to select members and to judge them, unless a folder brings others to train on.
"""

from __future__ import annotations

from pathlib import Path

from .extraction import boxed
from .problems import Problem, Source
from .records import Record, load_dataset, pools, text_of

PROMPT = "{problem}\n\nSolve this step by step. Put the final answer, and nothing else, in \\boxed{{}}."


def problem(record: Record) -> Problem:
    r"""A line {"problem": ..., "answer" or "solution": ...}; a solution's answer is its last \boxed{...}."""
    answer = record.get("answer")
    if answer is None and record.get("solution") is not None:
        answer = boxed(text_of(record, "solution"))
        if answer is None:
            raise ValueError('"solution" must have its answer in \\boxed{...}, or there must be "answer"')
    return Problem(prompt=PROMPT.format(problem=text_of(record, "problem").strip()), answer=answer)


def source(train: int, test: int, seed: int, data: Path | None) -> Source:
    """A file, or the files train.jsonl and test.jsonl in the folder `data`, or else from the network."""
    if data is not None:
        problems = pools(data, problem)
    else:
        problems = load_dataset(problem, "HuggingFaceH4/MATH-500", split="test"), None
    return Source(*problems, "math:boxed", 1024, asked_format="\\boxed{...}")
