"""What a curvature product costs, in units of one gradient of the same model on the same batch.

All programs are compiled first, then timed in one process, once each a round; the table shows ratios of
medians, and of the best times beside them, which a busy machine disturbs less.
Memory is what XLA plans for temporaries, arguments and results apart. Where torch is installed, the same model with
the same weights, batch and vector is measured there as well, and its Hessian-vector product compared with ours.

    python benchmarks/products.py
    python benchmarks/products.py --hidden 256 --layers 4 --batch 4 --length 256 --rounds 7
"""

import argparse
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from measure import Seconds, markdown, timings, where

from jaxunlearn import losses, models, tree
from jaxunlearn.curvature import EmpiricalFisher, GaussNewton, Hessian, LowRankOperator
from jaxunlearn.curvature.empirical_fisher import low_rank
from jaxunlearn.solvers import CG
from jaxunlearn.types import Model, Params, TokenBatch

CG_STEPS = 10


class Problem(NamedTuple):
    """A decoder, a batch on which every token but the first carries loss, and a random direction."""

    config: models.DecoderConfig
    model: Model
    params: Params
    batch: TokenBatch
    vector: Params


class Program(NamedTuple):
    """One compiled program and how many products it makes."""

    compiled: Any
    arguments: tuple
    products: int = 1

    def run(self) -> Any:
        return jax.block_until_ready(self.compiled(*self.arguments))

    @property
    def temporaries(self) -> int:
        """Bytes."""
        return self.compiled.memory_analysis().temp_size_in_bytes


def problem(arguments: argparse.Namespace) -> Problem:
    config = models.DecoderConfig(
        vocab_size=arguments.vocab,
        hidden_size=arguments.hidden,
        intermediate_size=arguments.ffn or 11 * arguments.hidden // 4,
        num_hidden_layers=arguments.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max(arguments.length, 128),
        tie_word_embeddings=True,
    )
    weights, tokens, direction = jax.random.split(jax.random.key(0), 3)
    model, params = models.init(config, weights, remat=arguments.remat)
    shape = (arguments.batch, arguments.length)
    batch = TokenBatch(jax.random.randint(tokens, shape, 0, arguments.vocab), jnp.ones(shape).at[:, 0].set(0.0))
    return Problem(config, model, params, batch, tree.normal_like(direction, params))


def gradient(model: Model, params: Params, batch: TokenBatch) -> Params:
    def mean(p: Params) -> jax.Array:
        total, count = losses.nll(model, p, batch)
        return total / count

    return jax.grad(mean)(params)


def largest_curvature(hessian: Program, p: Problem, steps: int = 10) -> jax.Array:
    """Largest absolute eigenvalue of the Hessian, nearly, by power iteration."""
    v, size = p.vector, tree.norm(p.vector)
    for _ in range(steps):
        v = hessian.compiled(p.params, p.batch, tree.scale(1.0 / size, v))
        size = tree.norm(v)
    return size


def programs(p: Problem, samples: int) -> dict[str, Program]:
    """Every program of the table, compiled; the gradient first."""

    def product(curvature: Callable) -> Callable:
        return lambda params, batch, v: curvature(p.model, params, batch)(v)

    def solve(curvature: Callable) -> Callable:
        cg = CG(CG_STEPS, rtol=0.0, progress=None)
        return lambda params, batch, v, damping: cg(curvature(p.model, params, batch).damped(damping), v)

    def fisher(params: Params, batch: TokenBatch) -> tuple:
        F = EmpiricalFisher(samples)(p.model, params, batch)
        return F.rows, F.vectors, F.values

    def fisher_product(rows: Params, vectors: jax.Array, values: jax.Array, params: Params, v: Params) -> Params:
        return low_rank(rows, vectors, values, params, 1.0)(v)

    def fisher_inverse(rows: Params, vectors: jax.Array, values: jax.Array, params: Params, v: Params) -> Params:
        F: LowRankOperator = low_rank(rows, vectors, values, params, 1.0)
        return F.power(-1.0)(v)

    def compiled(function: Callable, *arguments: Any, products: int = 1) -> Program:
        return Program(jax.jit(function).lower(*arguments).compile(), arguments, products)

    point = (p.params, p.batch, p.vector)
    hessian = compiled(product(Hessian()), *point)
    # Twice the largest curvature makes the system definite and easy, so that CG neither stops early nor underflows.
    damped = (*point, 2.0 * largest_curvature(hessian, p))
    stored = compiled(fisher, p.params, p.batch)
    sampled = (*stored.run(), p.params, p.vector)
    m = sampled[2].shape[0]
    result = {
        "gradient": compiled(lambda params, batch: gradient(p.model, params, batch), p.params, p.batch),
        "Hessian, exact": hessian,
        f"Hessian, each of {CG_STEPS} in CG": compiled(solve(Hessian()), *damped, products=CG_STEPS),
        "Gauss-Newton": compiled(product(GaussNewton()), *point),
        f"Gauss-Newton, each of {CG_STEPS} in CG": compiled(solve(GaussNewton()), *damped, products=CG_STEPS),
        f"empirical Fisher, storing {m} gradients": stored,
        f"empirical Fisher, product from {m} stored": compiled(fisher_product, *sampled),
        f"empirical Fisher, inverse from {m} stored": compiled(fisher_inverse, *sampled),
    }
    for name, program in result.items():
        if program.products > 1 and (steps := int(program.run()[1].steps)) != program.products:
            raise SystemExit(f"{name}: CG made {steps} products instead of {program.products}; change the sizes")
    return result


