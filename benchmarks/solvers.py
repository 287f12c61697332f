"""Which solver gets how far for how many products, on a model that has memorised its data and its spiked spectrum.

A small decoder is trained on the built-in corpus until it recites it. The system is the one that unlearning solves:
`(G + lambda I) x = g`, G the Gauss-Newton matrix on retain examples, g the gradient on forget examples, lambda a share
of the largest eigenvalue; and the same with the Hessian, which is indefinite. Tables:

* the head of the spectrum, by Lanczos;
* the error `||x - x*||_A / ||x*||_A` against products spent, whatever a preconditioner costs counted in, where x* is a
  solve by CG to 1e-6 or the tightest residual that f32 allows (printed); closed forms, which spend none, beside it;
* what a solver adds to its products: twenty steps of CG against twenty products in a loop, and compile times.

    python benchmarks/solvers.py
    python benchmarks/solvers.py --share 1e-4 --rounds 9 --json out.json
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from measure import markdown, where

from jaxunlearn import data, losses, models, solvers, tree
from jaxunlearn.curvature import EKFAC, KFAC, EmpiricalFisher, GaussNewton, GaussNewtonBartlett, Hessian
from jaxunlearn.operators import LinearOperator
from jaxunlearn.runs.fit import fit
from jaxunlearn.runs.throughput import samples
from jaxunlearn.types import Model, Params, TokenBatch

BUDGETS = (5, 10, 20, 40, 80)
RANK = 20
PROBES = 8
# Products spent before the first step.
BEFORE = {"CG, Nystrom": RANK, "Neumann": PROBES, "LiSSA, minibatches of 16": PROBES}
CONTEXT = 64


class Problem(NamedTuple):
    """A trained decoder, its retain and forget examples, and what is left of the training loss."""

    model: Model
    params: Params
    retain: TokenBatch
    forget: TokenBatch
    loss: float


def trained(epochs: int, seed: int = 0) -> Problem:
    rows = data.corpus(seed=seed)
    tokenizer = data.train_tokenizer(data.training_texts(rows))
    forget, retain = (
        data.encode(data.from_rows(part), tokenizer, max_length=CONTEXT) for part in (rows.forget, rows.retain)
    )
    config = models.DecoderConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
    )
    model, params = models.init(config, jax.random.key(seed))
    done = fit(model, params, forget + retain, epochs=epochs, batch_size=16, learning_rate=5e-3, seed=seed)
    first = [next(data.batches(part, n, seed=seed)).batch for part, n in ((retain, 64), (forget, 16))]
    return Problem(model, done.params, *jax.tree.map(jnp.asarray, first), done.losses[-1])


def gradient(model: Model, params: Params, batch: TokenBatch) -> Params:
    def mean(p: Params) -> jax.Array:
        total, count = losses.nll(model, p, batch)
        return total / count

    return tree.to_vector(jax.grad(mean)(params))


def solve_with(name: str, p: Problem, damping: float, budget: int) -> Callable:
    """`(params, retain, A, b) -> (x, info)`, spending `budget` products, those of its set-up counted in."""

    def preconditioned(recipe: Callable) -> Callable:
        def solve(params: Params, retain: TokenBatch, A: LinearOperator, b: Params) -> tuple:
            M = recipe(p.model, params, retain).damped(damping).power(-1.0)
            return solvers.CG(budget, 0.0, None, M)(A, b)

        return solve

    def lissa(params: Params, retain: TokenBatch, A: LinearOperator, b: Params) -> tuple:
        def at(index: jax.Array) -> LinearOperator:
            rows = jax.random.choice(jax.random.fold_in(jax.random.key(0), index), 64, (16,), replace=False)
            return GaussNewton()(p.model, params, jax.tree.map(lambda x: x[rows], retain)).damped(damping)

        # A product on a quarter of the examples counts as a quarter.
        depth = 4 * budget - PROBES - 1
        return solvers.LiSSA(depth=depth, draws=1, probes=PROBES)(solvers.sampled(at, params, psd=True), b)

    if name == "CG, Bartlett diagonal":
        return preconditioned(GaussNewtonBartlett())
    if name == "CG, EK-FAC":
        return preconditioned(EKFAC())
    if name == "LiSSA, minibatches of 16":
        return lissa
    solver = {
        "CG": lambda: solvers.CG(budget, 0.0, None),
        "CG, Nystrom": lambda: solvers.NystromCG(RANK, budget - RANK, 0.0, None),
        "MINRES": lambda: solvers.MINRES(budget, 0.0),
        "Lanczos": lambda: solvers.Lanczos(budget),
        "Neumann": lambda: solvers.Neumann(budget, 0.0, probes=PROBES),
    }[name]()
    return lambda params, retain, A, b: solver(A, b)


def accuracy(p: Problem, share: float) -> tuple[list[list[str]], str, dict]:
    """Rows of the table of errors, a line on the system, and the same for JSON."""
    b = jax.jit(lambda params, batch: gradient(p.model, params, batch))(p.params, p.forget)

    def undamped(params: Params, retain: TokenBatch) -> LinearOperator:
        return GaussNewton()(p.model, params, retain)

    T = jax.jit(lambda params, retain, b: solvers.lanczos(undamped(params, retain), b, 60))(p.params, p.retain, b)
    ritz = jnp.linalg.eigvalsh(jnp.diag(T.diagonal) + jnp.diag(T.off_diagonal, 1) + jnp.diag(T.off_diagonal, -1))
    damping = float(share * ritz[-1])

    def run(solve: Callable) -> Callable:
        return jax.jit(lambda params, retain, b: solve(params, retain, undamped(params, retain).damped(damping), b))

    exact = run(lambda params, retain, A, b: solvers.CG(600, 1e-6, None)(A, b))
    best, info = exact(p.params, p.retain, b)
    apply = run(lambda params, retain, A, v: A(v))
    size = tree.vdot(best, apply(p.params, p.retain, best))

    def error(x: Params) -> float:
        apart = tree.sub(x, best)
        return float(jnp.sqrt(tree.vdot(apart, apply(p.params, p.retain, apart)) / size))

    rows, found = [], {}
    names = ("CG", "CG, Bartlett diagonal", "CG, EK-FAC", "CG, Nystrom", "MINRES", "Lanczos", "Neumann",
             "LiSSA, minibatches of 16")  # fmt: skip
    for name in names:
        cells = []
        for budget in BUDGETS:
            if budget <= BEFORE.get(name, 0):
                cells.append(None)
                continue
            x, _ = run(solve_with(name, p, damping, budget))(p.params, p.retain, b)
            cells.append(error(x))
        found[name] = cells
        rows.append([name, *("" if cell is None else f"{cell:.1e}" for cell in cells)])
    for name, recipe in {
        "K-FAC, closed form": KFAC(),
        "EK-FAC, closed form": EKFAC(),
        "empirical Fisher, dual form": EmpiricalFisher(None),
        "Bartlett diagonal, closed form": GaussNewtonBartlett(),
    }.items():
        solve = run(lambda params, retain, A, b, r=recipe: r(p.model, params, retain).damped(damping).power(-1.0)(b))
        found[name] = error(solve(p.params, p.retain, b))
        rows.append([name, f"{found[name]:.1e}", *[""] * (len(BUDGETS) - 1)])
    head = ", ".join(f"{float(value):.2e}" for value in ritz[::-1][:12])
    line = (
        f"Loss {p.loss:.3f} nats a token in the last epoch of training. Largest of 60 Ritz values of G: {head}; their "
        f"median {float(jnp.median(ritz)):.1e}. Damping {damping:.2e}, condition number at most {1 + 1 / share:.0f}. "
        f"x*: {int(info.steps)} steps of CG, relative residual {float(info.relative_residual):.1e}."
    )
    return rows, line, {"ritz": ritz.tolist(), "damping": damping, "errors": found}


def indefinite(p: Problem) -> list[list[str]]:
    """The Hessian without damping: who copes."""
    b = jax.jit(lambda params, batch: gradient(p.model, params, batch))(p.params, p.forget)
    rows = []
    solving = {"CG": solvers.CG(80, 1e-3, None), "MINRES": solvers.MINRES(80, 1e-3)}
    for name, solver in solving.items():
        run = jax.jit(lambda params, retain, b, s=solver: s(Hessian()(p.model, params, retain), b)[1])
        info = run(p.params, p.retain, b)
        found = float(info.relative_residual), float(info.min_curvature)
        status = solvers.Status(int(info.status)).name
        rows.append([name, str(int(info.steps)), *(f"{value:.1e}" for value in found), status])
    return rows


def overhead(p: Problem, rounds: int, clock: Callable[[], float]) -> tuple[list[list[str]], dict]:
    """Twenty steps of CG against twenty products, and how long either takes to compile."""
    n = 20
    v = tree.normal_like(jax.random.key(1), p.params)
    programs: dict[str, Any] = {}
    compile_seconds = {}
    for kind, recipe in {"Gauss-Newton": GaussNewton(), "Hessian": Hessian()}.items():

        def products(params: Params, retain: TokenBatch, v: Params, recipe: Callable = recipe) -> Params:
            A = recipe(p.model, params, retain).damped(100.0)
            return jax.lax.fori_loop(0, n, lambda _, x: tree.scale(1e-3, A(x)), v)

        def solve(params: Params, retain: TokenBatch, v: Params, recipe: Callable = recipe) -> tuple:
            A = recipe(p.model, params, retain).damped(100.0)
            return solvers.CG(n, 0.0, None)(A, v)

        for name, f in {f"{kind}, 20 products": products, f"{kind}, CG of 20": solve}.items():
            start = time.perf_counter()
            programs[name] = jax.jit(f).lower(p.params, p.retain, v).compile()
            compile_seconds[name] = time.perf_counter() - start
        steps = int(programs[f"{kind}, CG of 20"](p.params, p.retain, v)[1].steps)
        if steps != n:
            raise SystemExit(f"CG on the {kind} system made {steps} steps instead of {n}")
    for program in programs.values():
        jax.block_until_ready(program(p.params, p.retain, v))
    calls = {
        name: lambda c=program: jax.block_until_ready(c(p.params, p.retain, v)) for name, program in programs.items()
    }
    medians = {name: statistics.median(values) for name, values in samples(calls, rounds, clock).items()}
    rows = []
    for name, seconds in medians.items():
        unit = medians[name.partition(",")[0] + ", 20 products"]
        rows.append([name, f"{1e3 * seconds:.0f}", f"{seconds / unit:.3f}", f"{compile_seconds[name]:.1f}"])
    return rows, {"medians": medians, "compile": compile_seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=1e-3, help="damping over the largest eigenvalue (default 1e-3)")
    parser.add_argument("--epochs", type=int, default=24, help="of training (default 24)")
    parser.add_argument("--rounds", type=int, default=7, help="timed calls of each program (default 7)")
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall", help="default wall")
    parser.add_argument("--json", help="also write every number to this file")
    arguments = parser.parse_args()
    place = where()
    p = trained(arguments.epochs)
    rows, line, report = accuracy(p, arguments.share)
    print(line + "\n")
    print(markdown([f"error after products, {arguments.share:g}", *map(str, BUDGETS)], rows))
    print(
        "\n" + markdown(["undamped Hessian", "steps", "relative residual", "lowest curvature", "status"], indefinite(p))
    )
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    rows, times = overhead(p, arguments.rounds, clock)
    print("\n" + markdown(["program", "ms", "over 20 products", "compile, s"], rows))
    print(f"\n{arguments.clock} clock; {place}; jax {jax.__version__}")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"where": place, "arguments": vars(arguments), **report, **times}, file, indent=1)


if __name__ == "__main__":
    main()
