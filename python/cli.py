"""The command line `thickets`: experiments, votes with what they left behind, facts of this installation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thickets import options
from thickets.console import reported, show
from thickets.language import commands
from thickets.language.folder import is_language_run

if TYPE_CHECKING:
    from thickets.tasks.experiments import Experiment, Settings
    from thickets.tasks.tables import Table

app = typer.Typer(
    name="thickets",
    help="Evaluate N randomly perturbed copies of a network without building them; let the best vote.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Run = Annotated[Path, typer.Argument(help="A folder that search, demo, signals or digits wrote.")]
Out = Annotated[
    Path, typer.Option("--out", "-o", help="Folder for the results; the same command goes on in it.")
]
Count = Annotated[int, typer.Option("--n", "-n", help="Members to score.")]
Seed = Annotated[int, typer.Option(help="Seed of data, pretraining and members.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Sigma = Annotated[
    str, typer.Option(help="Noise scale, or several: 0.001,0.002. (default: the experiment's own)")
]
TopK = Annotated[
    str, typer.Option(help="How many vote: a count, or a share such as 0.01. (default: the experiment's own)")
]
Noise = Annotated[str, typer.Option(help="normal, normal4, rademacher, hadamard or lowrank-R.")]
Families = Annotated[str, typer.Option(help="Noise families to compare on the first case: all, or a,b,c.")]
Runs = Annotated[int, typer.Option(help="Runs of n members for each of --families.")]
Store = Annotated[
    Path | None, typer.Option(help="Folder of the results files, to go on with. (default: in --out)")
]
Backend = Annotated[str, typer.Option(help="auto, cpu or reference.")]
Model = Annotated[
    str, typer.Option(help="Where the base of a language run is now. (default: where the search found it)")
]


def main() -> None:
    """The entry point."""
    app()


@app.command()
@reported
def demo(out: Out = Path("thickets-demo"), n: Count = 500, seed: Seed = 0, as_json: Json = False) -> None:
    """Both experiments in about a minute: a table, pictures and experts that can vote, in a folder."""
    from thickets.tasks.experiments import run_demo
    from thickets.tasks.families import FAMILIES

    settings = _settings(n, seed, as_json, families=FAMILIES, family_n=max(1, n // 2), correlate=50)
    _finish(out, run_demo(out, settings, _say(as_json)), as_json)


@app.command()
@reported
def signals(
    out: Out = Path("thickets-signals"),
    n: Count = 1000,
    seed: Seed = 0,
    sigma: Sigma = "",
    top_k: TopK = "",
    noise: Noise = "normal",
    regime: Annotated[str, typer.Option(help="thicket, plateau, haystack, or all.")] = "all",
    target: Annotated[
        str, typer.Option(help="Family to adapt to: lines, sine, triangle, sawtooth, square.")
    ] = "sine",
    examples: Annotated[int, typer.Option(help="Signals that a member is scored on.")] = 1024,
    horizon: Annotated[int, typer.Option(help="Steps that are scored; 1 is teacher forcing.")] = 60,
    families: Families = "",
    runs: Runs = 1,
    store: Store = None,
    backend: Backend = "auto",
    as_json: Json = False,
) -> None:
    """The paper's 1-D experiment: forecast a signal, after three kinds of pretraining."""
    from thickets.tasks.experiments import run_experiment
    from thickets.tasks.signals import REGIMES

    settings = _settings(
        n,
        seed,
        as_json,
        sigma=options.numbers(sigma),
        top_k=options.top_k(top_k),
        noise=noise,
        families=options.families(families),
        runs=runs,
        store=store,
        backend=backend,
        options={"target": target, "examples": examples, "horizon": horizon},
    )
    regimes = tuple(REGIMES) if regime == "all" else (regime,)
    _finish(out, [run_experiment("signals", regimes, out, settings, _say(as_json))], as_json)


@app.command()
@reported
def digits(
    out: Out = Path("thickets-digits"),
    n: Count = 1000,
    seed: Seed = 0,
    sigma: Sigma = "",
    top_k: TopK = "",
    noise: Noise = "normal",
    shift: Annotated[str, typer.Option(help="rotation, blur, noise, or all.")] = "all",
    families: Families = "",
    runs: Runs = 1,
    store: Store = None,
    backend: Backend = "auto",
    as_json: Json = False,
) -> None:
    """Handwritten digits: adapt a network trained on clean upright scans to rotated, blurred, noisy ones."""
    from thickets.tasks.digits import SHIFTS
    from thickets.tasks.experiments import run_experiment

    settings = _settings(
        n,
        seed,
        as_json,
        sigma=options.numbers(sigma),
        top_k=options.top_k(top_k),
        noise=noise,
        families=options.families(families),
        runs=runs,
        store=store,
        backend=backend,
    )
    shifts = tuple(SHIFTS) if shift == "all" else (shift,)
    _finish(out, [run_experiment("digits", shifts, out, settings, _say(as_json))], as_json)


commands.add_to(app)


