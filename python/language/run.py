"""RandOpt on a task of language: search, judge on held-out problems, leave all in a folder (folder.py).

The same call into the same folder goes on where it was, with more members too; another run is refused.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thickets import info
from thickets.language import folder as files
from thickets.language.answering import Answering, Judge, accuracy, in_format
from thickets.language.decoding import Decoding
from thickets.language.limits import worth_storing
from thickets.language.models import EMBEDDED, Opened, open_model
from thickets.language.report import Findings, check_how
from thickets.perturbed import PerturbedModule, perturb
from thickets.randopt import SearchResult, search
from thickets.randopt.batches import digest
from thickets.randopt.chunks import run_in_chunks
from thickets.randopt.evaluation import BASE_MEMBER, Evaluator, Member, check_chunking
from thickets.randopt.run import SEEDS, check_integer, check_sigmas, check_top_k
from thickets.randopt.store import Record
from thickets.tasks.problems import Task, extract_answers, open_task

SIGMAS = (5e-4, 1e-3, 2e-3)  # of the paper's published scripts
EMBEDDED_SIGMAS = (0.01, 0.015, 0.02)  # a small model's weights are few and large


@dataclass(frozen=True)
class Settings:
    """What to search, and how.

    model, dtype, device: as in `open_model`. task, train, test, data, scorer: as in `open_task`. sigma: the
    model's own by default. top_k: by default 50, or a tenth of n where that is fewer. chat: through the
    tokenizer's chat template, by default if it has one. strict: only answers in the asked format count.
    max_new_tokens: the task's by default. temperature: 0 is greedy. how: the rule of the vote. batch:
    problems of a member at once. correlate: how many members are scored on the held-out problems too. Others:
    as in `thickets.search`.
    """

    model: str = EMBEDDED
    task: str = EMBEDDED
    n: int = 500
    top_k: int | float | None = None
    sigma: Sequence[float] | None = None
    noise: str = "normal"
    precision: str = "exact"
    mirrored: bool = False
    seed: int = 0
    train: int = 200
    test: int = 200
    data: Path | None = None
    scorer: str | None = None
    strict: bool = False
    chat: bool | None = None
    max_new_tokens: int | None = None
    temperature: float = 0.0
    how: str = "majority"
    correlate: int = 50
    dtype: str = "auto"
    device: str = "auto"
    batch: int | None = None
    chunk: int | None = None
    memory: int | str = "auto"
    backend: str = "auto"
    progress: bool = True


def run_search(settings: Settings, out: Path, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Search around a model on a task, judge base, best member and vote; returns what report.json says.

    say: hears of each step. ValueError, TypeError or RuntimeError names what is wrong, before anything is
    computed if it can be known; MemoryError for what does not fit.
    """
    started = time.perf_counter()
    sigmas, top_k = _checked(settings)
    task = open_task(
        settings.task,
        train=settings.train,
        test=settings.test,
        seed=settings.seed,
        data=settings.data,
        scorer=settings.scorer,
    )
    say(f"model {settings.model}")
    opened = open_model(settings.model, settings.dtype, settings.device)
    answering = answering_of(settings, task, opened)
    pm = perturb(opened.model, noise=settings.noise, precision=settings.precision, backend=settings.backend)
    for problems in (task.train, task.test):  # one that is too long is said now
        answering.prompts(problems).check_length(context(opened.model), answering.decoding.max_new_tokens)
    files.begin(out, _identity(settings, task, opened, answering, pm, sigmas), task.test)
    say(f"task {task.name}: {len(task.train)} problems to select by, {len(task.test)} to judge by")
    stored = worth_storing(pm, answering.decoding.max_new_tokens)
    result = search(
        pm,
        data=[(task.train, task.train)],
        score=functools.partial(accuracy, task.scorer),
        n=settings.n,
        sigma=sigmas,
        top_k=top_k,
        seed=settings.seed,
        store=out / files.STORE,
        predict=answering,
        mirrored=settings.mirrored,
        chunk=settings.chunk,
        memory=settings.memory,
        fold=False,
        stored=stored,
        progress=answering.rate if settings.progress else False,
    )
    result.thicket().save(out / files.EXPERTS)
    speed = _speed(answering, result)
    say(f"best {len(result.top())} of {len(result.scored)} members on the held-out problems")
    found = _held_out(settings, task, Evaluator(pm, answering.texts, False, stored), result, out)
    report = {
        "machine": info.report(),
        "run": files.read_run(out),
        **found.as_dict(),
        "speed": speed,
        "seconds": round(time.perf_counter() - started, 2),
    }
    from thickets.language.pages import write_report

    write_report(out, found, report)
    return report


