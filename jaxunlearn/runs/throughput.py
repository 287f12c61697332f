"""How fast curvature products are here, measured so that the numbers can be compared.

Programs are compiled and run once before anything is recorded; then each is called once a round, all of them in one
process, so that a busy moment of the machine hits them alike, and medians are taken. What a time is held against:

    the gradient     the unit in which the costs of methods are given
    the ceiling      FLOPs a second of one large matrix product of the same type, on the same device, in the same
                     process: a product that takes F FLOPs of matrix products cannot be done in less than F / ceiling

FLOPs are those of the compiled program, loops multiplied out (`sharding.program`), recomputation included.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxunlearn import losses, models, tree
from jaxunlearn.curvature import EmpiricalFisher, GaussNewton, Hessian, TrueFisher
from jaxunlearn.curvature.kronecker import kronecker_factors
from jaxunlearn.sharding import shard_batch
from jaxunlearn.sharding.program import matmul_flops
from jaxunlearn.transforms import Curvature
from jaxunlearn.types import Model, Params, TokenBatch

REPEATED = 10
"""Products of a loop, as a solver makes them."""

SIZES = {
    "1M": {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "vocab_size": 2048},
    "7M": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8, "vocab_size": 4096},
    "28M": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "vocab_size": 8192},
    "100M": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "vocab_size": 32768},
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 32768},
}
HEADS = {"1M": 4, "7M": 4, "28M": 8, "100M": 12, "1B": 32}


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


class Product(NamedTuple):
    """A kind of product: `function(model, params, batch, vector)`, and how many of them one call makes."""

    function: Callable
    count: int = 1


class Row(NamedTuple):
    """What one product costs; `error` instead of numbers where it cannot be made.

    Attributes:
        name: which.
        seconds: median.
        flops: of matrix products, a device; None where they cannot be counted.
        temporaries: bytes that XLA plans besides arguments and results, a device.
        error: the first line of it.
    """

    name: str
    seconds: float | None = None
    flops: float | None = None
    temporaries: int | None = None
    error: str | None = None


def config_of(size: str, length: int) -> models.DecoderConfig:
    """A decoder of about so many parameters, for sequences of `length`."""
    heads = HEADS[size]
    shape = {"num_attention_heads": heads, "num_key_value_heads": heads // 2, "tie_word_embeddings": True}
    return models.DecoderConfig(**SIZES[size], **shape, max_position_embeddings=max(length, 128))


def problem_on(
    config: models.DecoderConfig, model: Model, params: Params, batch: int, length: int, mesh: Mesh | None = None
) -> Problem:
    """Random tokens and a random direction for a model; the time of a product does not depend on either."""
    tokens, direction = jax.random.split(jax.random.key(1))
    shape = (batch, length)
    data = TokenBatch(jax.random.randint(tokens, shape, 0, config.vocab_size), jnp.ones(shape).at[:, 0].set(0.0))
    return Problem(config, model, params, shard_batch(data, mesh), tree.normal_like(direction, params))


def gradient(model: Model, params: Params, batch: TokenBatch) -> Params:
    """Of the mean NLL, as it comes out: neither cast nor summed over microbatches."""

    def mean(p: Params) -> jax.Array:
        total, count = losses.nll(model, p, batch)
        return total / count

    return jax.grad(mean)(params)


def once(recipe: Curvature) -> Callable:
    """`(model, params, batch, v) -> A v`."""
    return lambda model, params, batch, v: recipe(model, params, batch)(v)


def repeated(recipe: Curvature) -> Callable:
    """`REPEATED` products of one operator in a loop, as a solver makes them."""

    def products(model: Model, params: Params, batch: TokenBatch, v: Params) -> Params:
        A = recipe(model, params, batch)
        return jax.lax.fori_loop(0, REPEATED, lambda _, x: tree.scale(1e-3, A(x)), v)

    return products


def products_of(kinds: tuple[str, ...] = ()) -> dict[str, Product]:
    """Name to product, of these kinds or of all; the gradient first, which the others are held against.

    Example:
        >>> list(products_of(("kfac",)))
        ['gradient', 'K-FAC factors']
    """
    loop = f"each of {REPEATED} in a loop"
    every = {
        "hessian": {
            "Hessian": Product(once(Hessian())),
            f"Hessian, {loop}": Product(repeated(Hessian()), REPEATED),
        },
        "gauss-newton": {
            "Gauss-Newton": Product(once(GaussNewton())),
            f"Gauss-Newton, {loop}": Product(repeated(GaussNewton()), REPEATED),
        },
        "fisher": {
            "empirical Fisher": Product(once(EmpiricalFisher(samples=None, stored=False))),
            "true Fisher, drawn labels": Product(once(TrueFisher(samples=None, stored=False))),
        },
        "kfac": {"K-FAC factors": Product(lambda model, params, batch, v: kronecker_factors(model, params, batch))},
    }
    found = {"gradient": Product(lambda model, params, batch, v: gradient(model, params, batch))}
    for kind in dict.fromkeys(kinds or every):
        found |= every[kind]
    return found


def program_of(function: Callable, p: Problem, products: int = 1, model: Model | None = None) -> Program:
    """`function(model, params, batch, vector)` compiled for the problem."""
    arguments = (p.params, p.batch, p.vector)
    compiled = jax.jit(function, static_argnums=0).lower(model or p.model, *arguments).compile()
    return Program(compiled, arguments, products)


def built(wanted: Mapping[str, Callable[[], Program]]) -> tuple[dict[str, Program], dict[str, str]]:
    """The programs that compile and run, each run once, and for the others the first line of the error."""
    programs, errors = {}, {}
    for name, build in wanted.items():
        try:
            programs[name] = build()
            programs[name].run()
        except Exception as error:
            programs.pop(name, None)
            errors[name] = first_line(error)
    return programs, errors


def samples(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    pause: float = 0.0,
    advance: Callable[[], None] | None = None,
) -> dict[str, list[float]]:
    """Seconds of every call, each function once a round, so that a busy moment of the machine hits them alike.

    Args:
        runs: blocking calls by name, each of which has been called before.
        rounds: recorded calls of each.
        clock: `time.perf_counter`, or `time.process_time`, which counts no time in which the machine served others.
        pause: seconds of rest before each call. OpenMP's threads go on spinning for a while after a call, and would
            take the cores from whatever is measured next.
        advance: called after each round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            time.sleep(pause)
            start = clock()
            run()
            seconds[name].append(clock() - start)
        if advance is not None:
            advance()
    return seconds


def row_of(name: str, program: Program, seconds: list[float]) -> Row:
    """What one product of the program costs."""
    flops, each = matmul_flops(program.compiled), program.products
    temporaries = program.compiled.memory_analysis().temp_size_in_bytes
    return Row(name, statistics.median(seconds) / each, flops and flops / each, temporaries)


def ceiling(dtype: str, clock: Callable[[], float] = time.perf_counter, rounds: int = 7) -> float:
    """FLOPs a second of one large matrix product: the best that one device does here."""
    n = 8192 if jax.default_backend() != "cpu" else 1024
    a = jnp.ones((n, n), dtype)
    dot = jax.jit(lambda a: a @ a)
    jax.block_until_ready(dot(a))
    return 2.0 * n**3 / min(samples({"dot": lambda: jax.block_until_ready(dot(a))}, rounds, clock)["dot"])


def first_line(error: Exception) -> str:
    """An error in one short line, fit for a table."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:120].replace("|", "/")
