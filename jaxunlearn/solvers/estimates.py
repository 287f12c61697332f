"""Traces and norms of an operator from random probes, with their standard errors.

For random u with independent entries of mean 0 and variance 1

    E[u.A u] = tr A,        E ||A u||^2 = ||A||_F^2 = sum of squared eigenvalues,

and with random signs the variance of the first is `2 (||A||_F^2 - sum_i A_ii^2)`, twice the squared off-diagonal
entries. The error falls only as one over the root of the number of probes. Where few eigenvalues carry most of the
trace, as in curvature, Hutch++ takes them out first: with an orthonormal basis Q of `A S`, S random,

    tr A = tr(Q A Q^T) + tr((I - Q^T Q) A (I - Q^T Q)),

the first part exactly and the second, which is small, from probes.

References: Hutchinson 1990; Meyer, Musco, Musco and Woodruff, "Hutch++: optimal stochastic trace estimation", SOSA
2021.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxunlearn import tree
from jaxunlearn.operators import LinearOperator, block_product
from jaxunlearn.solvers import block


class Estimate(NamedTuple):
    """A mean over independent probes.

    Attributes:
        value: the estimate; unbiased unless its function says otherwise.
        standard_error: its standard error, from the spread over the probes.
        samples: number of probes.
    """

    value: Float[Array, "..."]
    standard_error: Float[Array, "..."]
    samples: int


def trace(A: LinearOperator, key: Array, samples: int = 32, *, rank: int = 0) -> Estimate:
    """`tr A`, unbiased, from `samples + 2 rank` products.

    Args:
        A: a symmetric operator.
        key: random key.
        samples: probes, at least 2.
        rank: directions that are taken out exactly (Hutch++); `8 rank` bytes a parameter. 0 is Hutchinson's estimator.
            With a third of all products each, that is `rank = samples`, it is optimal for any positive A.

    Example:
        >>> A = LinearOperator(lambda v: jnp.array([1.0, 2.0, 4.0]) * v, like=jnp.zeros(3))
        >>> estimate = trace(A, jax.random.key(0), samples=4)  # a diagonal matrix leaves random signs no variance
        >>> float(estimate.value), float(estimate.standard_error)
        (7.0, 0.0)
    """
    _check("trace", samples)
    if rank < 0:
        raise ValueError(f"trace(rank={rank}): give 0 or more directions")
    sketch_key, key = jax.random.split(key)
    if rank == 0:
        return mean(
            jax.lax.map(lambda k: _quadratic(A, tree.rademacher_like(k, A.like)), jax.random.split(key, samples))
        )
    sketch = jax.lax.map(lambda k: tree.rademacher_like(k, A.like), jax.random.split(sketch_key, rank))
    Q = block.orthonormalise(block_product(A, sketch))
    inside = jnp.trace(block.gram(Q, block_product(A, Q)))

    def outside(k: Array) -> Array:
        u = tree.rademacher_like(k, A.like)
        return _quadratic(A, tree.sub(u, block.expand(Q, block.project(Q, u), u)))

    rest = mean(jax.lax.map(outside, jax.random.split(key, samples)))
    return rest._replace(value=inside + rest.value)


def squared_frobenius_norm(A: LinearOperator, key: Array, samples: int = 32) -> Estimate:
    """`||A||_F^2`, the sum of the squared eigenvalues, unbiased, from `samples` products.

    Example:
        >>> A = LinearOperator(lambda v: jnp.array([1.0, 2.0, 4.0]) * v, like=jnp.zeros(3))
        >>> float(squared_frobenius_norm(A, jax.random.key(0), samples=4).value)
        21.0
    """
    _check("squared_frobenius_norm", samples)

    def one(k: Array) -> Array:
        Au = A(tree.rademacher_like(k, A.like))
        return tree.vdot(Au, Au)

    return mean(jax.lax.map(one, jax.random.split(key, samples)))


def mean(values: Float[Array, "m ..."]) -> Estimate:
    """Mean and standard error over the leading axis of independent values."""
    m = values.shape[0]
    return Estimate(jnp.mean(values, axis=0), jnp.std(values, axis=0, ddof=1) / jnp.sqrt(m), m)


def unknowns(like: PyTree) -> int:
    """Number of unknowns n: a Python integer, since 2^31 of them are ordinary."""
    return sum(leaf.size for leaf in jax.tree.leaves(like))


def _quadratic(A: LinearOperator, u: PyTree) -> Float[Array, ""]:
    return tree.vdot(u, A(u))


def _check(name: str, samples: int) -> None:
    if samples < 2:
        raise ValueError(f"{name}(samples={samples}): a standard error needs at least 2 probes")
