"""GSM8K: grade-school word problems whose answer is a number (Cobbe et al. 2021).

Its files have a question and a worked answer per line, which ends in "#### 18".
"""

from __future__ import annotations

from pathlib import Path

from .problems import Problem, Source
from .records import Record, load_dataset, pools, text_of

PROMPT = (
    "{question}\n\nSolve this step by step. Write the result, a number alone, on the last line after four"
    " hash signs, like this: #### 18"
)


def problem(record: Record) -> Problem:
    """A line {"question": ..., "answer": ...}; without an answer it is for a vote only."""
    worked = record.get("answer")
    answer = None if worked is None else str(worked).rpartition("####")[2].strip()
    return Problem(prompt=PROMPT.format(question=text_of(record, "question").strip()), answer=answer)


def source(train: int, test: int, seed: int, data: Path | None) -> Source:
    """Both splits: the files train.jsonl and test.jsonl in the folder `data`, or else from the network."""
    if data is not None:
        problems = pools(data, problem)
    else:
        problems = (
            load_dataset(problem, "openai/gsm8k", "main", split="train"),
            load_dataset(problem, "openai/gsm8k", "main", split="test"),
        )
    return Source(*problems, "number:hashes", 512, asked_format="#### 18 on the last line")
