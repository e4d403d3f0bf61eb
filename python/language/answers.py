"""What a run on a language task can still do in a fresh process: answer problems, hand out its experts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from thickets.language.answering import Answering, accuracy, in_format
from thickets.language.decoding import Decoding
from thickets.language.folder import EXPERTS, other_base, read_run
from thickets.language.limits import worth_storing
from thickets.language.models import Opened, open_model
from thickets.language.report import check_how
from thickets.randopt.evaluation import Evaluator
from thickets.statistics import score_interval
from thickets.tasks.case import plain
from thickets.tasks.problems import extract_answers
from thickets.tasks.records import read_problems
from thickets.tasks.scoring import open_scorer
from thickets.tasks.tables import Table
from thickets.thicket import Expert, Thicket, ThicketError
from thickets.votes import score_weights, vote

if TYPE_CHECKING:
    from thickets.perturbed import PerturbedModule


class Opening(NamedTuple):
    """A run, its base, and the base perturbed as the search perturbed it."""

    run: dict[str, Any]
    thicket: Thicket
    base: Opened
    pm: PerturbedModule


def open_run(folder: Path, model: str | None = None, device: str = "auto", backend: str = "auto") -> Opening:
    """The experts of a run's folder around their base; ValueError if the base is another one by now.

    model: where the base is, by default where the search found it.
    """
    run = read_run(folder)
    if not (folder / EXPERTS).is_file():
        raise ValueError(f"run {str(folder)!r} has no experts yet: let its search finish")
    thicket = Thicket.load(folder / EXPERTS)
    base = open_model(model or run["model"], run["dtype"], device)
    try:
        return Opening(run, thicket, base, thicket.perturbed(base.model, backend))
    except ThicketError:
        raise ValueError(other_base(run, base.identity["model"])) from None


def answer(
    folder: Path, file: Path, how: str | None = None, model: str | None = None, **place: str
) -> dict[str, Any]:
    """The experts' votes on the problems of a .jsonl file as JSON values, with accuracy if it has answers.

    how: majority or weighted.
    """
    how = how or "majority"
    check_how(how)
    problems = read_problems(file, read_run(folder)["task"])
    run, thicket, base, pm = open_run(folder, model, **place)
    scorer = open_scorer(run["scorer"])
    decoding = Decoding(
        max_new_tokens=run["max_new_tokens"],
        sample=run["temperature"] != 0,
        temperature=run["temperature"] or 1.0,
        sample_seed=run["seed"],
        stop=tuple(run["stop"]),
    )
    answering = Answering(base.tokenizer, scorer, decoding, run["chat"], run["strict"])
    evaluator = Evaluator(pm, answering.texts, False, worth_storing(pm, decoding.max_new_tokens))
    size = evaluator.size([problems], None, "auto")
    texts: Any = evaluator.predictions(thicket.members, problems, size)
    answers = extract_answers(scorer, texts, problems)
    counted = in_format(answers) if run["strict"] else answers
    weights = score_weights([member.score for member in thicket.members]) if how == "weighted" else None
    votes = vote(counted, how, weights=weights)
    measured = None
    if all(problem.answer is not None for problem in problems):
        interval = score_interval(accuracy(scorer, votes.prediction, problems)[0])
        measured = {"metric": "accuracy", **plain(interval)}
    return {
        "run": str(folder),
        "how": how,
        "experts": len(thicket.members),
        "prompts": [problem.content for problem in problems],
        "answers": [None if a is None else a.value for a in votes.answers],
        "confidence": None if votes.confidence is None else votes.confidence.tolist(),
        "measured": measured,
    }


def answers_table(answers: dict[str, Any], limit: int) -> Table:
    """The first answers, one line for each problem."""
    rows = [
        (_end(prompt), "none" if given is None else _end(given), f"{confidence:.2f}")
        for prompt, given, confidence in zip(
            answers["prompts"][:limit], answers["answers"][:limit], answers["confidence"][:limit], strict=True
        )
    ]
    note = f"{len(rows)} of {len(answers['answers'])} problems shown."
    if answers["measured"] is not None:
        measured = answers["measured"]
        note += (
            f" {measured['metric']} {measured['value']:.3f} [{measured['low']:.3f}, {measured['high']:.3f}]."
        )
    title = f"{answers['experts']} experts of {answers['run']}, {answers['how']}"
    return Table(title, ("problem", "answer", "share of the experts"), rows, note)


def export(folder: Path, to: Path, member: int = 0, model: str | None = None) -> Expert:
    """Write one expert as a folder that `from_pretrained` opens: configuration, tokenizer and safetensors.

    member: the rank, 0 is the best. IndexError for a rank that is not there, ValueError for another base.
    """
    if to.suffix == ".safetensors" or to.is_file():
        raise ValueError(f"to must be a folder for an expert of a language model, got {str(to)!r}")
    _, thicket, base, pm = open_run(folder, model, device="cpu")
    if str(to.resolve()) == base.identity["model"]:
        raise ValueError(f"to must be another folder than the base's, got {str(to)!r}")
    if not 0 <= member < len(thicket.members):
        raise IndexError(f"index must be a rank in [0, {len(thicket.members)}), got {member}")
    expert = thicket.members[member]
    state = pm.materialize(expert.seed, expert.sigma)
    network: Any = base.model
    if pm.precision == "exact":
        network = network.float()
    network.load_state_dict(state)
    network.save_pretrained(to)
    base.tokenizer.save_pretrained(to)
    return expert


def _end(text: str, most: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else "…" + line[-most:]
