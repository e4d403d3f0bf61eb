"""A model, a task and runs of a few members on it, for the tests of runs and of their commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import language_case
import torch

import thickets
from thickets.language.run import Settings, run_search
from thickets.tasks.problems import Problem
from thickets.tasks.scoring import open_scorer

NEW = 5  # tokens of an answer
PROBLEMS = 60


def model() -> Any:
    """The random model of language_case, which here writes mostly digits."""
    made = language_case.model()
    digits = [language_case.tokenizer().convert_tokens_to_ids(digit) for digit in "0123456789"]
    with torch.no_grad():
        made.lm_head.weight[digits] *= 3
    return made


def save_model(folder: Path, **tokenizer: Any) -> Path:
    """The model and its tokenizer, as from_pretrained opens them."""
    model().save_pretrained(folder)
    language_case.tokenizer(**tokenizer).save_pretrained(folder)
    return folder


def save_task(file: Path, problems: int = PROBLEMS) -> Path:
    """Problems whose answers are numbers that the base writes, for some, or that another member does."""
    prompts = [f"what is {i} and é?" for i in range(problems)]
    made = thickets.perturb(model()).generate(
        prompts, [0, 1, 2], [0.0, 0.03, 0.03], tokenizer=language_case.tokenizer(), max_new_tokens=NEW
    )
    assert made.texts is not None
    scorer = open_scorer("number")
    lines = []
    for i, prompt in enumerate(prompts):
        answer = scorer.extract(made.texts[i % 3][i], Problem(prompt))
        lines.append({"prompt": prompt, "answer": "0" if answer is None else answer.value})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def settings(model: Path, task: Path, **fields: Any) -> Settings:
    """A small run's."""
    small = {"n": 10, "top_k": 3, "sigma": (0.03, 0.05), "train": 12, "test": 20, "correlate": 5}
    return Settings(
        model=str(model),
        task=str(task),
        **{"scorer": "number", "max_new_tokens": NEW, "progress": False, "chunk": 4, **small, **fields},
    )


def run(folder: Path, **fields: Any) -> dict[str, Any]:
    """A run into folder / "run" with the model and the task beside it."""
    return run_search(settings(folder / "model", folder / "task.jsonl", **fields), folder / "run")


def world(folder: Path) -> Path:
    """A folder with a model and a task."""
    save_model(folder / "model")
    save_task(folder / "task.jsonl")
    return folder


def text_alone(state: dict[str, torch.Tensor], prompt: str) -> str:
    """What transformers generates greedily for one prompt with a member's weights."""
    network, tokenizer = model(), language_case.tokenizer()
    network.load_state_dict(state)
    ids = torch.tensor([tokenizer(prompt).input_ids])
    made = network.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, pad_token_id=0
    )
    return tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
