"""How time and memory grow: with parameters, batch, sequence length, devices and the number of forget records.

One thing grows at a time; the rest stays. Each point is compiled, run once, and then timed; the table gives medians and
the bytes that XLA plans besides arguments and results, on one device. Below each table stand fitted exponents, the
slopes of log y against log x over the larger half of the points, where what does not grow no longer counts:

    1.0    linear
    under  something that does not grow still counts
    over   worse than linear: attention over T tokens is quadratic in T, and nothing else may be

    python benchmarks/scaling.py
    python benchmarks/scaling.py --only parameters batch --clock processor --json out.json
"""

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

# Before JAX is imported: more devices than the machine has.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import numpy as np
from measure import markdown, where

from jaxunlearn import data, methods, models
from jaxunlearn.curvature import GaussNewton, Hessian
from jaxunlearn.methods import Method
from jaxunlearn.runs.forget import forget
from jaxunlearn.runs.references import store
from jaxunlearn.runs.throughput import Problem, Program, gradient, once, problem_on, program_of, row_of, samples
from jaxunlearn.sharding import make_mesh
from jaxunlearn.types import UnlearnBatch
from jaxunlearn.unlearn import init, unlearn_step

WIDTHS = (32, 64, 128, 256, 512, 1024, 1536)
BATCHES = (1, 2, 4, 8, 16, 32)
LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
DEVICES = (1, 2, 4, 8)
RECORDS = (64, 128, 256, 512)
PRODUCTS = {
    "gradient": lambda model, params, batch, v: gradient(model, params, batch),
    "Hessian": once(Hessian()),
    "Gauss-Newton": once(GaussNewton()),
}


class Point(NamedTuple):
    """One measurement: `x` of what grows, seconds and bytes by program."""

    x: float
    seconds: dict[str, float]
    temporaries: dict[str, int]


def decoder(width: int, layers: int = 4, length: int = 128) -> models.DecoderConfig:
    return models.DecoderConfig(
        vocab_size=1024, hidden_size=width, intermediate_size=11 * width // 4, num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64), max_position_embeddings=length, tie_word_embeddings=True,
    )  # fmt: skip


def problem(config: models.DecoderConfig, batch: int, length: int, devices: int = 1) -> Problem:
    mesh = None if devices == 1 else make_mesh(fsdp=devices, devices=jax.devices()[:devices])
    return problem_on(config, *models.init(config, jax.random.key(0), mesh=mesh), batch, length, mesh)


def step(p: Problem, method: Method) -> Program:
    """A whole step of a method, certificate included; the batch is forget and retain at once."""
    batch = UnlearnBatch(p.batch, p.batch)
    state = init(method, p.model, p.params, key=jax.random.key(2))
    run = jax.jit(lambda s, b: unlearn_step(method, p.model, s, b))
    return Program(run.lower(state, batch).compile(), (state, batch))


def programs(p: Problem, names: tuple[str, ...] = tuple(PRODUCTS), whole: bool = False) -> dict[str, Program]:
    found = {name: program_of(PRODUCTS[name], p) for name in names}
    if whole:
        found["step"] = step(p, methods.gauss_newton_ascent(max_kl=1e-3, cg_steps=5))
    return found


def measured(x: float, found: dict[str, Program], rounds: int, clock: Callable[[], float]) -> Point:
    for program in found.values():
        program.run()
    seconds = samples({name: program.run for name, program in found.items()}, rounds, clock)
    rows = {name: row_of(name, program, seconds[name]) for name, program in found.items()}
    return Point(x, {n: row.seconds for n, row in rows.items()}, {n: row.temporaries for n, row in rows.items()})


def parameters(rounds: int, clock: Callable[[], float]) -> Iterator[Point]:
    for width in WIDTHS:
        p = problem(decoder(width), 4, 64)
        count = sum(leaf.size for leaf in jax.tree.leaves(p.params))
        yield measured(count, programs(p, whole=True), rounds, clock)


def batch(rounds: int, clock: Callable[[], float]) -> Iterator[Point]:
    for size in BATCHES:
        yield measured(size, programs(problem(decoder(128), size, 128), whole=True), rounds, clock)


