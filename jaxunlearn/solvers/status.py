"""How a solve ended, and what that means for the person who started it."""

from enum import IntEnum
from typing import NamedTuple

from jaxtyping import Array, Float, Int


class Status(IntEnum):
    """Result code of a solve. `Status(code).message` says what happened, the likely cause and the remedy."""

    CONVERGED = 0
    NO_PROGRESS = 1
    MAX_STEPS = 2
    NEGATIVE_CURVATURE = 3
    NON_FINITE = 4
    CLOSED_FORM = 5

    @property
    def message(self) -> str:
        return MESSAGES[self]


MESSAGES = {
    Status.CONVERGED: "converged: the relative residual is at or under rtol",
    Status.NO_PROGRESS: (
        "stopped by the progress rule: the quadratic model improved by less than the asked share per step, so more "
        "products would hardly change the step; set progress=None to solve to rtol"
    ),
    Status.MAX_STEPS: (
        "not converged within max_steps: the step is a truncated (regularised) solve; raise max_steps or the damping, "
        "or accept it and read the reported residual"
    ),
    Status.NEGATIVE_CURVATURE: (
        "truncated at a direction of negative curvature: the operator is not positive definite there; raise the "
        "damping above the reported lowest curvature, or use the Gauss-Newton operator, which never has any"
    ),
    Status.NON_FINITE: (
        "a product returned NaN or infinity; the last finite iterate is returned: check the parameters and the batch "
        "for NaN, or raise the damping"
    ),
    Status.CLOSED_FORM: "exact closed form, nothing iterated",
}


class SolveInfo(NamedTuple):
    """What a solve did.

    Attributes:
        status: a `Status` code, int32.
        steps: operator products spent, int32.
        relative_residual: `||b - A x|| / ||b||`.
        residual_norms: `||b - A x_i||` by step, shape [max_steps + 1]; entries after `steps` repeat the last one.
        min_curvature: smallest Rayleigh quotient `<p, A p> / <p, p>` met along search directions.
        max_curvature: largest one.
    """

    status: Int[Array, ""]
    steps: Int[Array, ""]
    relative_residual: Float[Array, ""]
    residual_norms: Float[Array, " n"]
    min_curvature: Float[Array, ""]
    max_curvature: Float[Array, ""]