@app.command()
@reported
def vote(
    run: Run,
    inputs: Annotated[
        Path,
        typer.Option(
            help="A .jsonl file of problems; for an experiment .npy, .npz, .csv or .safetensors:"
            " digits [B, 8, 8], contexts [B, 10]."
        ),
    ],
    how: Annotated[
        str, typer.Option(help="Rule of the vote, as in thickets.vote. (default: the experiment's own)")
    ] = "",
    limit: Annotated[int, typer.Option(help="Rows of the table; --json prints all.")] = 20,
    model: Model = "",
    backend: Backend = "auto",
    as_json: Json = False,
) -> None:
    """Let the experts of a run answer new inputs; with targets in the file, score them too."""
    if is_language_run(run):
        commands.vote(run, inputs, how, limit, model, backend, as_json)
        return
    from thickets.tasks.answers import answer, answers_table

    answers = answer(run, inputs, how or None, backend)
    show(answers, [answers_table(answers, limit)], as_json)


@app.command()
@reported
def export(
    run: Run,
    to: Annotated[
        Path | None,
        typer.Option(help="The safetensors file, or of a language model the folder. (default: expert...)"),
    ] = None,
    member: Annotated[int, typer.Option(help="Rank of the expert; 0 is the best.")] = 0,
    model: Model = "",
    as_json: Json = False,
) -> None:
    """Write one expert: a safetensors file with the network's state dict, or a folder for from_pretrained."""
    if is_language_run(run):
        folder, to = run, to or Path("expert")
        expert = commands.export(run, to, member, model)
    else:
        from thickets.tasks.run import find_run, load_run

        folder, to = find_run(run), to or Path("expert.safetensors")
        _, base, thicket = load_run(folder)
        thicket.export(base, member, to)
        expert = thicket.members[member]
    facts = {
        "run": str(folder),
        "to": str(to),
        "seed": expert.seed,
        "sigma": expert.sigma,
        "score": expert.score,
    }
    show(facts, [f"{to}: member {member} of {folder}, seed {expert.seed}, sigma {expert.sigma:g}"], as_json)


@app.command()
@reported
def density(
    run: Annotated[
        Path,
        typer.Argument(help="A folder that search, demo, signals or digits wrote, or any results file."),
    ],
    as_json: Json = False,
) -> None:
    """Share of a run's members that beat its base, for each sigma, with 95 % intervals."""
    from thickets.tasks.answers import density_of, density_table

    found = density_of(run)
    show(found, [density_table(found)], as_json)


@app.command()
@reported
def bench(
    layers: Annotated[str, typer.Option(help="Outputs x inputs.")] = "512x512,768x3072,4096x4096",
    rows: Annotated[str, typer.Option(help="Rows of activations per member.")] = "1,8,64,512",
    tokens: Annotated[
        str, typer.Option(help="Products per member: the loop perturbs once for all of them.")
    ] = "1",
    families: Annotated[
        str, typer.Option(help="Noise families.")
    ] = "normal,normal4,rademacher,hadamard,lowrank-1",
    members: Annotated[int, typer.Option(help="Members per product.")] = 16,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    seconds: Annotated[float, typer.Option(help="Time for each case, at least three rounds.")] = 2.0,
    as_json: Json = False,
) -> None:
    """Time perturbed products against the loop of today's scripts and the unperturbed product."""
    import torch

    from thickets import bench as benchmark
    from thickets import info as installation

    shapes = [options.shape(text) for text in layers.split(",")]
    counts = [options.count(text, "rows") for text in rows.split(",")]
    times = [options.count(text, "tokens") for text in tokens.split(",")]
    say = _say(as_json)
    results = benchmark.run(
        benchmark.cases(shapes, counts, options.count(members, "members"), times),
        families=options.families(families),
        dtype=getattr(torch, options.one_of(dtype, ("float32", "bfloat16", "float16"), "dtype")),
        device=options.one_of(device, ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",), "device"),
        seconds=seconds,
        on_result=lambda result: say(str(result.case)),
    )
    facts = {"machine": installation.report(), "results": [result.as_dict() for result in results]}
    means = "Geometric means over the layers, x loop / x floor:"
    text = [installation.header(), "", benchmark.table(results), "", means, "", benchmark.summary(results)]
    if max(times) > 1:
        chosen = "What generation chooses, x loop, geometric means and the worst layer:"
        text += ["", chosen, "", benchmark.generation(results)]
    show(facts, text, as_json)


@app.command()
@reported
def info(as_json: Json = False) -> None:
    """Backends, instruction sets, versions, and why CUDA or Triton is off."""
    from thickets import info as installation

    show(installation.report(), [installation.text()], as_json)


def _settings(n: int, seed: int, quiet: bool, **settings: Any) -> Settings:
    from thickets.tasks.experiments import Settings

    return Settings(n=n, seed=seed, progress=not quiet, **settings)


def _say(quiet: bool) -> Callable[[str], None]:
    return lambda step: None if quiet else typer.echo(step, err=True)


def _finish(out: Path, experiments: list[Experiment], as_json: bool) -> None:
    from thickets.tasks.experiments import report_tables, write_report
    from thickets.tasks.run import HELD_OUT

    report = write_report(out, experiments)
    case = experiments[-1].folder / experiments[-1].outcomes[0].case.name
    where = f"{report['seconds']:.0f} s; pictures, report and experts are in {out}"
    then = f"Next: thickets vote {case} --inputs {case / HELD_OUT}"
    shown: list[Table | str] = [*report_tables(experiments), where, then]
    show(report, shown, as_json)
