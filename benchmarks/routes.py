"""The programs that `hvp_throughput.py` compares: ours in every mode, and the same products written the plain way."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn import curvature, losses, models, tree
from jaxunlearn.models.functional import as_model
from jaxunlearn.runs.throughput import (
    REPEATED,
    Problem,
    Program,
    config_of,
    gradient,
    once,
    problem_on,
    program_of,
    repeated,
)
from jaxunlearn.types import Model, Params, TokenBatch

# Longest side with a full Kronecker factor: without and with the vocabulary of the sizes below 28M.
SIDES = (2047, 8192)


def problem(size: str, batch: int, length: int, dtype: str, remat: str) -> Problem:
    """A decoder of random weights, and random tokens."""
    config = config_of(size, length)
    model, params = models.init(config, jax.random.key(0), remat=remat, dtype=jnp.dtype(dtype))
    return problem_on(config, model, params, batch, length)


def ours(p: Problem) -> dict[str, Callable[[], Program]]:
    """Name -> how to compile it; the gradient first."""

    def product(function: Callable, products: int = 1, model: Model = p.model) -> Callable[[], Program]:
        return lambda: program_of(function, p, products, model)

    def on(function: Callable, *arguments: Any) -> Callable[[], Program]:
        return lambda: Program(jax.jit(function).lower(*arguments).compile(), arguments)

    def both(max_side: int) -> Callable[[], Program]:
        settings = curvature.KFAC(fisher="empirical", max_side=max_side)

        def one_pass(params: Params, batch: TokenBatch) -> tuple:
            return curvature.kronecker.gradient_and_factors(p.model, params, batch, settings)

        return on(one_pass, p.params, p.batch)

    def eigen(max_side: int) -> Callable[[], Program]:
        def apply(kfac: Any, params: Params, v: Params) -> Params:
            return curvature.kronecker.from_eigen(kfac, params).damped(1.0).power(-1.0)(v)

        def build() -> Program:
            settings = curvature.KFAC(max_side=max_side)
            kfac = jax.jit(lambda params, batch: _eigen(p.model, params, batch, settings))(p.params, p.batch)
            return on(apply, kfac, p.params, p.vector)()

        return build

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
        "gradient and K-FAC factors": both(SIDES[-1]),
        "gradient and K-FAC factors, vocabulary diagonal": both(SIDES[0]),
        "EK-FAC inverse, applied": eigen(SIDES[-1]),
        "EK-FAC inverse, vocabulary diagonal, applied": eigen(SIDES[0]),
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


def _eigen(model: Model, params: Params, batch: TokenBatch, settings: curvature.KFAC) -> Any:
    found = curvature.kronecker.kronecker_factors(model, params, batch, settings)
    return curvature.kronecker.eigendecompose(found, params)


def _mean(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
    return pair[0] / pair[1]
