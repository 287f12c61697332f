"""What the benchmarks share: where a number was measured, timing side by side, and a Markdown table."""

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path


def where() -> str:
    """Machine, load and date in one line: a time without them means nothing."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    return (
        f"{cores} cores, {_processor()}, {platform.system()}, {load} before the start; "
        f"Python {platform.python_version()}; {datetime.now(UTC):%Y-%m-%d}"
    )


def samples(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    pause: float = 0.0,
) -> dict[str, list[float]]:
    """Seconds of every call, each function once a round, so that a busy moment of the machine hits them alike.

    Args:
        runs: blocking calls by name, each of which has been called before.
        rounds: recorded calls of each.
        clock: `time.perf_counter`, or `time.process_time`, which counts no time in which the machine served others.
        pause: seconds of rest before each call. OpenMP's threads go on spinning for a while after a call, and would
            take the cores from whatever is measured next.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            time.sleep(pause)
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return seconds


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
