"""What curvature products cost, beside every other way to get them, in one process and on the same numbers.

For each model size: our products in every mode, the same products written the plain way in JAX, and torch's routes
on the same weights, batch and vector. Every program is compiled and run once before anything is recorded; then all are
called once a round, interleaved, so that a busy moment of the machine hits them alike. The table gives medians:

* time, tokens a second, and the ratio to our gradient;
* FLOPs of matrix products after XLA's optimisation, loops multiplied out (`hlo.py`), and their ratio to the gradient;
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
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from hlo import matmul_flops
from measure import markdown, samples, where

from jaxunlearn import curvature, losses, models, tree
from jaxunlearn.models.functional import as_model
from jaxunlearn.types import Model, Params, TokenBatch

REPEATED = 10
SIZES = {
    "1M": {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "vocab_size": 2048},
    "7M": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8, "vocab_size": 4096},
    "28M": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "vocab_size": 8192},
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 32768},
}
HEADS = {"1M": 4, "7M": 4, "28M": 8, "1B": 32}


class Problem(NamedTuple):
    """A decoder, a batch on which every token but the first carries loss, and a random direction."""

    config: models.DecoderConfig
    model: Model
    params: Params
    batch: TokenBatch
    vector: Params


class Program(NamedTuple):
    """A compiled program, its arguments, and how many products one call makes."""

    compiled: Any
    arguments: tuple
    products: int = 1

    def run(self) -> Any:
        return jax.block_until_ready(self.compiled(*self.arguments))


class Row(NamedTuple):
    """One line of the table; `error` instead of numbers where a route does not run."""

    name: str
    seconds: float | None = None
    flops: float | None = None
    temporaries: int | None = None
    error: str | None = None


def problem(size: str, batch: int, length: int, dtype: str, remat: str) -> Problem:
    config = models.DecoderConfig(
        **SIZES[size],
        num_attention_heads=HEADS[size],
        num_key_value_heads=HEADS[size] // 2,
        max_position_embeddings=max(length, 128),
        tie_word_embeddings=True,
    )
    weights, tokens, direction = jax.random.split(jax.random.key(0), 3)
    model, params = models.init(config, weights, remat=remat, dtype=jnp.dtype(dtype))
    shape = (batch, length)
    data = TokenBatch(jax.random.randint(tokens, shape, 0, config.vocab_size), jnp.ones(shape).at[:, 0].set(0.0))
    return Problem(config, model, params, data, tree.normal_like(direction, params))


def gradient(model: Model, params: Params, batch: TokenBatch) -> Params:
    return jax.grad(lambda p: _mean(losses.nll(model, p, batch)))(params)


def repeated(recipe: Callable) -> Callable:
    """`REPEATED` products of one operator in a loop, as a solver makes them."""

    def products(model: Model, params: Params, batch: TokenBatch, v: Params) -> Params:
        A = recipe(model, params, batch)
        return jax.lax.fori_loop(0, REPEATED, lambda _, x: tree.scale(1e-3, A(x)), v)

    return products


def once(recipe: Callable) -> Callable:
    return lambda model, params, batch, v: recipe(model, params, batch)(v)


def factors(model: Model, params: Params, batch: TokenBatch) -> tuple[Params, Any]:
    """The gradient of the loss and the Kronecker factors, as one program."""
    return gradient(model, params, batch), curvature.kronecker.kronecker_factors(model, params, batch)


def ours(p: Problem) -> dict[str, Callable[[], Program]]:
    """Name -> how to compile it; the gradient first."""
    point = (p.params, p.batch, p.vector)

    def product(function: Callable, products: int = 1, model: Model = p.model) -> Callable[[], Program]:
        compiled = jax.jit(function, static_argnums=0).lower
        return lambda: Program(compiled(model, *point).compile(), point, products)

    def on(function: Callable, *arguments: Any) -> Callable[[], Program]:
        return lambda: Program(jax.jit(function).lower(*arguments).compile(), arguments)

    def eigen() -> Program:
        kfac = jax.jit(lambda params, batch: _eigen(p.model, params, batch))(p.params, p.batch)

        def apply(kfac: Any, params: Params, v: Params) -> Params:
            return curvature.kronecker.from_eigen(kfac, params).damped(1.0).power(-1.0)(v)

        return on(apply, kfac, p.params, p.vector)()

    unremat = as_model(replace(p.model.source, remat="none"))
    full = as_model(replace(p.model.source, remat="full"))
    each = f"each of {REPEATED}"
    return {
        "gradient": on(lambda params, batch: gradient(p.model, params, batch), p.params, p.batch),
        "gradient with the loss": on(
            lambda params, batch: jax.value_and_grad(lambda q: _mean(losses.nll(p.model, q, batch)))(params),
            p.params,
            p.batch,
        ),
        "Hessian": product(once(curvature.Hessian())),
        f"Hessian, {each}": product(repeated(curvature.Hessian()), REPEATED),
        f"Hessian, linearised, {each}": product(repeated(curvature.Hessian(mode="linearize")), REPEATED),
        f"Hessian, linearised, remat none, {each}": product(
            repeated(curvature.Hessian(mode="linearize")), REPEATED, unremat
        ),
        "Hessian, remat full": product(once(curvature.Hessian()), model=full),
        "Hessian, finite difference": product(once(curvature.Hessian(mode="finite_difference"))),
        "Hessian, microbatches of 1": product(once(curvature.Hessian(microbatch=1))),
        "Gauss-Newton": product(once(curvature.GaussNewton())),
        f"Gauss-Newton, {each}": product(repeated(curvature.GaussNewton()), REPEATED),
        f"Gauss-Newton, remat none, {each}": product(repeated(curvature.GaussNewton()), REPEATED, unremat),
        "Gauss-Newton, microbatches of 1": product(once(curvature.GaussNewton(microbatch=1))),
        "empirical Fisher, storing the rows": product(once(curvature.EmpiricalFisher())),
        "empirical Fisher, rows recomputed": product(once(curvature.EmpiricalFisher(stored=False))),
        "diagonal, Gauss-Newton-Bartlett": product(once(curvature.GaussNewtonBartlett())),
        "K-FAC factors": on(
            lambda params, batch: curvature.kronecker.kronecker_factors(p.model, params, batch), p.params, p.batch
        ),
        "gradient and K-FAC factors": on(lambda params, batch: factors(p.model, params, batch), p.params, p.batch),
        "EK-FAC inverse, applied": eigen,
    }


def plain(p: Problem) -> dict[str, Callable[[], Program]]:
    """The same products as one writes them without this library."""

    def nll(params: Params, tokens: jax.Array) -> jax.Array:
        log_p = jax.nn.log_softmax(p.model.logits(params, tokens)[:, :-1])
        return -jnp.mean(jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=-1))

    def hessian(params: Params, tokens: jax.Array, v: Params) -> Params:
        return jax.jvp(jax.grad(lambda q: nll(q, tokens)), (params,), (v,))[1]

    def optax_style(params: Params, tokens: jax.Array, v: Params) -> jax.Array:
        from optax.second_order import hvp

        flat, _ = jax.flatten_util.ravel_pytree(v)
        return hvp(lambda q, inputs, targets: nll(q, inputs), flat, params, tokens, tokens)

    def kfac_jax_style(params: Params, tokens: jax.Array, v: Params) -> Params:
        """Implicit Gauss-Newton: a forward and a reverse pass over whole logits."""

        def logits(q: Params) -> jax.Array:
            return p.model.logits(q, tokens)[:, :-1]

        z, pullback = jax.vjp(logits, params)
        _, dz = jax.jvp(logits, (params,), (v,))
        prob = jax.nn.softmax(z)
        return pullback(prob * (dz - jnp.sum(prob * dz, -1, keepdims=True)) / (z.shape[0] * z.shape[1]))[0]

    arguments = (p.params, p.batch.tokens, tree.cast_like(p.vector, p.params))
    routes = {
        "plain JAX: jvp of grad": hessian,
        "as optax.second_order: flattened vector": optax_style,
        "as kfac-jax: implicit Gauss-Newton": kfac_jax_style,
    }
    return {name: lambda f=f: Program(jax.jit(f).lower(*arguments).compile(), arguments) for name, f in routes.items()}


def measure(
    p: Problem, rounds: int, clock: Callable[[], float], torch: bool, only: list[str] | None
) -> tuple[list[Row], dict, str]:
    """The rows of one size, every recorded second, and how far the products of torch are from ours."""
    errors: dict[str, str] = {}
    programs: dict[str, Program] = {}
    wanted = {
        name: build
        for name, build in (ours(p) | plain(p)).items()
        if only is None or name == "gradient" or any(part in name for part in only)
    }
    for name, build in wanted.items():
        try:
            programs[name] = build()
            programs[name].run()
        except Exception as error:
            errors[name] = _first_line(error)
            programs.pop(name, None)
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
                errors[name] = _first_line(error)
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
            compiled, count = programs[name].compiled, programs[name].products
            flops = matmul_flops(compiled)
            temporaries = compiled.memory_analysis().temp_size_in_bytes
            rows.append(Row(name, statistics.median(seconds[name]) / count, flops and flops / count, temporaries))
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


def ceiling(dtype: str, clock: Callable[[], float], rounds: int = 7) -> float:
    """FLOPs a second of one large matrix product: the best that this device does here."""
    n = 8192 if jax.default_backend() != "cpu" else 1024
    a = jnp.ones((n, n), dtype)
    dot = jax.jit(lambda a: a @ a)
    return 2.0 * n**3 / min(samples({"dot": lambda: jax.block_until_ready(dot(a))}, rounds, clock)["dot"])


def _eigen(model: Model, params: Params, batch: TokenBatch) -> Any:
    return curvature.kronecker.eigendecompose(curvature.kronecker.kronecker_factors(model, params, batch), params)


def _mean(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
    return pair[0] / pair[1]


def _ratio(value: float | None, unit: float | None) -> str:
    return "" if value is None or not unit else f"{value / unit:.2f}"


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:120].replace("|", "/")


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
    parser.add_argument("--no-torch", action="store_true", help="measure JAX only")
    parser.add_argument("--json", help="also write every number to this file")
    arguments = parser.parse_args()
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    torch = not (arguments.no_torch or arguments.only) and importlib.util.find_spec("torch") is not None
    place, report = where(), {"arguments": vars(arguments), "sizes": {}}
    for size in arguments.sizes:
        p = problem(size, arguments.batch, arguments.length, arguments.dtype, arguments.remat)
        rows, seconds, agreement = measure(p, arguments.rounds, clock, torch, arguments.only)
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
