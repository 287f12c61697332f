"""Does an operator give the same product twice?

Every solver assumes that A is one matrix. Data that is shuffled between two passes changes nothing but the order of a
sum; data that is drawn, dropped or augmented anew, and dropout left on, give another matrix each time, and conjugate
gradients then quietly returns nonsense. One product more, before a solve, finds out.
"""

import jax
import jax.numpy as jnp

from jaxunlearn import tree
from jaxunlearn.operators import LinearOperator


def check_deterministic(A: LinearOperator, *, rtol: float = 1e-4, seed: int = 0) -> float:
    """Compare two products of A with one random vector, on the host.

    The same batches in another order, or a device that adds in another order, change an f32 product by 1e-7 to 1e-5 of
    its size, and pass; dropout, or another sample of the data, changes it by 1e-2 or more. Where 16-bit gradients of
    *regrouped* examples are added, rounding alone may reach 1e-2: fix the batches, or raise `rtol`.

    Args:
        A: any operator that is called outside of `jit`, streamed ones above all: inside a compiled function two equal
            calls are one.
        rtol: largest `||A v - A v (again)|| / ||A v||` that counts as rounding.
        seed: of the random vector.

    Returns:
        That difference; 0.0 when both products agree in every bit.

    Raises:
        ValueError: when it is larger, or not a number, saying what to look for.

    Example:
        >>> check_deterministic(LinearOperator(lambda v: 2.0 * v, like=jnp.zeros(3)))
        0.0
    """
    v = tree.normal_like(jax.random.key(seed), A.like)
    once, again = A(v), A(v)
    size = tree.norm(once)
    gap = tree.norm(tree.sub(once, again)) / jnp.where(size > 0, size, 1.0)
    if isinstance(gap, jax.core.Tracer):
        raise ValueError("check_deterministic compares two runs, and inside jit there is only one: call it outside")
    found = float(gap)
    if not found <= rtol:
        raise ValueError(
            f"two products with the same vector differ by {found:.1e} of their size (rtol={rtol:.0e}): the operator is "
            "not one matrix. Look for data that is drawn, augmented or shuffled across batch borders in each pass, "
            "and for dropout that is left on"
        )
    return found