def jax_table(programs: dict[str, Program], seconds: dict[str, Seconds]) -> str:
    first = next(iter(programs))
    rows = []
    for name, program in programs.items():
        median, best = (t / program.products for t in seconds[name])
        rows.append(
            [
                name,
                f"{1e3 * median:.1f}",
                f"{median / seconds[first].median:.2f}",
                f"{best / seconds[first].best:.2f}",
                f"{program.temporaries / 2**20:.1f}",
                f"{program.temporaries / programs[first].temporaries:.2f}",
            ]
        )
    head = ["product", "ms", "time / gradient", "same, best times", "temporaries, MiB", "temporaries / gradient"]
    return markdown(head, rows)


def torch_table(seconds: dict[str, Seconds], ours: Seconds) -> str:
    theirs = next(iter(seconds.values()))
    rows = [
        [
            name,
            f"{1e3 * s.median:.1f}",
            *(f"{a / b:.2f}" for unit in (theirs, ours) for a, b in zip(s, unit, strict=True)),
        ]
        for name, s in seconds.items()
    ]
    head = ["torch", "ms", "time / torch gradient", "same, best", "time / JAX gradient", "same, best"]
    return markdown(head, rows)


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number of at least 1")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"hidden": 64, "layers": 2, "batch": 16, "length": 64, "vocab": 860, "rounds": 25}.items():
        parser.add_argument(f"--{name}", type=positive, default=default, help=f"default {default}")
    parser.add_argument("--ffn", type=positive, help="default 11/4 of --hidden")
    parser.add_argument("--samples", type=positive, default=64, help="per-example gradients of the empirical Fisher")
    parser.add_argument("--remat", choices=("dots", "full", "none"), default="dots", help="default dots")
    parser.add_argument("--no-torch", action="store_true", help="measure JAX only")
    arguments = parser.parse_args()
    place = where()
    try:
        p = problem(arguments)
    except ValueError as error:
        parser.error(str(error))
    table = programs(p, arguments.samples)
    runs = {name: program.run for name, program in table.items()}
    peer = None
    if not arguments.no_torch and importlib.util.find_spec("torch"):
        from torch_peer import Peer

        peer = Peer(p.config, p.model, p.params, p.batch, p.vector)
        runs |= peer.runs()
    seconds = timings(runs, arguments.rounds, pause=0.0 if peer is None else 0.05)
    count = sum(x.size for x in jax.tree.leaves(p.params))
    print(
        f"Decoder of {count:,} parameters (vocabulary {p.config.vocab_size}, hidden {p.config.hidden_size}, "
        f"{p.config.num_hidden_layers} layers, feed-forward {p.config.intermediate_size}, 4 heads, 2 key-value heads, "
        f"tied head), float32, batch {arguments.batch} x {arguments.length} tokens, remat {arguments.remat!r}, "
        f"medians of {arguments.rounds} rounds.\n"
    )
    print(jax_table(table, seconds))
    if peer is not None:
        loss, product = peer.differences(losses.nll(p.model, p.params, p.batch), table["Hessian, exact"].run())
        print("\n" + torch_table({name: seconds[name] for name in peer.runs()}, seconds["gradient"]))
        print(f"\nThe same numbers: loss differs by {loss:.1e} nats, Hessian-vector product by {product:.1e} relative.")
    print(f"\n{place}; jax {jax.__version__}{'' if peer is None else f', torch {peer.version}'}")


if __name__ == "__main__":
    main()
