"""The eigenvalues that a Lanczos run has found one by one: its converged outlying Ritz values, with bounds.

A Ritz pair (theta, q) of a symmetric A leaves the residual `||A q - theta q|| = ||r|| |S_ki|`, so that an eigenvalue
of A lies within that distance of theta. Where the distance is a small share of the gap to the next Ritz value, theta is
an eigenvalue that stands alone; elsewhere Ritz values are the nodes of a quadrature, and say how many eigenvalues there
are around them but not where.

Lanczos finds the outermost eigenvalues first. So the outliers are read off from each end inwards, up to the first Ritz
value that has not converged: there the bulk begins. At the lower end only negative ones count, as a positive
semidefinite operator ends there in its null space. Every probe finds the same outliers, and each is kept from the probe
that has it most exactly.

Reference: Parlett, "The symmetric eigenvalue problem", SIAM 1998, sections 4.5 and 11.7.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxunlearn.solvers.spectral_density import ROUNDINGS, Spectrum

SHARE_OF_GAP = 0.1


class Outliers(NamedTuple):
    """Eigenvalues found one by one, ascending; each lies within `error` of its `value`."""

    value: Float[np.ndarray, " m"]
    error: Float[np.ndarray, " m"]


def outliers(spectrum: Spectrum, *, share: float = SHARE_OF_GAP) -> Outliers:
    """The converged outlying Ritz values of a quadrature, on the host.

    Args:
        spectrum: of `slq`, with its errors.
        share: a Ritz value has converged when its error is at most this share of the gap to the next one inwards.

    Raises:
        ValueError: for a spectrum without errors.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxunlearn.operators import LinearOperator
        >>> from jaxunlearn.solvers import slq
        >>> bulk = jnp.linspace(1.0, 2.0, 200)
        >>> scale = jnp.concatenate([jnp.array([-5.0, 50.0, 100.0]), bulk])
        >>> found = outliers(slq(LinearOperator(lambda v: scale * v, scale), jax.random.key(0), steps=12, probes=2))
        >>> found.value.round(3).tolist()
        [-5.0, 50.0, 100.0]
    """
    if spectrum.errors is None:
        raise ValueError("outliers(): this spectrum carries no errors; take it with slq or quadrature")
    nodes, errors = (np.asarray(x, np.float64) for x in (spectrum.nodes, spectrum.errors))
    found: list[tuple[float, float]] = []
    for theta, error in zip(nodes, errors, strict=True):
        real = np.isfinite(error)
        theta, error = theta[real], error[real]
        found += _from_the_top(theta[::-1], error[::-1], share)
        found += [(-value, bound) for value, bound in _from_the_top(-theta, error, share)]
    kept: list[tuple[float, float]] = []
    for value, error in sorted(found, key=lambda pair: pair[1]):
        if all(abs(value - other) > error + bound for other, bound in kept):
            kept.append((value, error))
    values, bounds = np.array(sorted(kept), np.float64).reshape(-1, 2).T
    return Outliers(values, bounds)


def _from_the_top(theta: np.ndarray, error: np.ndarray, share: float) -> list[tuple[float, float]]:
    """The positive converged values of a descending list, up to the first that is neither."""
    found = []
    rounding = ROUNDINGS * np.finfo(np.float32).eps * np.abs(theta).max(initial=0.0)
    for index, (value, bound) in enumerate(zip(theta, error, strict=True)):
        gap = value - theta[index + 1] if index + 1 < theta.size else np.abs(value)
        if value <= rounding or bound > share * gap:
            break
        found.append((float(value), float(bound)))
    return found
