"""Curvature that was taken beforehand, in the place of a pass over data.

Taken once while the retain set is at hand and kept, curvature tells any later step in which directions what is kept
would notice: no retain example is needed then, and one store serves many requests. Three forms are read here, each a
pytree that travels in a batch:

    Kronecker factors   `eigendecompose(kronecker_factors(...))`   blocks in every direction, a fraction of the size of
                                                                   the data
    dual gradients      `store_rows(EmpiricalFisher(m)(...))`      m gradients: exact in their span, blind elsewhere
    a Lanczos basis     `store_krylov(lanczos(G, b, steps))`       Ritz pairs of any positive semidefinite matrix

`curvature.save` and `curvature.load` keep them in a folder. They describe the parameters they were taken at, and the
farther a model has moved from there the less they say.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxunlearn.curvature.kronecker import KroneckerEigen, KroneckerFactors, KroneckerOperator, from_eigen, from_factors
from jaxunlearn.curvature.low_rank import LowRankOperator, low_rank
from jaxunlearn.solvers import Tridiagonalization, block
from jaxunlearn.solvers.tridiagonal import ritz
from jaxunlearn.types import Model, Params


class StoredRows(NamedTuple):
    """A positive semidefinite matrix of low rank, `A = R^T R`, with the eigenvectors of `R R^T = U diag(s) U^T`.

    Attributes:
        rows: `R`, leaves [m, *shape] in f32.
        vectors: `U`, shape [m, m].
        values: `s`, shape [m].
    """

    rows: PyTree
    vectors: Float[Array, "m m"]
    values: Float[Array, " m"]


def store_rows(A: LowRankOperator) -> StoredRows:
    """The rows behind a curvature in the dual form, without its damping.

    Example:
        >>> from jaxunlearn.curvature.empirical_fisher import empirical_fisher
        >>> F = empirical_fisher(lambda w, x: (jnp.sum(x @ w), len(x)), jnp.zeros(2), jnp.array([[2.0, 0.0]]))
        >>> store_rows(F).rows.tolist()
        [[2.0, 0.0]]
    """
    return StoredRows(jax.lax.map(A.factor.forward, jnp.eye(len(A.values), dtype=A.values.dtype)), A.vectors, A.values)


def store_krylov(T: Tridiagonalization) -> StoredRows:
    """`sum_i theta_i y_i y_i^T` over the Ritz pairs of a Lanczos run with a device basis; those below 0 are dropped.

    Example:
        >>> from jaxunlearn.solvers import lanczos
        >>> T = lanczos(lambda v: jnp.array([4.0, 9.0]) * v, jnp.ones(2), steps=2)
        >>> rows = store_krylov(T).rows
        >>> bool(jnp.allclose(rows.T @ rows, jnp.diag(jnp.array([4.0, 9.0])), atol=1e-4))
        True
    """
    theta, S = ritz(T)
    rows = block.mix(T.basis, S * jnp.sqrt(jnp.maximum(theta, 0.0)))
    values, vectors = jnp.linalg.eigh(block.gram(rows, rows))
    return StoredRows(rows, vectors, jnp.maximum(values, 0.0))


@dataclass(frozen=True)
class Stored:
    """Curvature recipe whose data is curvature: a store of this module, as the part of a batch.

    `UnlearnBatch.curvature` carries it, and `metric=STORED` of `methods.compose` reads it there. Eigenvectors
    (`KroneckerEigen`) and rows are applied as they are; factors (`KroneckerFactors`) are decomposed in every step. All
    have closed-form powers.

    Raises:
        ValueError: when the data is no store, or belongs to other parameters.

    Example:
        >>> from jaxunlearn import taps
        >>> from jaxunlearn.curvature.kronecker import Settings, kronecker_factors
        >>> from jaxunlearn.types import LabelledBatch
        >>> model = Model(logits=lambda w, x: taps.matmul(x, w))
        >>> params, batch = jnp.zeros((2, 2)), LabelledBatch(jnp.array([[2.0, 0.0]]), jnp.array([0]))
        >>> factors = kronecker_factors(model, params, batch, Settings(labels="exact"))
        >>> Stored()(model, params, factors)(jnp.array([[1.0, 0.0], [1.0, 0.0]])).round(4).tolist()
        [[1.0, -1.0], [0.0, 0.0]]
    """

    def __call__(
        self, model: Model, params: Params, batch: KroneckerEigen | KroneckerFactors | StoredRows
    ) -> KroneckerOperator | LowRankOperator:
        if isinstance(batch, KroneckerEigen):
            return from_eigen(batch, params)
        if isinstance(batch, KroneckerFactors):
            return from_factors(batch, params)
        if isinstance(batch, StoredRows):
            return low_rank(batch.rows, batch.vectors, batch.values, params, 0.0, 1.0)
        raise ValueError(
            f"Stored() cannot read curvature from a {type(batch).__name__}: put what curvature.load, "
            "eigendecompose, kronecker_factors, store_rows or store_krylov gives into UnlearnBatch.curvature"
        )
