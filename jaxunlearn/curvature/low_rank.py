"""Low-rank curvature in its dual form: exact, matrix-free, any power.

Let `S` be d x m with m far below d, and `S^T S = U diag(s) U^T` (m x m). Then

    F     = lambda I + S S^T
    F^p v = lambda^p v + S U [ ((lambda + s)^p - lambda^p) / s ] U^T S^T v

so the inverse (p = -1) and the covariance root of Fisher noise (p = -1/4) cost one multiplication with S and one with
its transpose. Nothing d x d appears, and S itself may be stored (its m rows are gradients, laid out like the
parameters) or only known by what it does. Only the m directions of S are protected; along every other one the metric
is `lambda I`, which is why `span_share` reports how much of a step lies in the span.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxunlearn import tree
from jaxunlearn.operators import Factor, LinearOperator
from jaxunlearn.solvers import block


@dataclass(frozen=True, eq=False, kw_only=True)
class LowRankOperator(LinearOperator):
    """`lambda I + S S^T` with its spectral decomposition in the m-dimensional dual space.

    Attributes:
        factor: `S`.
        vectors: `U`, shape [m, m].
        values: `s`, shape [m]: the nonzero eigenvalues of `S S^T`.
        damping: `lambda`.
        rows: the gradients behind S where they are stored, each leaf [m, *shape], f32; else None.
    """

    factor: Factor
    vectors: Float[Array, "m m"]
    values: Float[Array, " m"]
    damping: Float[Array, ""] | float = 0.0
    rows: PyTree | None = None

    def damped(self, damping: Float[Array, ""] | float) -> "LowRankOperator":
        return _operator(self.factor, self.vectors, self.values, self.damping + damping, self.rows)

    def power(self, p: float) -> LinearOperator:
        """`F^p`; a negative power needs positive damping."""

        def mv(v: PyTree) -> PyTree:
            lam = jnp.asarray(self.damping, self.values.dtype)
            # ((lam + s)^p - lam^p) / s without cancellation; its limit at s = 0 is p lam^(p-1).
            growth = jnp.expm1(p * jnp.log1p(self.values / lam)) * lam**p
            tiny = self.values <= jnp.finfo(self.values.dtype).eps * lam
            slope = jnp.where(tiny, p * lam ** (p - 1), growth / jnp.where(tiny, 1.0, self.values))
            dual = self.vectors @ (slope * (self.vectors.T @ self.factor.transpose(v)))
            return tree.add(tree.scale(lam**p, v), self.factor.forward(dual))

        return LinearOperator(mv, self.like, psd=True)

    def span_share(self, v: PyTree) -> Float[Array, ""]:
        """Share of `||v||^2` that lies in the span of the sampled gradients, between 0 and 1."""
        dual = self.vectors.T @ self.factor.transpose(v)
        # A relative cut: below it an eigenvalue is rounding noise and its direction carries no information.
        cut = jnp.finfo(self.values.dtype).eps * self.values.shape[0] * jnp.max(self.values)
        real = self.values > cut
        inside = jnp.sum(jnp.where(real, dual**2 / jnp.where(real, self.values, 1.0), 0.0))
        return jnp.clip(inside / jnp.maximum(tree.vdot(v, v), jnp.finfo(inside.dtype).tiny), 0.0, 1.0)


def dual_form(
    factor: Factor, gram: Float[Array, "m m"], *, damping: Float[Array, ""] | float = 0.0, rows: PyTree | None = None
) -> LowRankOperator:
    """`damping I + S S^T` from `S` and `gram = S^T S`, whose eigendecomposition is the whole cost."""
    values, vectors = jnp.linalg.eigh(gram)
    return _operator(factor, vectors, jnp.maximum(values, 0.0), damping, rows)


def low_rank(
    rows: PyTree,
    vectors: Array,
    values: Array,
    like: PyTree,
    damping: Array | float,
    count: Array | float | None = None,
) -> LowRankOperator:
    """`damping I + G^T G / count` from stored rows G and the eigendecomposition `(values, vectors)` of `G G^T / count`.

    `count` defaults to the number of rows.
    """
    factor = stored_factor(rows, values.shape[0] if count is None else count, like)
    return _operator(factor, vectors, values, damping, rows)


def stored_factor(rows: PyTree, count: Array | float, like: PyTree) -> Factor:
    """`S = G^T / sqrt(count)` with the rows of G at hand."""

    def forward(c: Array) -> PyTree:
        return block.expand(rows, c / jnp.sqrt(count), like)

    return Factor(forward, lambda v: block.project(rows, v) / jnp.sqrt(count), like)


def _operator(factor: Factor, vectors: Array, values: Array, damping: Array | float, rows: PyTree) -> LowRankOperator:
    def mv(v: PyTree) -> PyTree:
        return tree.axpy(damping, v, factor.forward(factor.transpose(v)))

    return LowRankOperator(
        mv, factor.like, True, factor=factor, vectors=vectors, values=values, damping=damping, rows=rows
    )
