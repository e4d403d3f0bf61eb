"""Run one case: search, judge on held-out data, keep everything a later process needs in a folder.

A case's folder holds `base.safetensors` (the base network; its metadata say which case it is), `run.sqlite`
(every score), `experts.json` (the thicket), `held_out.npz` (inputs and targets) and `report.json`. Running
the same case into the same folder again goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from thickets.randopt import SearchResult, search
from thickets.randopt.evaluation import BASE_MEMBER
from thickets.randopt.report import Report
from thickets.statistics import Interval
from thickets.tasks import digits, signals
from thickets.tasks.case import Case, in_metric, plain
from thickets.thicket import Thicket
from thickets.votes import vote

TASKS: dict[str, ModuleType] = {"signals": signals, "digits": digits}
BASE, EXPERTS, STORE = "base.safetensors", "experts.json", "run.sqlite"
HELD_OUT, REPORT = "held_out.npz", "report.json"


@dataclass(frozen=True)
class Outcome:
    """A case after its search; predictions are on the held-out inputs, [B, ...] or [members, B, ...]."""

    case: Case
    result: SearchResult
    report: Report
    seconds: float
    base: Tensor
    random: Tensor
    top: Tensor
    ensemble: Tensor

    @property
    def examples(self) -> int:
        """How many examples a member was scored on."""
        return len(self.case.select[1])

    def interval(self, which: str) -> Interval:
        """`base`, `top_1`, `mean_top_k` or `vote` in the case's metric, with its 95 % interval."""
        return in_metric(getattr(self.report, which), self.case.metric)

    def as_dict(self) -> dict[str, Any]:
        """Settings and results as JSON values."""
        run, case, judged = self.result.run, self.case, self.report.as_dict()
        evaluated = sum(record.seconds for record in self.result.records)
        settings = ("noise", "precision", "sigmas", "mirrored", "seed", "contract")
        return {
            "task": case.task,
            "case": case.name,
            "options": case.options,
            "settings": {key: run[key] for key in settings}
            | {"n": self.result.n, "top_k": self.report.k, "vote": case.how},
            "metric": case.metric,
            **{which: plain(self.interval(which)) for which in ("base", "top_1", "mean_top_k", "vote")},
            "held_out_examples": self.report.examples,
            "selection": {"examples": self.examples, "base": case.sign * self.result.base.value},
            **{key: judged[key] for key in ("density", "held_out_density", "rank_correlation", "correlated")},
            "failures": {str(index): reason for index, reason in self.result.failures.items()},
            "seconds": round(self.seconds, 2),
            "members_per_second": round(len(self.result.records) / evaluated, 1) if evaluated else None,
        }


def open_case(task: str, name: str, folder: Path | None, **options: Any) -> Case:
    """The case of a folder, whose base network is pretrained and written there unless it is there already.

    folder: None keeps nothing. ValueError if the folder holds another case, or this one with other options.
    """
    if folder is None or not (folder / BASE).exists():
        case: Case = TASKS[task].case(name, **options)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            _save_base(case, folder / BASE)
        return case
    kept, model = load_base(folder)
    case = TASKS[task].case(name, **options, model=model)
    if kept != _identity(case):
        raise ValueError(
            f"folder {str(folder)!r} holds another run, {kept}, not {_identity(case)}: choose another folder"
        )
    return case


def run_case(
    case: Case,
    folder: Path | None = None,
    *,
    n: int,
    sigma: float | Sequence[float] | None = None,
    top_k: int | float | None = None,
    noise: str = "normal",
    seed: int | None = None,
    store: Path | None = None,
    correlate: int = 100,
    random: int = 20,
    progress: bool = True,
    backend: str = "auto",
) -> Outcome:
    """Search n members around a case's base, judge the best on its held-out data and write the folder.

    sigma, top_k: the case's by default.   seed: the search's master seed, the case's by default.   store: the
    results file, by default the folder's.   correlate, random: how many members give the rank correlation of
    the two scores, and the predictions of random members. Other arguments and errors as in `thickets.search`.
    """
    started = time.perf_counter()
    if store is None and folder is not None:
        store = folder / STORE
    result = search(
        case.model,
        data=[case.select],
        score=case.score,
        n=n,
        sigma=case.sigma if sigma is None else sigma,
        top_k=min(case.top_k, n) if top_k is None else top_k,
        noise=noise,
        seed=case.seed if seed is None else seed,
        store=store,
        stored=case.stored,
        progress=progress,
        backend=backend,
    )
    report = result.evaluate([case.held_out], how=case.how, correlate=correlate)
    inputs = case.held_out[0]
    size = result.evaluator.size([inputs], None, "auto")
    groups = ([BASE_MEMBER], result.scored[:random], result.top())
    base, others, top = (torch.as_tensor(result.evaluator.predictions(g, inputs, size)) for g in groups)
    outcome = Outcome(
        case=case,
        result=result,
        report=report,
        seconds=time.perf_counter() - started,
        base=base[0],
        random=others,
        top=top,
        ensemble=vote(top, case.how).prediction[0],
    )
    if folder is not None:
        result.thicket().save(folder / EXPERTS)
        _save_held_out(case, folder / HELD_OUT)
        write_json(outcome.as_dict(), folder / REPORT)
    return outcome


def find_run(folder: Path) -> Path:
    """The one case's folder in `folder`, itself included; ValueError if there is none, or a choice."""
    if not folder.is_dir():
        raise ValueError(f"run {str(folder)!r} is not a folder")
    found = sorted(path.parent for path in folder.rglob(EXPERTS) if (path.parent / BASE).exists())
    if len(found) == 1:
        return found[0]
    if not found:
        raise ValueError(
            f"run {str(folder)!r} holds no {EXPERTS} with its {BASE}:"
            " give what search, demo, digits or signals wrote"
        )
    raise ValueError(f"run {str(folder)!r} holds several: choose one of {', '.join(map(str, found))}")


def load_run(folder: Path) -> tuple[ModuleType, nn.Module, Thicket]:
    """Task, base network and experts of a case's folder: what a fresh process needs to vote."""
    identity, model = load_base(folder)
    return TASKS[identity["task"]], model, Thicket.load(folder / EXPERTS)


def load_base(folder: Path) -> tuple[dict[str, Any], nn.Module]:
    """What a folder's `base.safetensors` says it is, and the network; ValueError if it is damaged."""
    from safetensors import SafetensorError, safe_open

    file = folder / BASE
    try:
        with safe_open(file, framework="pt") as content:
            identity = json.loads((content.metadata() or {})["thickets"])
            state = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118  not a dict
        model: nn.Module = TASKS[identity["task"]].untrained()
        model.load_state_dict(state)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{str(file)!r} is not the base of a run: {error}") from None
    return identity, model.eval()


def write_json(values: dict[str, Any], path: Path) -> None:
    """One JSON object, indented; NaN is refused."""
    path.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _identity(case: Case) -> dict[str, Any]:
    return {"task": case.task, "case": case.name, "options": case.options}


def _save_base(case: Case, file: Path) -> None:
    from safetensors.torch import save_file

    temporary = file.with_suffix(".tmp")
    save_file(case.model.state_dict(), temporary, metadata={"thickets": json.dumps(_identity(case))})
    temporary.replace(file)


def _save_held_out(case: Case, file: Path) -> None:
    inputs, targets = case.held_out
    tensor = inputs["context"] if isinstance(inputs, dict) else inputs
    numpy.savez(file, inputs=tensor.numpy(), targets=targets.numpy())