def length(rounds: int, clock: Callable[[], float]) -> Iterator[Point]:
    for size in LENGTHS:
        yield measured(size, programs(problem(decoder(128, 2, size), 1, size)), rounds, clock)


def devices(rounds: int, clock: Callable[[], float]) -> Iterator[Point]:
    for count in DEVICES:
        yield measured(count, programs(problem(decoder(256), 8, 128, count)), rounds, clock)


def records(rounds: int, clock: Callable[[], float]) -> Iterator[Point]:
    """Asking the original model and one pass of steps, from encoded records on; compiled beforehand."""
    rows = data.corpus(seed=0, people=110)
    tokenizer = data.train_tokenizer(data.training_texts(rows), vocab_size=1024)
    every = data.encode(data.from_rows(rows.retain), tokenizer, max_length=64)
    kept = every[-64:]
    config = decoder(64, 2)
    method = methods.npo(learning_rate=1e-5)
    model, _ = models.init(config, jax.random.key(0))

    def run(count: int) -> None:
        params = models.init(config, jax.random.key(0))[1]
        gone = every[:count]
        said = store(method, model, params, gone, kept, prompts=None)
        steps = count // 16
        done = forget(method, model, params, gone, kept, said, steps=steps, batch_size=16, retain_size=16)
        assert len(done.history) == steps

    for count in RECORDS:
        run(count)
        seconds = samples({"a pass": lambda count=count: run(count)}, rounds, clock)
        yield Point(count, {"a pass": statistics.median(seconds["a pass"])}, {})


GROWTHS = {
    "parameters": (parameters, "parameters (4 x 64 tokens)"),
    "batch": (batch, "examples of 128 tokens (0.9M parameters)"),
    "length": (length, "tokens of one example (0.5M parameters)"),
    "devices": (devices, "virtual devices of one processor (3.2M parameters, 8 x 128 tokens)"),
    "records": (records, "forget records, one pass in batches of 16"),
}


def exponents(points: list[Point]) -> dict[str, float]:
    """Slopes of log y against log x over the larger half of the points, "time of ..." and "memory of ...".

    >>> points = [Point(x, {"a": 3.0 * x**2}, {"a": 5 * x}) for x in (1, 2, 4, 8)]
    >>> {name: round(slope, 6) for name, slope in exponents(points).items()}
    {'time of a': 2.0, 'memory of a': 1.0}
    """
    tail = points[len(points) // 2 :]
    x = np.log([point.x for point in tail])
    kinds = {"time of": "seconds", "memory of": "temporaries"}
    return {
        f"{kind} {name}": float(np.polyfit(x, np.log([getattr(point, field)[name] for point in tail]), 1)[0])
        for kind, field in kinds.items()
        for name in getattr(points[0], field)
    }


def table(what: str, points: list[Point]) -> str:
    head = [what, *(f"{name}, ms" for name in points[0].seconds), *(f"{name}, MiB" for name in points[0].temporaries)]
    lines = [
        [
            f"{point.x:,.0f}",
            *(f"{1e3 * value:.3g}" for value in point.seconds.values()),
            *(f"{value / 2**20:.3g}" for value in point.temporaries.values()),
        ]
        for point in points
    ]
    slopes = ", ".join(f"{name} {slope:.2f}" for name, slope in exponents(points).items())
    return f"{markdown(head, lines)}\n\nExponents over the larger half: {slopes}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=tuple(GROWTHS), default=list(GROWTHS), help="default all")
    parser.add_argument("--rounds", type=int, default=3, help="recorded calls of each (default 3)")
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall", help="default wall")
    parser.add_argument("--json", help="also write every number to this file")
    arguments = parser.parse_args()
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    print(f"{where()}; {arguments.clock} clock\n")
    everything = {}
    for name in arguments.only:
        grow, what = GROWTHS[name]
        points = []
        for point in grow(arguments.rounds, clock):
            points.append(point)
            print(f"  {name} {point.x:,.0f}", flush=True)
        assert all(math.isfinite(value) for point in points for value in point.seconds.values())
        print(f"\n{table(what, points)}\n", flush=True)
        everything[name] = {"points": [point._asdict() for point in points], "exponents": exponents(points)}
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"where": where(), "clock": arguments.clock, **everything}, file, indent=1)


if __name__ == "__main__":
    main()