def answering_of(settings: Settings, task: Task, opened: Opened) -> Answering:
    """How the settings have problems answered."""
    template = getattr(opened.tokenizer, "chat_template", None) is not None
    sample = settings.temperature != 0
    decoding = Decoding(
        max_new_tokens=task.max_new_tokens if settings.max_new_tokens is None else settings.max_new_tokens,
        sample=sample,
        temperature=settings.temperature if sample else 1.0,
        sample_seed=settings.seed,
        stop=task.stop,
    )
    chat = template if settings.chat is None else settings.chat
    return Answering(opened.tokenizer, task.scorer, decoding, chat, settings.strict, settings.batch)


def context(model: Any) -> int | None:
    """How many tokens a model can take, if it says."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def _checked(settings: Settings) -> tuple[list[float], int | float]:
    """Sigmas and top_k; ValueError for a bad number, before any file is read."""
    check_integer(settings.n, "n", 1)
    check_integer(settings.seed, "seed", 0, SEEDS)
    check_integer(settings.correlate, "correlate", 0)
    if settings.batch is not None:
        check_integer(settings.batch, "batch", 1)
    check_chunking(settings.chunk, settings.memory)
    check_how(settings.how)
    top_k = min(50, max(1, settings.n // 10)) if settings.top_k is None else settings.top_k
    own = EMBEDDED_SIGMAS if settings.model == EMBEDDED else SIGMAS
    sigmas = check_sigmas(own if settings.sigma is None else settings.sigma)
    return sigmas, check_top_k(top_k, settings.n)


def _identity(
    settings: Settings,
    task: Task,
    opened: Opened,
    answering: Answering,
    pm: PerturbedModule,
    sigmas: Sequence[float],
) -> dict[str, Any]:
    """What the scores and answers of a run depend on; another of it is another run."""
    tokenizer, decoding = opened.tokenizer, answering.decoding
    return {
        **opened.identity,
        "base": pm.fingerprint,
        "tokenizer": digest([sorted(tokenizer.get_vocab().items()), tokenizer.chat_template]),
        "task": task.name,
        "train": digest(task.train),
        "test": digest(task.test),
        "scorer": task.scorer.name,
        "asked_format": task.asked_format,
        "strict": settings.strict,
        "chat": answering.chat,
        "max_new_tokens": decoding.max_new_tokens,
        "temperature": settings.temperature,
        "stop": list(decoding.stop),
        "noise": str(pm.noise),
        "precision": pm.precision,
        "sigmas": sorted(sigmas),
        "mirrored": settings.mirrored,
        "seed": settings.seed,
    }


def _held_out(
    settings: Settings,
    task: Task,
    evaluator: Evaluator,
    result: SearchResult,
    out: Path,
) -> Findings:
    """Base, experts and the sample on the held-out problems."""
    top, sample = result.top(), result.scored[: settings.correlate]
    texts = _texts(settings, task, evaluator, [BASE_MEMBER, *top], sample, out)
    sample = [record for record in sample if record.index in texts]
    indices = {-1, *(record.index for record in (*top, *sample))}
    judge = Judge(task.scorer)
    read = extract_answers(judge, [texts[index] for index in indices], task.test)
    answers = dict(zip(indices, read, strict=True))
    sampled = [answers[record.index] for record in sample]
    scores = accuracy(judge, in_format(sampled) if settings.strict else sampled, task.test)
    return Findings(
        result=result,
        problems=task.test,
        scorer=judge,
        strict=settings.strict,
        how=settings.how,
        experts=top,
        base=answers[-1],
        top=[answers[record.index] for record in top],
        base_texts=texts[-1],
        sample=[(record, float(row.double().mean())) for record, row in zip(sample, scores, strict=True)],
    )


def _texts(
    settings: Settings,
    task: Task,
    evaluator: Evaluator,
    needed: Sequence[Member | Record],
    sample: Sequence[Record],
    out: Path,
) -> dict[int, list[str]]:
    """What members write about the held-out problems, by index; what the folder holds is not made again.

    Each is noted there at once. A member of the sample that fails is left out, one needed is an error.
    """
    texts = files.read_texts(out, len(task.test))
    wanted: dict[int, Member | Record] = {member.index: member for member in (*needed, *sample)}
    missing = [member for index, member in wanted.items() if index not in texts]
    if not missing:
        return texts
    must = {member.index for member in needed}
    size = evaluator.size([task.test], settings.chunk, settings.memory)
    for outcome in run_in_chunks(missing, lambda some: evaluator.together(some, task.test), size):
        if outcome.error is not None and must & {member.index for member in outcome.items}:
            raise outcome.error
        for member, written in zip(outcome.items, outcome.result or (), strict=False):
            files.add_texts(out, member.index, member, written)
            texts[member.index] = written
    return texts


def _speed(answering: Answering, result: SearchResult) -> dict[str, float | None]:
    """Members per second over the whole run, tokens per second of this process's part in it."""
    seconds = sum(record.seconds for record in result.records)
    return {
        "members_per_second": round(len(result.records) / seconds, 3) if seconds else None,
        "tokens_per_second": round(answering.tokens / answering.seconds, 1) if answering.seconds else None,
    }
