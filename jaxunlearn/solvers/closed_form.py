"""`A^p b` for operators that know their own powers (the dual form of the empirical Fisher)."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import PyTree

from jaxunlearn import tree
from jaxunlearn.operators import LinearOperator
from jaxunlearn.solvers.status import SolveInfo, Status


@dataclass(frozen=True)
class ClosedForm:
    """`x = A^p b` by the operator's closed form; `p = -1` solves `A x = b`.

    The residual reported is that of the way back, `||A^-p x - b|| / ||b||`: how exact the closed form is in the
    arithmetic that was really used.
    """

    power: float = -1.0

    def __call__(self, A: LinearOperator, b: PyTree, x0: PyTree | None = None) -> tuple[PyTree, SolveInfo]:
        b = tree.to_vector(b)
        x = A.power(self.power)(b)
        error = tree.norm(tree.sub(A.power(-self.power)(x), b))
        b_norm = tree.norm(b)
        bb = jnp.where(b_norm > 0, b_norm, 1.0)
        rayleigh = tree.vdot(b, A(b)) / bb**2
        return x, SolveInfo(jnp.int32(Status.CLOSED_FORM), jnp.int32(0), error / bb, error[None], rayleigh, rayleigh)
