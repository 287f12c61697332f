"""The secular equation: which damping gives a step its own length?

A step under the damping lambda solves `(A + lambda I) x = b`, and in the eigenbasis of A, where b is c,

    || x(lambda) || = sqrt(sum_i c_i^2 / (theta_i + lambda)^2)

falls with lambda on `lambda > max(0, -theta_1)`, from the pole to zero. A trust region wants it to be the radius, cubic
regularisation `2 lambda / L`: lines that do not fall, which it meets once. The root is found by bisection of
`lambda - max(0, -theta_1)` on a logarithmic scale over the whole range of floats: a fixed number of steps, and no
cancellation however close lambda comes to the pole. It stays above the pole unless b is orthogonal to the lowest
eigenvectors (the hard case, More and Sorensen 1983); then what is missing in length is added along the lowest one.

References: More and Sorensen, "Computing a trust region step", SIAM J. Sci. Stat. Comput. 4, 1983; Nesterov and Polyak,
"Cubic regularization of Newton method and its global performance", Math. Program. 108, 2006.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Secular(NamedTuple):
    """Solution of a secular equation: the damping, the coordinates in the eigenbasis, and whether the case was hard."""

    damping: Float[Array, ""]
    z: Float[Array, " k"]
    hard_case: Bool[Array, ""]


def secular(
    theta: Float[Array, " k"], c: Float[Array, " k"], length: Callable[[Array], Array], *, bisections: int = 64
) -> Secular:
    """Find lambda with `||c / (theta + lambda)|| = length(lambda)`, `lambda >= max(0, -theta_1)`.

    Args:
        theta: eigenvalues, ascending.
        c: right-hand side in the eigenbasis.
        length: the wanted length of the step, a function of lambda that does not fall.
        bisections: halvings of the logarithmic range of `lambda - max(0, -theta_1)`, all floats.

    Returns:
        lambda is 0 where the undamped step is short enough and theta positive.

    Example:
        >>> root = secular(jnp.array([-1.0, 2.0]), jnp.array([1.0, 0.0]), lambda lam: 0.5)
        >>> round(float(root.damping), 5), root.z.round(5).tolist()  # 1 / (lambda - 1) = 1 / 2
        (3.0, [0.5, 0.0])
    """
    unit = jnp.finfo(theta.dtype)
    pole = jnp.maximum(0.0, -theta[0])
    gap = theta + pole

    def step(delta: Array) -> Array:
        return c / jnp.maximum(gap + delta, unit.tiny)

    def too_long(delta: Array) -> Array:
        return jnp.linalg.norm(step(delta)) > length(pole + delta)

    def halve(_, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = jnp.sqrt(low) * jnp.sqrt(high)
        long = too_long(middle)
        return jnp.where(long, middle, low), jnp.where(long, high, middle)

    least, most = jnp.full_like(pole, unit.tiny), jnp.full_like(pole, unit.max)
    low, high = jax.lax.fori_loop(0, bisections, halve, (least, most))
    interior = ~too_long(least)
    delta = jnp.where(interior, 0.0, jnp.sqrt(low) * jnp.sqrt(high))
    z = step(jnp.where(interior, unit.tiny, delta))
    missing = length(pole + delta) ** 2 - jnp.sum(z**2)
    hard = interior & (pole > 0) & (missing > 0)
    lowest_part = jnp.where(z[0] < 0, -1.0, 1.0) * jnp.sqrt(z[0] ** 2 + jnp.where(hard, missing, 0.0))
    return Secular(pole + delta, z.at[0].set(jnp.where(hard, lowest_part, z[0])), hard)
