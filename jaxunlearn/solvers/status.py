"""How a solve ended, and what that means for the person who started it."""

from enum import IntEnum
from typing import NamedTuple

from jaxtyping import Array, Float, Int


class Status(IntEnum):
    """Result code of a solve. `Status(code).message` says what happened, the likely cause and the remedy."""

    RUNNING = -1
    CONVERGED = 0
    NO_PROGRESS = 1
    MAX_STEPS = 2
    NEGATIVE_CURVATURE = 3
    NON_FINITE = 4
    CLOSED_FORM = 5
    INVARIANT_SUBSPACE = 6
    INDEFINITE_POWER = 7
    LEAST_SQUARES = 8
    DIVERGED = 9
    INDEFINITE_PRECONDITIONER = 10

    @property
    def message(self) -> str:
        return MESSAGES[self]


MESSAGES = {
    Status.RUNNING: (
        "not finished: the solve was interrupted between two products; hand the saved state to solve_on_host to go on"
    ),
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
        "truncated at a direction of negative or no curvature: the operator is not positive definite there; raise the "
        "damping above the reported lowest curvature, or use the Gauss-Newton operator, which never has any"
    ),
    Status.NON_FINITE: (
        "a product returned NaN or infinity; the last finite iterate is returned: check the parameters and the batch "
        "for NaN, or raise the damping"
    ),
    Status.CLOSED_FORM: "exact closed form, nothing iterated",
    Status.INVARIANT_SUBSPACE: (
        "the Krylov space is exhausted: the vectors found so far span an invariant subspace, what is computed in it is "
        "exact to rounding, and more products would add nothing"
    ),
    Status.INDEFINITE_POWER: (
        "a fractional power of an indefinite operator: the absolute values of its negative eigenvalues were used; "
        "raise the damping above minus the reported lowest curvature, or use the Gauss-Newton operator, which has none"
    ),
    Status.LEAST_SQUARES: (
        "the system has no solution: the operator is singular and the right-hand side reaches out of its range; the "
        "least-squares solution is returned, its residual is what cannot be reached; add damping to get a solution"
    ),
    Status.DIVERGED: (
        "the series diverged: the operator has an eigenvalue below zero, or one above twice the bound that was probed, "
        "and the iterate before the growth is returned; raise the damping or `probes`, or use CG, which needs no scale"
    ),
    Status.INDEFINITE_PRECONDITIONER: (
        "the preconditioner is not positive definite: <r, M^-1 r> <= 0 for a residual r that is not zero; damp the "
        "operator it was made of, or solve without it"
    ),
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
        models: the quadratic model `x_i.A x_i / 2 - b.x_i` by step, laid out like `residual_norms`.
        alphas: diagonal of the Lanczos matrix T of the solve, shape [max_steps], 0 where not reached.
        betas: off-diagonal, `betas[i]` couples i and i + 1; shape [max_steps], 0 where not reached.
        scale: step length of a Neumann series, one over the bound on the largest eigenvalue.

    What a solver does not know is `None`.
    """

    status: Int[Array, ""]
    steps: Int[Array, ""]
    relative_residual: Float[Array, ""]
    residual_norms: Float[Array, " n"]
    min_curvature: Float[Array, ""]
    max_curvature: Float[Array, ""]
    models: Float[Array, " n"] | None = None
    alphas: Float[Array, " m"] | None = None
    betas: Float[Array, " m"] | None = None
    scale: Float[Array, ""] | None = None
