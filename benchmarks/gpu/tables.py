"""What was found, as Markdown: the machine, the tests, every measurement, a line per case, the targets."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from .cases import FAMILIES
from .targets import ratio, verdicts

BASELINES = ("loop", "floor A", "floor B", "copy")
Facts = dict[str, Any]


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table, or nothing where there are no rows."""
    lines = [header, ["---"] * len(header), *rows]
    if len(lines) == 2:
        return ""
    cells = [[" ".join(str(cell).split()).replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def machine(facts: Facts) -> str:
    """Hardware, versions, ceilings, clocks, phases and the outcome of the tests; whatever of it is there."""
    rows: list[tuple[str, object]] = []
    if "machine" in facts:
        here = facts["machine"]
        info = here["info"]
        versions = {**info["versions"], "CUDA of torch": here["torch_cuda"], "nvcc": here["nvcc"]}
        cuda = info["cuda"]
        rows += [
            ("GPU, memory, driver", here["gpu"]),
            ("capability, multiprocessors, L2", "{capability}, {multiprocessors}, {L2_MB} MB".format(**here)),
            ("CPU", f"{info['cpu']['model']}, {info['cpu']['cores']} cores"),
            ("versions", ", ".join(f"{name} {v}" for name, v in versions.items() if v)),
            ("commit", here["commit"] or "not a checkout"),
            ("thickets' CUDA kernels", cuda["why_not"] or f"by CUDA {cuda['toolkit']}"),
        ]
    for when, clocks in facts.get("clocks", {}).items():
        rows.append((f"clocks {when}: sm, its maximum, memory, its maximum, power, temperature", clocks))
    for name, words in (
        ("copy_GB_per_s", "copy, GB/s"),
        ("bf16_TFLOP_per_s", "bfloat16 product of 8192, TFLOP/s"),
    ):
        if name in facts.get("ceilings", {}):
            rows.append((words, "{} ({} to {})".format(*facts["ceilings"][name])))
    rows += [(f"phase {name}", words) for name, words in facts.get("phases", {}).items()]
    tests = facts.get("tests", {})
    for group, counts in tests.get("outcomes", {}).items():
        rows.append((f"tests, {group}", ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items()))))
    rows += [("tests left out", f"{n}: {reason}") for reason, n in tests.get("left_out", {}).items()]
    rows += [(f"check {name}", ": ".join(outcome)) for name, outcome in facts.get("checks", {}).items()]
    rows += [("FAILED", name) for name in failures(facts)]
    return markdown(("what", "value: median (20 % to 80 % quantile of time)"), rows)


def failures(facts: Facts) -> list[str]:
    """Everything that went wrong: phases, tests, checks, contenders."""
    found = [f"phase {name}: {why}" for name, why in facts.get("trouble", {}).items()]
    found += facts.get("tests", {}).get("failed", [])
    checks = facts.get("checks", {}).items()
    found += [f"check {name}: {words}" for name, (outcome, words) in checks if outcome == "failed"]
    for result in facts.get("measured", {}).get("results", []):
        found += [f"{result['name']}: {name}: {why[:200]}" for name, why in result["failed"].items()]
    found += [f"{name}: {why[:200]}" for name, why in facts.get("models", {}).get("failed", {}).items()]
    return found


def measurements(measured: Facts) -> str:
    """Every contender of every case, times per member; then what was left out."""
    header = ("case", "contender", "us", "20-80 %", "launch us", "GB/s", "TFLOP/s", "peak MB", "error")
    rows = []
    for result in measured["results"]:
        contenders = result["contenders"]
        for name, c in contenders.items():
            if "us" not in c:
                continue
            ratios = [_times(ratio(contenders, name, base)) for base in BASELINES]
            spread, launch = f"{_number(c['low'])}-{_number(c['high'])}", _number(c["launch_us"])
            how = "" if c["timed"] in ("graph", "host") else f" ({c['timed']})"
            row = (result["name"], name + how, _number(c["us"]), spread, launch, _number(c["GB_per_s"]))
            error = "" if c["error"] is None else f"{c['error']:.1e}"
            rows.append((*row, _number(c["TFLOP_per_s"]), _number(c["peak_MB"]), error, *ratios))
    return markdown((*header, *(f"x {base}" for base in BASELINES)), rows) + left_out(measured["left_out"])


