"""How long a person waits before anything happens: importing the package, and asking the command for help.

Each run is a fresh process, so it counts what a user pays. Slow times are reported, not punished: only a command
that fails makes this script fail.

    python benchmarks/startup.py
"""

import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from measure import markdown, where

RUNS = 5
FIRST_USE = "import jaxunlearn; jaxunlearn.methods, jaxunlearn.unlearn_step"


class Budget(NamedTuple):
    """A command and the seconds it may take; `None` where it is only there for comparison."""

    name: str
    command: list[str]
    seconds: float | None


def console_script() -> str:
    """The `jaxunlearn` command that was installed beside this interpreter."""
    beside = Path(sys.executable).parent
    found = shutil.which("jaxunlearn", path=str(beside))
    if found is None:
        sys.exit(f"there is no jaxunlearn command in {beside}; install the package first: pip install -e .")
    return found


def seconds(command: list[str]) -> float:
    """Wall time of one fresh process; a failing one ends the benchmark with its own error text."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    took = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed with status {done.returncode}:\n{done.stderr.strip()}")
    return took


def main() -> None:
    budgets = [
        Budget("python, nothing imported", [sys.executable, "-c", "pass"], None),
        Budget("import jaxunlearn", [sys.executable, "-c", "import jaxunlearn"], 1.0),
        Budget("jaxunlearn --help", [console_script(), "--help"], 0.5),
        # The package loads its parts when they are used: what that costs then, and how much of it is JAX.
        Budget("import jax", [sys.executable, "-c", "import jax"], None),
        Budget("first use of methods and unlearn_step", [sys.executable, "-c", FIRST_USE], None),
        Budget("jaxunlearn unlearn --help", [console_script(), "unlearn", "--help"], 0.5),
    ]
    place = where()
    for budget in budgets:  # the first run writes bytecode and fills the disk cache
        seconds(budget.command)
    times: dict[str, list[float]] = {budget.name: [] for budget in budgets}
    for _ in range(RUNS):
        for budget in budgets:
            times[budget.name].append(seconds(budget.command))
    rows = []
    for budget in budgets:
        median = statistics.median(times[budget.name])
        verdict = "" if budget.seconds is None else ("yes" if median <= budget.seconds else "NO")
        limit = "" if budget.seconds is None else f"{budget.seconds:.1f}"
        rows.append([budget.name, f"{median:.2f}", f"{max(times[budget.name]):.2f}", limit, verdict])
    print(markdown(["fresh process", f"median of {RUNS}, s", "slowest, s", "budget, s", "within"], rows))
    print(f"\n{place}")


if __name__ == "__main__":
    main()
