"""What the benchmarks share: where a number was measured, timing side by side, and a Markdown table."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple


def where() -> str:
    """Machine, load and date in one line: a time without them means nothing."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    return (
        f"{cores} cores, {_processor()}, {platform.system()}, {load} before the start; "
        f"Python {platform.python_version()}; {datetime.now(UTC):%Y-%m-%d}"
    )


class Seconds(NamedTuple):
    """Wall time of one call: the median of all rounds, and the best, which other processes disturb least."""

    median: float
    best: float


def timings(runs: Mapping[str, Callable[[], object]], rounds: int, pause: float = 0.0) -> dict[str, Seconds]:
    """Seconds of each, all of them once a round, so that a busy moment of the machine hits them alike.

    Args:
        runs: blocking calls by name; each is called once unrecorded first.
        rounds: recorded calls of each.
        pause: seconds of rest before each call. OpenMP's threads go on spinning for a while after a call, and would
            take the cores from whatever is measured next.
    """
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            time.sleep(pause)
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: Seconds(statistics.median(values), min(values)) for name, values in seconds.items()}


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the rest are numbers."""
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return f"{platform.machine()} ({line.partition(':')[2].strip()})"
    return platform.machine()
