"""Diagonals of curvature: the cheapest metric, with every power in closed form.

    Hutchinson             E_u[u * A u], u random signs       of any operator, unbiased, one product a probe
    Gauss-Newton-Bartlett  n ghat^2, ghat the gradient of     of the Gauss-Newton matrix, unbiased, one gradient:
                           the mean loss at labels drawn      labels drawn independently make E[ghat ghat^T] = G / n
                           from the model, n loss tokens      for the mean over n of them
    squared gradients      mean_i g_i^2                       of the empirical Fisher, exact, a gradient of each example

An estimate has a standard error; `Estimate` carries it where it is known. Hutchinson's noise in entry i is
`sqrt(sum_{j != i} A_ij^2 / probes)`-sized: good where the diagonal dominates, poor where it does not, and its entries
can be negative even for a semidefinite operator.

References: Hutchinson 1990; Bekas, Kokiopoulou and Saad, "An estimator for the diagonal of a matrix", 2007; Liu et al.,
"Sophia: a scalable stochastic second-order optimizer for language model pre-training", 2023 (Gauss-Newton-Bartlett).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxunlearn import losses, tree
from jaxunlearn.accumulate import accumulate
from jaxunlearn.curvature.empirical_fisher import mean_losses
from jaxunlearn.curvature.hessian import Hessian
from jaxunlearn.curvature.outer_product import Values
from jaxunlearn.curvature.parts import Parts, parts_of, parts_of_predictor
from jaxunlearn.curvature.true_fisher import Predict, number_rows, redrawn_losses
from jaxunlearn.operators import LinearOperator
from jaxunlearn.sharding.regions import replicate, split_rows
from jaxunlearn.types import Batch, Key, Model, Params, examples_in


class Estimate(NamedTuple):
    """A random estimate of a diagonal.

    Attributes:
        mean: the estimate, an f32 tree laid out like the parameters.
        standard_error: its standard deviation, estimated from the spread of the draws; NaN from a single one.
    """

    mean: PyTree
    standard_error: PyTree


@dataclass(frozen=True, eq=False, kw_only=True)
class DiagonalOperator(LinearOperator):
    """`diag(entries)`, closed under damping and powers.

    Attributes:
        entries: the diagonal, an f32 tree laid out like the parameters.

    Example:
        >>> diagonal(jnp.array([3.0, 8.0]), psd=True).damped(1.0).power(-0.5)(jnp.ones(2)).round(3).tolist()
        [0.5, 0.333...]
    """

    entries: PyTree

    def damped(self, damping: Float[Array, ""] | float) -> "DiagonalOperator":
        return diagonal(jax.tree.map(lambda d: d + damping, self.entries), psd=self.psd)

    def power(self, p: float) -> "DiagonalOperator":
        """`diag(entries^p)`: finite where every entry is positive, so damp before a negative or fractional power."""
        return diagonal(jax.tree.map(lambda d: d**p, self.entries), psd=self.psd)


def diagonal(entries: PyTree, *, psd: bool = False) -> DiagonalOperator:
    """`diag(entries)`; say `psd=True` when no entry can be negative."""
    return DiagonalOperator(lambda v: jax.tree.map(jnp.multiply, entries, v), entries, psd, entries=entries)


def hutchinson_diagonal(A: LinearOperator, key: Key, *, probes: int = 1) -> Estimate:
    """`mean_k u_k * A u_k` over `probes` vectors of random signs, one product each.

    Example:
        >>> A = LinearOperator(lambda v: jnp.array([3.0, 5.0]) * v, like=jnp.zeros(2))
        >>> hutchinson_diagonal(A, jax.random.key(0)).mean.tolist()  # of a diagonal matrix it is exact
        [3.0, 5.0]
    """

    def draw(key: Key) -> PyTree:
        u = tree.rademacher_like(key, A.like)
        return jax.tree.map(jnp.multiply, u, A(u))

    return _average(draw, key, probes, A.like)


def gauss_newton_bartlett(
    predict: Predict, params: Params, batch: PyTree, key: Key, *, draws: int = 1, microbatch: int | None = None
) -> Estimate:
    """`n ghat^2`, averaged over `draws` independent draws of all labels; see `true_fisher` for how labels are drawn.

    Example:
        >>> from jaxunlearn.types import Predictions
        >>> def predict(w, x):
        ...     return Predictions((x @ w)[:, None], jnp.zeros((len(x), 1), jnp.int32), jnp.ones((len(x), 1)))
        >>> gauss_newton_bartlett(predict, jnp.zeros((1, 2)), jnp.ones((1, 1)), jax.random.key(0)).mean.tolist()
        [[0.25, 0.25]]
    """
    return _bartlett(parts_of_predictor(predict), params, batch, key, draws, microbatch)


def _bartlett(parts: Parts, params: Params, batch: PyTree, key: Key, draws: int, microbatch: int | None) -> Estimate:
    numbered = number_rows(batch)

    def draw(key: Key) -> PyTree:
        values = redrawn_losses(parts, key)

        def chunk_gradient(chunk: PyTree) -> tuple[PyTree, Array]:
            def loss(p: Params) -> tuple[Array, Array]:
                entries, count = values(p, chunk)
                return jnp.sum(entries), count

            grad, count = jax.grad(loss, has_aux=True)(params)
            return tree.to_vector(grad), count

        # A sum over loss tokens weighted by the root of their weights, so its square over n is n times that of a mean.
        total, count = accumulate(chunk_gradient, numbered, microbatch)
        return tree.shard_like(jax.tree.map(lambda g: g**2 / jnp.where(count > 0, count, 1.0), total), params)

    return _average(draw, key, draws, params)


def squared_gradients(values: Values, params: Params, batch: PyTree, *, at_once: int = 1) -> PyTree:
    """`sum_i g_i^2 / n`, g_i the gradient of example i's value: the exact diagonal of `sum_i g_i g_i^T / n`.

    Args:
        values: `(params, batch) -> ([B] values, count)`, the counts adding up to n.
        params: where the gradients are taken.
        batch: pytree with the example axis first.
        at_once: gradients held at a time.
    """

    def one(example: PyTree) -> tuple[PyTree, Array]:
        def value(p: Params) -> tuple[Array, Array]:
            entries, count = values(p, example)
            return jnp.sum(entries), count

        grad, count = jax.grad(value, has_aux=True)(params)
        return tree.shard_like(jax.tree.map(jnp.square, tree.to_vector(grad)), params), replicate(count)

    def some(chunk: PyTree) -> tuple[PyTree, Array]:
        if at_once == 1:
            return one(chunk)
        return jax.tree.map(lambda x: jnp.sum(x, axis=0), jax.vmap(one)(split_rows(chunk, examples_in(chunk))))

    total, count = accumulate(some, replicate(batch), at_once)
    return tree.shard_like(tree.scale(1.0 / jnp.where(count > 0, count, 1.0), total), params)


def _average(draw: Callable[[Key], PyTree], key: Key, n: int, like: PyTree) -> Estimate:
    def step(sums: tuple[Array, PyTree, PyTree], key: Key) -> tuple[tuple[Array, PyTree, PyTree], None]:
        count, mean, spread = sums
        x, count = draw(key), count + 1
        off = tree.sub(x, mean)
        mean = jax.tree.map(lambda m, d: m + d / count.astype(m.dtype), mean, off)
        return (count, mean, jax.tree.map(lambda s, d, a, m: s + d * (a - m), spread, off, x, mean)), None

    start = (jnp.int32(0), tree.zeros_like(like), tree.zeros_like(like))
    (_, mean, spread), _ = jax.lax.scan(step, start, jax.random.split(key, n))
    error = jax.tree.map(lambda s: jnp.sqrt(s / n / (n - 1)) if n > 1 else jnp.full_like(s, jnp.nan), spread)
    return Estimate(mean, error)


def _positive(name: str, **settings: int) -> None:
    for setting, value in settings.items():
        if value < 1:
            raise ValueError(f"{name}({setting}={value}): at least 1 is needed")


@dataclass(frozen=True)
class HutchinsonDiagonal:
    """Curvature recipe: the diagonal of another curvature from `probes` products, random signs from `seed`.

    Entries are replaced by their absolute values, after Yao et al., "AdaHessian", 2021, which makes every damped power
    finite; `absolute=False` keeps the unbiased estimate.
    """

    mean_over: ClassVar[str] = "tokens"
    curvature: Callable[[Model, Params, Batch], LinearOperator] = field(default_factory=Hessian)
    probes: int = 1
    seed: int = 0
    absolute: bool = True

    def __post_init__(self):
        _positive("HutchinsonDiagonal", probes=self.probes)

    def estimate(self, model: Model, params: Params, batch: Batch, key: Key) -> Estimate:
        """The unbiased estimate, signs drawn from `key`."""
        return hutchinson_diagonal(self.curvature(model, params, batch), key, probes=self.probes)

    def entries(self, model: Model, params: Params, batch: Batch, key: Key) -> PyTree:
        return self.estimate(model, params, batch, key).mean

    def operator(self, entries: PyTree) -> DiagonalOperator:
        return diagonal(jax.tree.map(jnp.abs, entries) if self.absolute else entries, psd=self.absolute)

    def __call__(self, model: Model, params: Params, batch: Batch) -> DiagonalOperator:
        return self.operator(self.entries(model, params, batch, jax.random.key(self.seed)))


@dataclass(frozen=True)
class GaussNewtonBartlett:
    """Curvature recipe: the diagonal of the Gauss-Newton matrix from `draws` gradients at labels drawn from `seed`."""

    mean_over: ClassVar[str] = "tokens"
    draws: int = 1
    seed: int = 0
    microbatch: int | None = None

    def __post_init__(self):
        _positive("GaussNewtonBartlett", draws=self.draws)

    def estimate(self, model: Model, params: Params, batch: Batch, key: Key) -> Estimate:
        """The unbiased estimate, labels drawn from `key`."""
        return _bartlett(parts_of(model, batch), params, batch, key, self.draws, self.microbatch)

    def entries(self, model: Model, params: Params, batch: Batch, key: Key) -> PyTree:
        return self.estimate(model, params, batch, key).mean

    def operator(self, entries: PyTree) -> DiagonalOperator:
        return diagonal(entries, psd=True)

    def __call__(self, model: Model, params: Params, batch: Batch) -> DiagonalOperator:
        return self.operator(self.entries(model, params, batch, jax.random.key(self.seed)))


@dataclass(frozen=True)
class SquaredGradients:
    """Curvature recipe: the mean of squared per-example gradients, `microbatch` examples at a time.

    With the true labels it is exactly the diagonal of `EmpiricalFisher(None)`. With `labels="drawn"`, one draw a place
    from the model itself by `seed`, it is an unbiased estimate of the diagonal of `GaussNewton()`, of lower variance
    than `GaussNewtonBartlett` and the cost of a gradient taken example by example.
    """

    labels: Literal["true", "drawn"] = "true"
    microbatch: int = 1
    seed: int = 0

    def __post_init__(self):
        _positive("SquaredGradients", microbatch=self.microbatch)
        if self.labels not in ("true", "drawn"):
            raise ValueError(f"SquaredGradients(labels={self.labels!r}): choose 'true' or 'drawn'")

    @property
    def mean_over(self) -> str:
        return "examples" if self.labels == "true" else "tokens"

    def entries(self, model: Model, params: Params, batch: Batch, key: Key) -> PyTree:
        if self.labels == "true":
            values, rows = mean_losses(lambda p, b: losses.example_nll(model, p, b)), batch
        else:
            values, rows = redrawn_losses(parts_of(model, batch), key), number_rows(batch)
        return squared_gradients(values, params, rows, at_once=self.microbatch)

    def operator(self, entries: PyTree) -> DiagonalOperator:
        return diagonal(entries, psd=True)

    def __call__(self, model: Model, params: Params, batch: Batch) -> DiagonalOperator:
        return self.operator(self.entries(model, params, batch, jax.random.key(self.seed)))
