"""The tridiagonal matrix of a Lanczos run, and its eigenvalues to the accuracy that f32 allows.

The run leaves `A Q^T = Q^T T + r e^T`, so that f(A) on the Krylov space is f(T), and f(T) is read off an
eigendecomposition `T = S diag(theta) S^T`: the Ritz values theta are Rayleigh quotients of A, and the first row of S
holds the square roots of the weights with which the start vector sees them.

Reference: Demmel and Kahan, "Accurate singular values of bidiagonal matrices", SIAM J. Sci. Stat. Comput. 11, 1990.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree


class Tridiagonalization(NamedTuple):
    """`A Q^T = Q^T T + r e^T`, where e is the unit vector of the last step.

    Attributes:
        basis: `Q`, leaves [k, *shape]; rows after `steps` are zero.
        diagonal: of T, shape [k]; padded with its first entry, which lies within the Ritz values.
        off_diagonal: of T, shape [k - 1]; padded with 0.
        residual: `r`, a tree.
        residual_norm: `||r||`.
        norm: length of the start vector, `||v|| Q^T e_1 = v`.
        steps: finite products spent, at most k.
        status: `MAX_STEPS`, `INVARIANT_SUBSPACE` or `NON_FINITE`.
    """

    basis: PyTree
    diagonal: Float[Array, " k"]
    off_diagonal: Float[Array, " k-1"]
    residual: PyTree
    residual_norm: Float[Array, ""]
    norm: Float[Array, ""]
    steps: Int[Array, ""]
    status: Int[Array, ""]


def dense(T: Tridiagonalization) -> Float[Array, "k k"]:
    """T as a matrix."""
    return _matrix(T.diagonal, T.off_diagonal)


def ritz(T: Tridiagonalization) -> tuple[Float[Array, " k"], Float[Array, "k k"]]:
    """Eigenvalues of T (ascending: the Ritz values) and its eigenvectors, one a column.

    A positive definite T is taken apart as `T = R^T R` with a bidiagonal R, whose singular values are the roots of the
    eigenvalues: their error is `eps sqrt(theta theta_max)` instead of the `eps theta_max` of a symmetric eigensolver,
    which in f32 would drown the small eigenvalues, those that inverses live on, in the rounding of the outliers.
    """
    return _ritz(T.diagonal, T.off_diagonal)


@jax.jit
def _ritz(diagonal: Float[Array, " k"], off_diagonal: Float[Array, " k-1"]) -> tuple[Array, Array]:
    def pivot(d: Array, entry: tuple[Array, Array]) -> tuple[Array, Array]:
        a, b = entry
        d = a - b * (b / jnp.where(d > 0, d, 1.0))
        return d, d

    _, later = jax.lax.scan(pivot, diagonal[0], (diagonal[1:], off_diagonal))
    d = jnp.append(diagonal[:1], later)

    def of_root() -> tuple[Array, Array]:
        root = jnp.sqrt(d)
        _, singular, rows = jnp.linalg.svd(jnp.diag(root) + jnp.diag(off_diagonal / root[:-1], 1))
        return singular[::-1] ** 2, rows[::-1].T

    return jax.lax.cond(jnp.all(d > 0), of_root, lambda: tuple(jnp.linalg.eigh(_matrix(diagonal, off_diagonal))))


def _matrix(diagonal: Array, off_diagonal: Array) -> Array:
    return jnp.diag(diagonal) + jnp.diag(off_diagonal, 1) + jnp.diag(off_diagonal, -1)
