"""An upper bound on the largest eigenvalue from a few products: what a fixed-step iteration needs to know.

A few Lanczos steps from a random vector give a tridiagonal T and a remainder `beta`. With `theta` its largest
eigenvalue and `s` the last entry of the eigenvector,

    theta  <=  lambda_max,        A has an eigenvalue in  theta +- beta |s|,

so `theta + beta |s|` is an upper bound as soon as the Ritz vector leans towards the top (Zhou and Saad 2011). A random
start vector makes that all but certain, and who divides by it still has a factor of two in hand: `x += s (b - A x)`
converges for every `s < 2 / lambda_max`. Three terms, no basis, no orthogonalisation: two vectors.

References: Zhou and Saad, "Bounding the spectrum of large Hermitian matrices", Linear Algebra Appl. 435, 2011;
Kuczynski and Wozniakowski, SIAM J. Matrix Anal. Appl. 13, 1992 (random start vectors).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxunlearn import tree
from jaxunlearn.solvers.protocol import zeros


class Probe(NamedTuple):
    """Lanczos in progress: the next vector `v` of unit length, the one before, T so far, products taken in."""

    v: PyTree
    previous: PyTree
    alphas: Float[Array, " m"]
    betas: Float[Array, " m"]
    steps: Int[Array, ""]


class Bound(NamedTuple):
    """Smallest and largest Ritz value, both Rayleigh quotients of A, and the upper bound on the largest eigenvalue."""

    lowest: Float[Array, ""]
    highest: Float[Array, ""]
    upper: Float[Array, ""]


def init(like: PyTree, steps: int, seed: int = 0) -> Probe:
    """A random vector of unit length, the same one for the same seed, laid out like `like`."""
    v = tree.normal_like(jax.random.key(seed), like)
    size = tree.norm(v)
    row = jnp.zeros(steps, size.dtype)
    return Probe(tree.scale(1.0 / size, v), zeros(like), row, row, jnp.int32(0))


def update(probe: Probe, Av: PyTree) -> Probe:
    """Take in the product with `probe.v`. After an invariant subspace the vector is zero, and so is the rest of T."""
    i = probe.steps
    before = jnp.where(i > 0, probe.betas[jnp.maximum(i - 1, 0)], 0.0)
    w = tree.axpy(-before, probe.previous, Av)
    alpha = tree.vdot(probe.v, w)
    w = tree.axpy(-alpha, probe.v, w)
    beta = tree.norm(w)
    # What is left of a vector at rounding level points nowhere.
    beta = jnp.where(beta > 10 * jnp.finfo(beta.dtype).eps * (jnp.abs(alpha) + before), beta, 0.0)
    v = tree.scale(jnp.where(beta > 0, 1.0 / jnp.where(beta > 0, beta, 1.0), 0.0), w)
    return Probe(v, probe.v, probe.alphas.at[i].set(alpha), probe.betas.at[i].set(beta), i + 1)


def bound(probe: Probe) -> Bound:
    """What a finished probe says.

    Example:
        >>> scale = jnp.array([1.0, 3.0])
        >>> probe = init(scale, 2)
        >>> for _ in range(2):
        ...     probe = update(probe, scale * probe.v)
        >>> [round(float(value), 3) for value in bound(probe)]
        [1.0, 3.0, 3.0]
    """
    place = jnp.arange(probe.alphas.shape[0])
    # An exhausted space leaves zeros in T; its first entry lies within the spectrum and adds no eigenvalue outside it.
    alive = jnp.concatenate([jnp.array([True]), jnp.cumprod(probe.betas[:-1] > 0).astype(bool)]) & (place < probe.steps)
    alphas, off = jnp.where(alive, probe.alphas, probe.alphas[0]), jnp.where(alive[1:], probe.betas[:-1], 0.0)
    theta, S = jnp.linalg.eigh(jnp.diag(alphas) + jnp.diag(off, 1) + jnp.diag(off, -1))
    rest = probe.betas[-1] * jnp.abs(S[-1, -1])
    return Bound(theta[0], theta[-1], theta[-1] + rest)
