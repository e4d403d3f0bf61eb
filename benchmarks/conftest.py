"""What every benchmark prints: the machine above, below it each contender's ratio to loop and floor."""

from collections import defaultdict
from typing import Any

import pytest

from thickets import info


def pytest_report_header() -> list[str]:
    return info.header().splitlines()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """One table per group; a contender's extra_info says how many members, flops and bytes a call is, and
    how many tokens a member makes.
    """
    groups: dict[str, dict[str, Any]] = defaultdict(dict)
    for bench in config._benchmarksession.benchmarks:  # type: ignore[attr-defined]
        groups[bench.group][bench.extra_info["contender"]] = bench
    for group, contenders in groups.items():
        terminalreporter.section(group)
        terminalreporter.write_line(
            f"{'':20}{'us':>12}{'quartiles':>22}{'GFLOP/s':>10}{'GB/s':>8}{'tokens/s':>10}"
            f"{'x loop':>9}{'x floor':>9}"
        )
        for name, bench in contenders.items():
            each = bench.extra_info.get("members", 1)
            median = bench.stats.median / each
            spread = f"{bench.stats.q1 / each * 1e6:.1f}-{bench.stats.q3 / each * 1e6:.1f}"
            flops, memory = (_rate(bench.extra_info.get(key), median) for key in ("flops", "bytes"))
            made = bench.extra_info.get("tokens")
            tokens = "" if made is None else f"{made / median:.0f}"
            loop, floor = (_ratio(contenders.get(base), median) for base in ("loop", "floor"))
            line = f"{name:20}{median * 1e6:>12.1f}{spread:>22}{flops:>10}{memory:>8}"
            terminalreporter.write_line(f"{line}{tokens:>10}{loop:>9}{floor:>9}")


def _rate(amount: float | None, seconds: float) -> str:
    return "" if amount is None else f"{amount / seconds / 1e9:.1f}"


def _ratio(baseline: Any, seconds: float) -> str:
    if baseline is None:
        return ""
    return f"{baseline.stats.median / baseline.extra_info.get('members', 1) / seconds:.2f}"
