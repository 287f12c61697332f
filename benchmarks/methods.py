"""Every method on equal terms: the same problems, the same number of trials, the same measurements.

A small LLaMA learns a corpus; what it should forget is known, and so is the model retrained without it. Each method is
tuned with six trials on one seed and shown on three others. It may see the whole retain set, five percent of it, or
none (only what was stored beforehand); it gets the forget set at once, or as ten requests in a row, with six trials of
their own.

    python benchmarks/methods.py --quick                    # six methods, one seed
    python benchmarks/methods.py                            # everything on the built-in corpus: hours
    python benchmarks/methods.py --problems tofu-forget01 --tofu ../shared/data/tofu
    python benchmarks/methods.py --table                    # from what has been measured so far

Every unit of work is a JSON file in the output folder, written whole; a run that was stopped goes on where it was.
The tables, all numbers and a picture are written anew after each method.
"""

import argparse
import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from comparison.candidates import CANDIDATES, QUICK, REGIMES, Options
from comparison.measures import Measurer, distance
from comparison.problems import SIZES, Problem, build, default_cache
from comparison.show import show
from comparison.trial import Cost, at_once, in_a_row
from measure import where

from jaxunlearn import files

TUNED_ON, SHOWN_ON = 1, (2, 3, 4)


def main() -> None:
    about, usage = __doc__.split("\n\n", 1)
    parser = argparse.ArgumentParser(
        description=about, epilog=usage, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("methods-run"), help="folder of the units and the tables")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder of trained models")
    parser.add_argument("--tofu", type=Path, default=Path("../shared/data/tofu"), help="folder of TOFU's files")
    parser.add_argument("--problems", nargs="+", choices=SIZES, default=["builtin"])
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=list(REGIMES))
    parser.add_argument("--methods", nargs="+", choices=CANDIDATES, default=list(CANDIDATES), metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SHOWN_ON), help="seeds that are shown")
    parser.add_argument("--no-row", action="store_true", help="leave out the ten requests in a row")
    parser.add_argument(
        "--quick", action="store_true", help="six methods at once, two trials each, one seed, two regimes"
    )
    parser.add_argument("--table", action="store_true", help="only write the tables again")
    args = parser.parse_args()
    if TUNED_ON in args.seeds:
        parser.error(f"--seeds {TUNED_ON}: methods are tuned on this seed; show others")
    if args.quick:
        args.methods, args.seeds, args.regimes, args.no_row = list(QUICK), args.seeds[:1], ["whole", "none"], True
    units = Units(args.out)
    if not args.table:
        for problem in args.problems:
            for regime in args.regimes:
                run(args, units, Bench(problem, regime, args.cache, args.tofu))
    show(args.out, where())


