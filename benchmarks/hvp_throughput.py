"""What curvature products cost, beside every other way to get them, in one process and on the same numbers.

For each model size: our products in every mode, the same products written the plain way in JAX, and torch's routes
on the same weights, batch and vector. Every program is compiled and run once before anything is recorded; then all are
called once a round, interleaved, so that a busy moment of the machine hits them alike. The table gives medians:

* time, tokens a second, and the ratio to our gradient;
* FLOPs of matrix products after XLA's optimisation, loops multiplied out (`jaxunlearn.sharding.program`), and their
  ratio to the gradient;
* temporaries that XLA plans besides arguments and results, and their ratio to the gradient's.

A peer that fails is listed with its error. `--json` writes everything, all rounds included.

    python benchmarks/hvp_throughput.py --sizes 1M 7M --json out.json
    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/hvp_throughput.py --clock processor
"""

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable

import jax
from measure import markdown, where
from routes import ours, plain, problem

from jaxunlearn.runs.throughput import REPEATED, SIZES, Problem, Row, built, ceiling, first_line, row_of, samples


def measure(
    p: Problem, rounds: int, clock: Callable[[], float], torch: bool, only: list[str] | None, once: bool
) -> tuple[list[Row], dict, str]:
    """The rows of one size, every recorded second, and how far the products of torch are from ours."""
    wanted = {
        name: build
        for name, build in (ours(p) | plain(p)).items()
        if (only is None or name == "gradient" or any(part in name for part in only))
        and not (once and f"each of {REPEATED}" in name)
    }
    programs, errors = built(wanted)
    runs: dict[str, Callable[[], object]] = {name: program.run for name, program in programs.items()}
    agreement = ""
    if torch:
        from torch_peers import Peer, distance

        peer = Peer(p.config, p.model, p.params, p.batch, p.vector)
        expected = {name: peer.ordered(programs[name].run()) for name in ("Hessian", "Gauss-Newton")}
        apart = {}
        for name, build in peer.routes().items():
            try:
                runs[name] = build()
                first = runs[name]()
            except Exception as error:
                errors[name] = first_line(error)
                runs.pop(name, None)
                continue
            if not name.endswith("gradient"):
                apart[name] = distance(first, expected["Gauss-Newton" if "Gauss" in name else "Hessian"])
        worst = max(apart, key=apart.get)
        agreement = f"All torch products equal ours; the largest relative distance is {apart[worst]:.1e} ({worst})."
        if apart[worst] > 1e-3:
            agreement = f"NOT the same product: {apart}"
    seconds = samples(runs, rounds, clock, pause=0.05 if torch else 0.0)
    rows = []
    for name in [*wanted, *(n for n in runs if n not in programs), *errors]:
        if any(row.name == name for row in rows):
            continue
        if name in errors:
            rows.append(Row(name, error=errors[name]))
        elif name in programs:
            rows.append(row_of(name, programs[name], seconds[name]))
        else:
            rows.append(Row(name, statistics.median(seconds[name])))
    return rows, seconds, agreement


def table(rows: list[Row], tokens: int) -> str:
    first = rows[0]
    head = ["product", "ms", "tokens/s", "time / gradient", "GFLOP", "FLOPs / gradient", "MiB", "MiB / gradient"]
    lines = []
    for row in rows:
        if row.error is not None:
            lines.append([row.name, f"fails: {row.error}", *[""] * 6])
            continue
        cells = [
            row.name,
            f"{1e3 * row.seconds:.0f}",
            f"{tokens / row.seconds:.0f}",
            _ratio(row.seconds, first.seconds),
        ]
        cells += ["", ""] if row.flops is None else [f"{row.flops / 1e9:.1f}", _ratio(row.flops, first.flops)]
        if row.temporaries is None:
            cells += ["", ""]
        else:
            cells += [f"{row.temporaries / 2**20:.0f}", _ratio(row.temporaries, first.temporaries)]
        lines.append(cells)
    return markdown(head, lines)


def _ratio(value: float | None, unit: float | None) -> str:
    return "" if value is None or not unit else f"{value / unit:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=tuple(SIZES), default=["1M", "7M"])
    parser.add_argument("--batch", type=int, default=4, help="examples (default 4)")
    parser.add_argument("--length", type=int, default=256, help="tokens an example (default 256)")
    parser.add_argument("--rounds", type=int, default=5, help="recorded calls of each (default 5)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default float32")
    parser.add_argument("--remat", choices=("dots", "full", "none"), default="dots", help="default dots")
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall", help="default wall")
    parser.add_argument(
        "--only", nargs="+", help="our rows whose name contains one of these, and the gradient; no torch"
    )
    parser.add_argument("--once", action="store_true", help="leave out the rows of ten products, which take longest")
    parser.add_argument("--no-torch", action="store_true", help="measure JAX only")
    parser.add_argument("--json", help="also write every number to this file")
    arguments = parser.parse_args()
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    torch = not (arguments.no_torch or arguments.only) and importlib.util.find_spec("torch") is not None
    place, report = where(), {"arguments": vars(arguments), "sizes": {}}
    for size in arguments.sizes:
        p = problem(size, arguments.batch, arguments.length, arguments.dtype, arguments.remat)
        rows, seconds, agreement = measure(p, arguments.rounds, clock, torch, arguments.only, arguments.once)
        count = sum(x.size for x in jax.tree.leaves(p.params))
        peak = ceiling(arguments.dtype, clock)
        tokens = arguments.batch * arguments.length
        print(f"\n#### {size}: {count:,} parameters, {arguments.batch} x {arguments.length} tokens\n")
        print(table(rows, tokens))
        used = [f"{row.name} {row.flops / row.seconds / peak:.0%}" for row in rows if row.flops and row.seconds]
        print(
            f"\n{agreement}\nShare of the {peak / 1e9:.0f} GFLOP/s of a large matrix product: {', '.join(used[:12])}."
        )
        report["sizes"][size] = {
            "parameters": count,
            "ceiling_flops": peak,
            "rows": [row._asdict() for row in rows],
            "seconds": seconds,
            "agreement": agreement,
        }
    print(f"\n{arguments.clock} clock, {arguments.dtype}, remat {arguments.remat!r}; {place}; jax {jax.__version__}")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(report | {"where": place, "jax": jax.__version__}, file, indent=1)


if __name__ == "__main__":
    main()
