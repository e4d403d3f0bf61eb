"""The commands `search` and `pretrain`, and how the others serve the folders that a search writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from thickets import options
from thickets.console import reported, show

if TYPE_CHECKING:
    from thickets.thicket import Expert

Count = Annotated[int, typer.Option("--n", "-n", help="Members to score.")]


class SeveralSigmas(TyperCommand):
    """A command whose --sigma takes several values: --sigma 5e-4 1e-3, or 5e-4,1e-3, or several."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give each value its own --sigma before anything is parsed."""
        return super().parse_args(ctx, options.gathered(args, "--sigma"))


@reported
def search(
    model: Annotated[
        str,
        typer.Option(help="Folder or hub's id of a language model; `arithmetic` is the small one here."),
    ] = "arithmetic",
    task: Annotated[
        str, typer.Option(help="arithmetic, countdown, gsm8k, math500, or a .jsonl file of problems.")
    ] = "arithmetic",
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the results; the same command goes on in it.")
    ] = Path("thickets-search"),
    n: Count = 500,
    sigma: Annotated[
        list[str] | None,
        typer.Option(help="Noise scales: 5e-4 1e-3 2e-3. (default: these; the small model has its own)"),
    ] = None,
    top_k: Annotated[
        str,
        typer.Option(
            help="How many vote: a count, or a share such as 0.01. (default: a tenth of n, at most 50)"
        ),
    ] = "",
    noise: Annotated[
        str, typer.Option(help="normal, normal4, rademacher, hadamard or lowrank-R.")
    ] = "normal",
    mirrored: Annotated[bool, typer.Option("--mirrored", help="Members in pairs of opposite noise.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of problems and members.")] = 0,
    train: Annotated[int, typer.Option(help="Problems to select members by.")] = 200,
    test: Annotated[int, typer.Option(help="Other problems, to judge by.")] = 200,
    data: Annotated[
        Path | None,
        typer.Option(help="Local file or folder of a named task's problems. (default: the network)"),
    ] = None,
    scorer: Annotated[
        str,
        typer.Option(help="How answers are read: a name, or package.module:object. (default: the task's)"),
    ] = "",
    strict: Annotated[bool, typer.Option("--strict", help="Only answers in the asked format count.")] = False,
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--no-chat", help="Apply the chat template. (default: if there is one)"),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Tokens of an answer. (default: the task's)")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Sample; 0 is greedy.")] = 0.0,
    how: Annotated[str, typer.Option(help="majority, or weighted by score.")] = "majority",
    dtype: Annotated[
        str,
        typer.Option(help="float32, bfloat16, float16. (default: float32 on a CPU, else the checkpoint's)"),
    ] = "auto",
    precision: Annotated[str, typer.Option(help="exact, or storage: round to dtype.")] = "exact",
    device: Annotated[str, typer.Option(help="cpu, cuda. (default: a GPU if there is one)")] = "auto",
    batch: Annotated[int | None, typer.Option(help="Problems of a member at once. (default: all)")] = None,
    chunk: Annotated[int | None, typer.Option(help="Members at once. (default: what runs fastest)")] = None,
    memory: Annotated[str, typer.Option(help="Bytes for members at once, or auto.")] = "auto",
    backend: Annotated[str, typer.Option(help="auto, cpu, cuda, triton or reference.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Search experts around a language model on a task, let them vote, report: RandOpt from end to end."""
    from thickets.language.models import quiet
    from thickets.language.pages import shown
    from thickets.language.run import Settings, run_search

    settings = Settings(
        model=model,
        task=task,
        n=n,
        top_k=options.top_k(top_k),
        sigma=options.numbers(",".join(sigma or [])),
        noise=noise,
        precision=precision,
        mirrored=mirrored,
        seed=seed,
        train=train,
        test=test,
        data=data,
        scorer=scorer or None,
        strict=strict,
        chat=chat,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        how=how,
        dtype=dtype,
        device=device,
        batch=batch,
        chunk=chunk,
        memory=memory if memory == "auto" else options.count(memory, "memory"),
        backend=backend,
        progress=not as_json,
    )
    quiet()
    report = run_search(settings, out, lambda step: None if as_json else typer.echo(step, err=True))
    show(report, shown(report, out), as_json)


@reported
def pretrain(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the model and its tokenizer.")],
    seed: Annotated[int, typer.Option(help="Seed of weights and training texts.")] = 0,
) -> None:
    """Make the small language model that comes with the package again: minutes, on one thread."""
    from thickets.language.models import quiet
    from thickets.tasks.pretrain import PHASES, write

    quiet()
    steps = sum(phase.steps for phase in PHASES)

    def report(step: int, loss: float) -> None:
        if step % 100 == 0:
            typer.echo(f"step {step} of {steps}: loss {loss:.3f}", err=True)

    write(out, PHASES, seed, report)
    typer.echo(f"Next: thickets search --model {out}")


def vote(run: Path, inputs: Path, how: str, limit: int, model: str, backend: str, as_json: bool) -> None:
    """`thickets vote` with a run's folder of ours."""
    from thickets.language.answers import answer, answers_table
    from thickets.language.models import quiet

    quiet()
    answers = answer(run, inputs, how or None, model or None, backend=backend)
    show(answers, [answers_table(answers, limit)], as_json)


def export(run: Path, to: Path, member: int, model: str) -> Expert:
    """`thickets export` with a run's folder of ours."""
    from thickets.language import answers
    from thickets.language.models import quiet

    quiet()
    return answers.export(run, to, member, model or None)


def add_to(app: typer.Typer) -> None:
    """Give the command line its commands `search` and `pretrain`."""
    app.command(cls=SeveralSigmas)(search)
    app.command()(pretrain)
