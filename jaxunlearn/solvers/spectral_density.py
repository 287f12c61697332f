"""The spectrum of an operator by stochastic Lanczos quadrature.

A Lanczos run of k products from a unit vector v gives the k-point Gauss quadrature of the spectrum as v sees it,

    v.f(A) v ~ sum_i w_i f(theta_i),        w_i = (S_1i)^2,        T = S diag(theta) S^T,

exact for polynomials of degree up to 2k - 1. Random signs u have `E[u.f(A) u] = tr f(A)`, so the mean over probes
estimates the trace of every f at once (log-determinants, norms, effective dimensions) and, with f a narrow Gaussian
around t, the density of eigenvalues at t. Outliers are resolved one by one; a bulk is resolved as a density.

Two errors: that of the probes, which is reported, and that of the quadrature, which falls geometrically in k and does
not show in the spread; take more steps than there are outliers, and compare two values of k where it matters.

References: Lin, Saad and Yang, "Approximating spectral densities of large matrices", SIAM Review 2016; Ubaru, Chen and
Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature", SIMAX 2017; Ghorbani, Krishnan and Xiao, "An
investigation into neural net optimization via Hessian eigenvalue density", ICML 2019.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn import tree
from jaxunlearn.operators import LinearOperator
from jaxunlearn.solvers.estimates import Estimate, mean, unknowns
from jaxunlearn.solvers.lanczos import lanczos
from jaxunlearn.solvers.tridiagonal import ritz

ROUNDINGS = 16
"""Rounding units of the largest eigenvalue that a node is off by, at least: sums in products are long."""


class Spectrum(NamedTuple):
    """One Gauss quadrature of the spectrum a probe.

    Attributes:
        nodes: Ritz values, ascending, shape [probes, steps].
        weights: their shares of the spectrum, each row sums to 1, shape [probes, steps].
        unknowns: n, the number of eigenvalues, as a float.
        errors: of each node, no farther than which there is an eigenvalue: `||r|| |S_ki|`, and never below the rounding
            of products; infinite for the nodes that pad an exhausted run. Shape [probes, steps], or None.
    """

    nodes: Float[Array, "probes steps"]
    weights: Float[Array, "probes steps"]
    unknowns: Float[Array, ""]
    errors: Float[Array, "probes steps"] | None = None


def slq(A: LinearOperator, key: Array, steps: int = 40, probes: int = 8) -> Spectrum:
    """Stochastic Lanczos quadrature: `steps * probes` products, one basis (`4 steps` bytes a parameter) at a time.

    Args:
        A: a symmetric operator, indefinite or not.
        key: random key.
        steps: nodes a probe.
        probes: random vectors, at least 2.

    Example:
        >>> A = LinearOperator(lambda v: jnp.array([1.0, 2.0, 4.0]) * v, like=jnp.zeros(3))
        >>> spectrum = slq(A, jax.random.key(0), steps=3, probes=2)
        >>> spectrum.nodes[0].round(4).tolist(), spectrum.weights[0].round(4).tolist()
        ([1.0, 2.0, 4.0], [0.33..., 0.33..., 0.33...])
        >>> round(float(trace_of(spectrum, jnp.log).value), 4)  # log 8
        2.0794
    """
    if probes < 2:
        raise ValueError(f"slq(probes={probes}): a standard error needs at least 2 probes")
    rules = jax.lax.map(lambda k: quadrature(A, k, steps), jax.random.split(key, probes))
    return rules._replace(unknowns=rules.unknowns[0])


def quadrature(A: LinearOperator, key: Array, steps: int = 40) -> Spectrum:
    """The Gauss quadrature of one probe: `slq` without its leading axis, for a host that shows how far it has come.

    Example:
        >>> A = LinearOperator(lambda v: jnp.array([1.0, 2.0, 4.0]) * v, like=jnp.zeros(3))
        >>> quadrature(A, jax.random.key(0), steps=3).nodes.round(4).tolist()
        [1.0, 2.0, 4.0]
    """
    T = lanczos(A, tree.rademacher_like(key, A.like), steps)
    theta, S = ritz(T)
    bound = T.residual_norm * jnp.abs(S[jnp.maximum(T.steps - 1, 0)])
    rounding = ROUNDINGS * jnp.finfo(theta.dtype).eps * jnp.max(jnp.abs(theta))
    reached = jnp.sum(jnp.where(jnp.arange(steps)[:, None] < T.steps, S**2, 0.0), axis=0) > 0.5
    errors = jnp.where(reached, jnp.maximum(bound, rounding), jnp.inf)
    return Spectrum(theta, S[0] ** 2, jnp.asarray(float(unknowns(A.like)), theta.dtype), errors)


def trace_of(spectrum: Spectrum, f: Callable[[Array], Array]) -> Estimate:
    """`tr f(A)`; f acts on an array of eigenvalues."""
    values = jnp.sum(spectrum.weights * f(spectrum.nodes), axis=1)
    return mean(spectrum.unknowns * values)


def density(spectrum: Spectrum, grid: Float[Array, " g"], width: float) -> Estimate:
    """Density of eigenvalues at the points of `grid`, blurred by a Gaussian of standard deviation `width`.

    It integrates to 1: `unknowns * density * dt` eigenvalues lie within dt. Give a width of a few grid spacings.

    Example:
        >>> A = LinearOperator(lambda v: jnp.array([0.0, 0.0, 1.0]) * v, like=jnp.zeros(3))
        >>> grid = jnp.linspace(-1.0, 2.0, 301)
        >>> found = density(slq(A, jax.random.key(0), steps=2, probes=2), grid, width=0.05).value
        >>> round(float(jnp.sum(found[grid < 0.5]) * 0.01), 3)  # two eigenvalues of three
        0.667
    """
    if not width > 0:
        raise ValueError(f"density(width={width}): give a positive standard deviation")

    def one(rule: tuple[Array, Array]) -> Array:
        nodes, weights = rule
        bell = jnp.exp(-0.5 * ((grid[:, None] - nodes) / width) ** 2) / (width * jnp.sqrt(2 * jnp.pi))
        return bell @ weights

    return mean(jax.lax.map(one, (spectrum.nodes, spectrum.weights)))


def log_determinant(
    A: LinearOperator,
    key: Array,
    *,
    damping: Float[Array, ""] | float = 0.0,
    steps: int = 40,
    probes: int = 8,
) -> Estimate:
    """`log det(A + damping I)` of a positive semidefinite A, in nats, from `steps * probes` products.

    Eigenvalues of A + damping I within rounding of zero count as the rounding unit of the largest one.

    Raises:
        ValueError: when A is not known to be positive semidefinite.

    Example:
        >>> A = LinearOperator(lambda v: jnp.array([0.0, 1.0, 3.0]) * v, like=jnp.zeros(3), psd=True)
        >>> round(float(log_determinant(A, jax.random.key(0), damping=1.0, steps=3, probes=2).value), 4)  # log 8
        2.0794
    """
    if not A.psd:
        raise ValueError(
            "log_determinant(): the operator is not known to be positive semidefinite (psd=False), and negative "
            "eigenvalues have no logarithm; use the Gauss-Newton operator, or trace_of(slq(A, ...), f) with your own f"
        )
    spectrum = slq(A, key, steps, probes)
    floor = jnp.finfo(spectrum.nodes.dtype).eps * (jnp.max(spectrum.nodes) + damping)
    return trace_of(spectrum, lambda theta: jnp.log(jnp.maximum(theta + damping, floor)))