def left_out(cases: dict[str, str]) -> str:
    """A paragraph per reason that names the cases, those of a layer together."""
    reasons: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, reason in cases.items():
        layer, _, rest = name.partition(", ")
        reasons[reason][layer].append(rest.replace(", ", " "))
    lines = []
    for reason, layers in reasons.items():
        names = "; ".join(f"{layer}: {', '.join(rest)}" for layer, rest in layers.items())
        count = sum(len(rest) for rest in layers.values())
        lines.append(f"\nLeft out, {reason} ({count}): {names}.\n")
    return "".join(lines)


def overview(results: Sequence[Facts], backend: str) -> str:
    """A line per case, microseconds per member: baselines, then `exact/storage/scratch` of each family."""
    linear, update = [], []
    for result in results:
        c = result["contenders"]
        if result["case"]["kind"] == "update":
            cells = [_us(c, name) for name in ("loop", "copy", *(f"{backend} {f}" for f in FAMILIES))]
            update.append((result["name"], *cells))
            continue
        ours = [
            "/".join(_us(c, f"{backend} {f} {how}") for how in ("exact", "storage", "scratch"))
            for f in FAMILIES
        ]
        linear.append((result["name"], *(_us(c, base) for base in BASELINES[:3]), *ours))
    tables = [
        markdown(("us per member; exact/storage/scratch", *BASELINES[:3], *FAMILIES), linear),
        markdown(("us per member", "loop", "copy", *FAMILIES), update),
    ]
    return "\n".join(table for table in tables if table)


def targets(results: Sequence[Facts], backends: Sequence[str]) -> str:
    """Which targets are met: the worst ratio and where, the geometric mean, in how many."""
    rows = []
    for v in verdicts(results, backends):
        goal = f">= {v.target.least} x {v.target.baseline}"
        cells = ("", "", "")
        if v.ratios:
            worst = min(v.ratios, key=v.ratios.__getitem__)
            cells = (f"{v.ratios[worst]:.2f}", worst, f"{v.mean:.2f}")
        word = v.word + (f" ({len(v.failed)} not timed)" if v.failed else "")
        rows.append((v.backend, v.target.text, goal, word, *cells))
    return markdown(("backend", "target", "goal", "verdict", "worst", "where", "geometric mean"), rows)


def models(found: Facts) -> str:
    """Whole language models: members and tokens a second, ratio to the loop, peak memory."""
    header = ("case", "contender", "members/s", "20-80 %", "tokens/s", "x loop", "peak MB")
    rows = []
    for result in found["results"]:
        contenders = result["contenders"]
        for name, c in contenders.items():
            spread = f"{_number(1 / c['high'])}-{_number(1 / c['low'])}"
            peak = "" if c["peak"] is None else _number(c["peak"] / 1e6)
            rates = (_number(1 / c["median"]), spread, _number(result["made"] / c["median"]))
            rows.append(
                (result["name"], name, *rates, _times(contenders["loop"]["median"] / c["median"]), peak)
            )
    failed = "".join(f"\nFailed: {name}: {why}.\n" for name, why in found["failed"].items())
    return markdown(header, rows) + failed + left_out(found["left_out"])


def report(facts: Facts, complete: bool) -> str:
    """All tables, the targets last; `complete` with every measurement, else a line per case."""
    parts = [machine(facts)]
    measured = facts.get("measured")
    if measured and measured["results"]:
        backends = measured["settings"]["backends"]
        parts.append(measurements(measured) if complete else left_out(measured["left_out"]))
        parts += [overview(measured["results"], backend) for backend in backends]
        parts.append(targets(measured["results"], backends))
    if "models" in facts:
        parts.insert(1, models(facts["models"]))
    return "\n".join(part for part in parts if part)


def _us(contenders: Facts, name: str) -> str:
    return _number(contenders.get(name, {}).get("us")) or "-"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _number(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