class Units:
    """Results by name, each in a file of its own that appears whole."""

    def __init__(self, folder: Path):
        self.folder = folder / "units"

    def get(self, name: str, make: Callable[..., Any], *args: Any) -> Any:
        """The result `name`, made by `make(*args)` if it is not there; what fails is a result as well."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            start = time.perf_counter()
            try:
                found = make(*args)
            except Exception as error:  # one method's failure must not end the comparison
                traceback.print_exc()
                found = {"error": f"{type(error).__name__}: {error}"}
            if not path.exists():  # another run that shares the folder may have been faster
                files.write_new(path, json.dumps(found, indent=1, allow_nan=False).encode())
            print(f"{time.perf_counter() - start:6.0f} s  {name}", flush=True)
        return json.loads(path.read_text())


class Bench:
    """A problem under every seed, built when it is first asked for, in one regime."""

    def __init__(self, name: str, regime: str, cache: Path, tofu: Path):
        self.name, self.regime = name, regime
        self._at, self._known = (cache, tofu), {}

    def problem(self, seed: int) -> Problem:
        if seed not in self._known:
            found = build(self.name, seed, *self._at, lambda line: print(f"          {line}", flush=True))
            self._known[seed] = found, Measurer(found)
        return self._known[seed][0]

    def measure(self, seed: int) -> Measurer:
        self.problem(seed)
        return self._known[seed][1]


def run(args: argparse.Namespace, units: Units, bench: Bench) -> None:
    """All methods on one problem in one regime."""
    for seed in args.seeds:
        units.get(f"{bench.name}/frame-{seed}", frame, bench, seed)
    for method in args.methods:
        candidate = CANDIDATES[method]
        if not candidate.runs_in(bench.regime):
            continue
        at = f"{bench.name}/{bench.regime}/{method}"
        trials = list(enumerate(candidate.trials[1::3] if args.quick else candidate.trials))
        tried = [units.get(f"{at}/try-{n}", attempt, method, options, bench) for n, options in trials]
        best = units.get(f"{at}/chosen", chosen, tried)
        if "error" in best:
            continue
        for seed in args.seeds:
            units.get(f"{at}/once-{seed}", once, method, best["options"], bench, seed)
        if not args.no_row:
            tried = [units.get(f"{at}/row-try-{n}", row_attempt, method, options, bench) for n, options in trials]
            best = units.get(f"{at}/row-chosen", chosen, tried)
            for seed in args.seeds if "error" not in best else ():
                units.get(f"{at}/row-{seed}", row, method, best["options"], bench, seed)
        show(args.out, where())


def attempt(method: str, options: Options, bench: Bench) -> dict:
    """A trial: what it was, how far from the retrained model it ended."""
    problem = bench.problem(TUNED_ON)
    done = at_once(CANDIDATES[method], options, problem, bench.regime)
    return {"options": options, "distance": distance(problem, done.model, done.params)}


def row_attempt(method: str, options: Options, bench: Bench) -> dict:
    """The same over ten requests in a row, which want other hyperparameters than the forget set at once."""
    problem = bench.problem(TUNED_ON)
    *_, done = in_a_row(CANDIDATES[method], options, problem, bench.regime)
    return {"options": options, "distance": distance(problem, done.model, done.params)}


def chosen(tried: list[dict]) -> dict:
    """The options of the trial that ended nearest to the retrained model."""
    whole = [one for one in tried if "error" not in one and one["distance"]["distance"] is not None]
    if not whole:
        raise ValueError("every trial failed")
    return {"options": min(whole, key=lambda one: one["distance"]["distance"])["options"], "trials": len(tried)}


def once(method: str, options: Options, bench: Bench, seed: int) -> dict:
    """The forget set at once, measured in full."""
    problem = bench.problem(seed)
    done = at_once(CANDIDATES[method], options, problem, bench.regime)
    return {"numbers": bench.measure(seed)(done.model, done.params), "cost": share(done.cost, problem)}


def row(method: str, options: Options, bench: Bench, seed: int) -> dict:
    """Ten requests in a row: the distance after each of them, everything after the last."""
    problem, curve = bench.problem(seed), []
    for done in in_a_row(CANDIDATES[method], options, problem, bench.regime):
        curve.append(distance(problem, done.model, done.params))
    numbers = bench.measure(seed)(done.model, done.params)
    return {"numbers": numbers, "cost": share(done.cost, problem), "curve": curve}


def frame(bench: Bench, seed: int) -> dict:
    """What every method is compared with: the model before, one retrained, and a second retrained one: the floor."""
    problem, measure = bench.problem(seed), bench.measure(seed)
    models = {"before": problem.before, "retrained": problem.retrained, "seed floor": problem.twin}
    facts = {"seconds": problem.seconds, "gradients": problem.gradients, "unseen_nll": problem.unseen_nll}
    return {name: measure(problem.model, params) for name, params in models.items()} | {"retraining": facts}


def share(cost: Cost, problem: Problem) -> dict:
    """A cost, with its time as shares of a retraining's."""
    return cost._asdict() | {
        "time_share": cost.seconds / problem.seconds,
        "time_share_compiled": (cost.seconds + cost.compiling) / problem.seconds,
    }


if __name__ == "__main__":
    main()
