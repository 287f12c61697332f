"""The empirical Fisher in its dual form: exact, matrix-free, any power.

Let the m rows of `G` be per-example gradients and `K = G G^T = U S^2 U^T` (m x m). With `s = S^2 / m`,

    F     = lambda I + G^T G / m
    F^p v = lambda^p v + G^T U [ ((lambda + s)^p - lambda^p) / S^2 ] U^T G v

so the inverse (p = -1) and the covariance root of Fisher noise (p = -1/4) cost two passes over the stored gradients.
For p = -1 this equals the WoodFisher recursion. Only the m sampled directions are protected; along every other one
the metric is `lambda I`, which is why `span_share` reports how much of a step lies in the span.

References: Singh and Alistarh, "WoodFisher", NeurIPS 2020; Gu et al., "Second-order information matters: revisiting
machine unlearning for large language models", 2024.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxunlearn import losses, tree
from jaxunlearn.operators import LinearOperator
from jaxunlearn.sharding.regions import auto, replicate, split_rows
from jaxunlearn.types import Batch, Model, Params, examples_in


@dataclass(frozen=True, eq=False, kw_only=True)
class LowRankOperator(LinearOperator):
    """`lambda I + G^T G / m` with its spectral decomposition in the m-dimensional dual space.

    Attributes:
        rows: `G`, each leaf [m, *shape], f32, sharded like the parameters behind the leading axis.
        vectors: `U`, shape [m, m].
        values: `s = S^2 / m`, shape [m]: the nonzero eigenvalues of `G^T G / m`.
        damping: `lambda`.
    """

    rows: PyTree
    vectors: Float[Array, "m m"]
    values: Float[Array, " m"]
    damping: Float[Array, ""] | float = 0.0

    def damped(self, damping: Float[Array, ""] | float) -> "LowRankOperator":
        return low_rank(self.rows, self.vectors, self.values, self.like, self.damping + damping)

    def power(self, p: float) -> LinearOperator:
        """`F^p`; a negative power needs positive damping."""

        def mv(v: PyTree) -> PyTree:
            lam = jnp.asarray(self.damping, self.values.dtype)
            positive = jnp.maximum(self.values, 0.0)
            # ((lam + s)^p - lam^p) / s without cancellation; its limit at s = 0 is p lam^(p-1).
            growth = jnp.expm1(p * jnp.log1p(positive / lam)) * lam**p
            tiny = positive <= jnp.finfo(positive.dtype).eps * lam
            slope = jnp.where(tiny, p * lam ** (p - 1), growth / jnp.where(tiny, 1.0, positive))
            m = self.values.shape[0]
            dual = self.vectors @ (slope / m * (self.vectors.T @ project(self.rows, v)))
            return tree.add(tree.scale(lam**p, v), expand(self.rows, dual, v))

        return LinearOperator(mv, self.like, psd=True)

    def span_share(self, v: PyTree) -> Float[Array, ""]:
        """Share of `||v||^2` that lies in the span of the sampled gradients, between 0 and 1."""
        m = self.values.shape[0]
        dual = self.vectors.T @ project(self.rows, v)
        # A relative cut: below it an eigenvalue of K is rounding noise and its direction carries no information.
        cut = jnp.finfo(self.values.dtype).eps * m * jnp.max(self.values)
        inside = jnp.sum(
            jnp.where(self.values > cut, dual**2 / jnp.where(self.values > cut, self.values * m, 1.0), 0.0)
        )
        return jnp.clip(inside / jnp.maximum(tree.vdot(v, v), jnp.finfo(inside.dtype).tiny), 0.0, 1.0)


def low_rank(rows: PyTree, vectors: Array, values: Array, like: PyTree, damping: Array | float) -> LowRankOperator:
    m = values.shape[0]

    def mv(v: PyTree) -> PyTree:
        return tree.axpy(damping, v, expand(rows, project(rows, v) / m, v))

    return LowRankOperator(mv, like, True, rows=rows, vectors=vectors, values=values, damping=damping)


def empirical_fisher(
    total: Callable[[Params, PyTree], tuple[Array, Array]], params: Params, batch: PyTree, *, samples: int | None = None
) -> LowRankOperator:
    """Empirical Fisher of the first `samples` examples of `batch`, one gradient of the example's mean loss a row.

    Args:
        total: `(params, batch) -> (sum, count)`; a row is the gradient of `sum / count` on one example.
        params: where the gradients are taken.
        batch: pytree with the example axis first; the caller shuffles.
        samples: rows kept (memory: `samples` times the parameters in f32); `None` keeps all.

    Example:
        >>> import jax.numpy as jnp
        >>> F = empirical_fisher(lambda w, x: (jnp.sum(x @ w), len(x)), jnp.zeros(2), jnp.array([[2.0, 0.0]]))
        >>> F.damped(1.0).power(-1.0)(jnp.array([1.0, 1.0])).round(3).tolist()  # (I + diag(4, 0))^-1
        [0.2..., 1.0]
    """
    m = examples_in(batch) if samples is None else min(samples, examples_in(batch))
    # Any shard count may hold these few rows: they are taken one at a time, so each is seen whole by every device.
    chosen = split_rows(replicate(jax.tree.map(lambda x: x[:m], replicate(batch))), m)

    def row(example: PyTree) -> PyTree:
        def mean(p: Params) -> Array:
            value, count = total(p, example)
            return value / jnp.where(count > 0, count, 1.0)

        return tree.shard_like(tree.to_vector(jax.grad(mean)(params)), params)

    rows = jax.lax.map(row, chosen)
    values, vectors = jnp.linalg.eigh(gram(rows))
    return low_rank(rows, vectors, jnp.maximum(values, 0.0) / m, params, 0.0)


def project(rows: PyTree, v: PyTree) -> Float[Array, " m"]:
    """`G v`: an elementwise product and a sum, which on sharded leaves costs one all-reduce of m numbers."""
    parts = jax.tree.map(lambda g, x: jnp.sum(g * x[None], axis=tuple(range(1, g.ndim))), rows, v)
    return jax.tree.reduce(jnp.add, parts)


def expand(rows: PyTree, c: Float[Array, " m"], like: PyTree) -> PyTree:
    """`G^T c`, no communication: the contracted axis is never sharded."""
    return tree.shard_like(
        jax.tree.map(lambda g: jnp.tensordot(c.astype(g.dtype), g, axes=1, precision="highest"), rows), like
    )


def gram(rows: PyTree) -> Float[Array, "m m"]:
    """`K = G G^T`. Contracting one axis at a time keeps sharded leaves in place: no leaf is ever flattened."""

    def leaf(g: Array) -> Array:
        if g.ndim == 1:
            return g[:, None] * g[None, :]
        batch = tuple(range(1, g.ndim - 1))
        products = jax.lax.dot_general(g, g, (((g.ndim - 1,), (g.ndim - 1,)), (batch, batch)), precision="highest")
        return jnp.sum(products, axis=tuple(range(len(batch))))

    return auto(lambda r: jax.tree.reduce(jnp.add, jax.tree.map(leaf, r)), rows)


@dataclass(frozen=True)
class EmpiricalFisher:
    """Curvature recipe: the empirical Fisher of at most `samples` retain examples, true labels, dual form."""

    samples: int | None = 64

    def __post_init__(self):
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"EmpiricalFisher(samples={self.samples}): at least one example is needed")

    def __call__(self, model: Model, params: Params, batch: Batch) -> LowRankOperator:
        return empirical_fisher(lambda p, b: losses.nll(model, p, b), params, batch, samples=self.samples)
