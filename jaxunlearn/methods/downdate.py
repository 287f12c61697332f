"""Solving with what is left of a matrix when a part of it is taken away, by its inverse before.

    (H - S S^T)^-1 = H^-1 + H^-1 S (I - M)^-1 S^T H^-1,        M = S^T H^-1 S        (Woodbury)

The matrix that has to be inverted anew is the small one, and a Lanczos run on M from `S^T H^-1 g` needs one solve with
H a step: it is exact after as many steps as S has columns, or M different eigenvalues. The run shows the largest of
them, the leverage of what is taken away: below 1 exactly where what is left is positive definite.

Reference: Woodbury 1950; Hager, "Updating the inverse of a matrix", SIAM Review 1989.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxunlearn import tree
from jaxunlearn.operators import Factor, LinearOperator
from jaxunlearn.solvers import Status
from jaxunlearn.solvers.krylov import matrix_function
from jaxunlearn.solvers.lanczos import LanczosState, tridiagonalization
from jaxunlearn.solvers.lanczos import init as lanczos_init
from jaxunlearn.solvers.lanczos import update as lanczos_update
from jaxunlearn.solvers.protocol import RUNNING, relative
from jaxunlearn.solvers.tridiagonal import ritz
from jaxunlearn.transforms import Solver

OPENING, GROWING, CLOSING, OVER = range(4)


class DowndateInfo(NamedTuple):
    """What a downdated solve did: the fields of `SolveInfo`, and the leverage.

    Attributes:
        status: a `Status` code, `CONVERGED` when `relative_residual <= rtol`, else that of the last solve with H, or
            `MAX_STEPS` where that one was good: the dual system was cut short, or its leverage capped.
        steps: products with H spent inside its solves (none where its inverse is a closed form).
        relative_residual: `||g - (H - S S^T) x|| / ||g||`, or a little more: the residual of the last solve with H and
            that of the dual system, added.
        residual_norms: `||g||` and that residual, shape [2].
        min_curvature: lowest Rayleigh quotient of H met by its solves.
        max_curvature: highest one.
        leverage: largest Ritz value of `S^T H^-1 S`; at 1 the downdated curvature is singular.
    """

    status: Int[Array, ""]
    steps: Int[Array, ""]
    relative_residual: Float[Array, ""]
    residual_norms: Float[Array, " 2"]
    min_curvature: Float[Array, ""]
    max_curvature: Float[Array, ""]
    leverage: Float[Array, ""]


class _Round(NamedTuple):
    """Between two solves with H.

    Attributes:
        stage: what comes next.
        state: the Lanczos run on M.
        dual: of the next right-hand side, the part under S; at the end the residual of the dual system.
        x: what the last solve gave.
        steps, status, unsolved, min_curvature, max_curvature: of the solves; `unsolved` is the last one's `||r||`.
    """

    stage: Int[Array, ""]
    state: LanczosState
    dual: PyTree
    x: PyTree
    steps: Int[Array, ""]
    status: Int[Array, ""]
    unsolved: Float[Array, ""]
    min_curvature: Float[Array, ""]
    max_curvature: Float[Array, ""]


def solve_downdated(
    H: LinearOperator,
    S: Factor,
    g: PyTree,
    *,
    inverse: Solver,
    rank: int,
    max_leverage: float = 0.95,
    rtol: float = 1e-3,
) -> tuple[PyTree, DowndateInfo]:
    """`(H - S S^T)^-1 g = H^-1 (g + S (I - M)^-1 S^T H^-1 g)` by a Lanczos run on `M = S^T H^-1 S`.

    Args:
        H: a positive definite operator, damping included.
        S: square root of what is taken off.
        g: right-hand side.
        inverse: `(H, rhs) -> (x, info)`: `ClosedForm()` for operators that know their inverse, `CG(...)` for others.
        rank: most Lanczos steps, each one solve with H, and two more around them. Exact once it reaches the rank of
            `S`, and before that if the spectrum of M has few distinct values.
        max_leverage: eigenvalues of M above it are taken as equal to it, which bounds the amplification of any
            direction by `1 / (1 - max_leverage)`.
        rtol: relative residual at or under which the status is `CONVERGED`.

    Raises:
        ValueError: for a `rank` below 1, or `max_leverage` outside (0, 1).

    Example:
        >>> from jaxunlearn.operators import identity
        >>> from jaxunlearn.solvers import ClosedForm
        >>> H, w = identity(jnp.zeros(2), 2.0), jnp.array([1.0, 0.0])
        >>> x, info = solve_downdated(H, Factor(lambda c: c * w, lambda v: v @ w[:, None], w), jnp.ones(2),
        ...                           inverse=ClosedForm(), rank=1)
        >>> x.round(3).tolist(), round(float(info.leverage), 3)  # diag(2 - 1, 2)
        ([1.0, 0.5], 0.5)
    """
    check(rank, max_leverage)
    g = tree.to_vector(g)

    def again(r: _Round) -> _Round:
        # All solves are this one: unrolled, each would be compiled with its own products.
        opening, closing = r.stage == OPENING, r.stage == CLOSING
        rhs = tree.axpy(jnp.where(opening | closing, 1.0, 0.0), g, S.forward(r.dual))
        x, info = inverse(H, rhs)
        product = S.transpose(x)
        state = tree.where(opening, lanczos_init(product, rank), lanczos_update(r.state, product))
        state = tree.where(closing, r.state, state)
        over = state.status != RUNNING
        T = tridiagonalization(state)
        y = matrix_function(T, lambda leverage: _gain(leverage, max_leverage))
        return _Round(
            stage=jnp.where(closing, OVER, jnp.where(over, CLOSING, GROWING)).astype(jnp.int32),
            state=state,
            dual=tree.where(closing, tree.sub(product, r.dual), tree.where(over, y, state.vector)),
            x=x,
            steps=r.steps + info.steps,
            status=info.status,
            unsolved=info.relative_residual * tree.norm(rhs),
            min_curvature=jnp.minimum(r.min_curvature, info.min_curvature),
            max_curvature=jnp.maximum(r.max_curvature, info.max_curvature),
        )

    dual, size = tree.scale(0.0, S.transpose(g)), tree.norm(g)
    start = _Round(
        jnp.int32(OPENING), lanczos_init(dual, rank), dual, tree.zeros_like(g), jnp.int32(0), jnp.int32(RUNNING),
        jnp.zeros_like(size), jnp.full_like(size, jnp.inf), jnp.full_like(size, -jnp.inf),
    )  # fmt: skip
    end = jax.lax.while_loop(lambda r: r.stage != OVER, again, start)
    # With H x = g + S y - r, what is missing from (H - S S^T) x = g is r + S (S^T x - y).
    residual = end.unsolved + tree.norm(S.forward(end.dual))
    share = relative(residual, size)
    good = (end.status == int(Status.CONVERGED)) | (end.status == int(Status.CLOSED_FORM))
    status = jnp.where(good, int(Status.MAX_STEPS), end.status)
    status = jnp.where(share <= rtol, int(Status.CONVERGED), status)
    status = jnp.where(jnp.isfinite(share), status, int(Status.NON_FINITE)).astype(jnp.int32)
    leverage = ritz(tridiagonalization(end.state))[0][-1]
    norms = jnp.stack([size, residual])
    return end.x, DowndateInfo(status, end.steps, share, norms, end.min_curvature, end.max_curvature, leverage)


def _gain(leverage: Array, most: float) -> Array:
    """`1 / (1 - leverage)`, and where that is too much, what makes `1 + leverage gain` equal `1 / (1 - most)`."""
    capped = most / ((1.0 - most) * jnp.maximum(leverage, most))
    return jnp.where(leverage > most, capped, 1.0 / (1.0 - jnp.minimum(leverage, most)))


def check(rank: int, max_leverage: float) -> None:
    """Refuse settings of a downdate that make no sense."""
    if rank < 1:
        raise ValueError(f"rank={rank}: the downdate needs at least one Lanczos step")
    if not 0 < max_leverage < 1:
        raise ValueError(f"max_leverage={max_leverage}: give a number between 0 and 1; at 1 the step is infinite")
