"""MINRES: the smallest residual in the Krylov space, for symmetric systems that may be indefinite or singular.

The Hessian of a network is indefinite, where CG has no footing: the quadratic model it minimises has no minimum. MINRES
minimises `||b - A x||` instead. Lanczos gives `A V_k = V_(k+1) T_k`, so the problem in the space is

    min_y || beta_1 e_1 - T_k y ||,        x = x_0 + V_k y,

with T_k tridiagonal, [k + 1, k]. A QR factorisation by one plane rotation a step, and `W = V R^-1` by a recurrence of
three terms, update x without V being kept: six vectors, one product a step. The residual never grows.

How it ends:

1. `||b - A x|| <= rtol ||b||`: solved.
2. With a residual that is not small, `||A r||` at rounding level relative to `||A|| ||r||`; or a step along a nearly
   null vector (`f = ||A|| ||w|| eps^(1/2) > 1`) that doubles x and takes less than a share of `1e-4 f` off `||r||^2`. A
   is singular and b reaches out of its range: r is orthogonal to the range, x is a least-squares solution, and what
   would follow is division by rounding, which the recurrences do not notice. The small eigenvalues of a network are no
   singularity, steps along them pay; but in f32 a condition number beyond 1e5 may be taken for one.
3. An exhausted Krylov space is one of the two.

It is negative curvature that a Newton step must not follow blindly: along eigenvectors of negative eigenvalues the
solution climbs. `info.min_curvature` says whether there were any.

With a preconditioner `M^-1` it is MINRES on `M^(-1/2) A M^(-1/2)`: the residual minimised, recorded and compared
with rtol is `sqrt(r.M^-1 r)`, relative to `sqrt(b.M^-1 b)`, while CG reports the plain one.

References:
    Paige and Saunders, "Solution of sparse indefinite systems of linear equations", SIAM J. Numer. Anal. 12, 1975;
    Choi, Paige and Saunders, "MINRES-QLP: a Krylov subspace method for indefinite or singular symmetric systems",
    SIAM J. Sci. Comput. 33, 2011 (singular systems).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxunlearn import tree
from jaxunlearn.operators import LinearOperator
from jaxunlearn.solvers.protocol import RUNNING, drive, first, padded, relative, start, zeros
from jaxunlearn.solvers.ritz import ritz_values
from jaxunlearn.solvers.status import SolveInfo, Status


class MINRESState(NamedTuple):
    """State between two products, after k of them.

    Attributes:
        x: iterate.
        u: `beta_(k+1) v_(k+1)` before `M^-1`: the next Lanczos vector, not normalised.
        z: `M^-1 u`; `None` without a preconditioner, where it is u.
        u_old: the one before, normalised.
        w, w_old: the last two columns of W.
        beta: `beta_(k+1) = sqrt(u.z)`.
        residual: what is left of `beta_1 e_1` after the rotations; its size is the residual norm.
        diagonal: entry (k, k + 1) of R before the next rotation.
        corner: entry (k - 1, k + 1) of R.
        cosine, sine: the last rotation.
        length: `||x||`.
        size: largest column of T met, a lower bound of `||A||`.
        b_norm: `sqrt(b.M^-1 b)`.
        steps: products spent.
        status: a `Status` code.
        residual_norms, alphas, betas: as in `SolveInfo`.
        min_curvature, max_curvature: extreme Rayleigh quotients along the Lanczos vectors.
    """

    x: PyTree
    u: PyTree
    z: PyTree | None
    u_old: PyTree
    w: PyTree
    w_old: PyTree
    beta: Float[Array, ""]
    residual: Float[Array, ""]
    diagonal: Float[Array, ""]
    corner: Float[Array, ""]
    cosine: Float[Array, ""]
    sine: Float[Array, ""]
    length: Float[Array, ""]
    size: Float[Array, ""]
    b_norm: Float[Array, ""]
    steps: Int[Array, ""]
    status: Int[Array, ""]
    residual_norms: Float[Array, " n"]
    alphas: Float[Array, " m"]
    betas: Float[Array, " m"]
    min_curvature: Float[Array, ""]
    max_curvature: Float[Array, ""]


@dataclass(frozen=True)
class MINRES:
    """Solve `A x = b` for a symmetric A of any signature; call it as `x, info = MINRES(...)(A, b)`.

    The curvatures in `info` are the extreme Ritz values, or with a preconditioner the extreme Rayleigh quotients of A
    along the Lanczos vectors. For a singular system without a solution the status is `LEAST_SQUARES` and x minimises
    `||b - A x||`.

    Args:
        max_steps: most products to spend.
        rtol: converged when the residual norm is at most `rtol` times that of b.
        preconditioner: optional symmetric positive definite map `M^-1`, tree to tree: a function or a `LinearOperator`.

    Raises:
        ValueError: for settings out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> scale = jnp.array([1.0, -2.0, 4.0])
        >>> x, info = MINRES(rtol=1e-6)(LinearOperator(lambda v: scale * v, scale), jnp.ones(3))
        >>> [round(float(v), 4) for v in x], Status(int(info.status)).name, bool(info.min_curvature < 0)
        ([1.0, -0.5, 0.25], 'CONVERGED', True)
    """

    max_steps: int = 20
    rtol: float = 1e-3
    preconditioner: Callable[[PyTree], PyTree] | None = None

    def __post_init__(self):
        if self.max_steps < 1:
            raise ValueError(f"MINRES(max_steps={self.max_steps}): at least one product is needed")
        if not 0 <= self.rtol < 1:
            raise ValueError(f"MINRES(rtol={self.rtol}): give a relative tolerance between 0 and 1")

    def __call__(self, A: LinearOperator, b: PyTree, x0: PyTree | None = None) -> tuple[PyTree, SolveInfo]:
        return self.result(drive(self, A, b, x0))

    def init(self, b: PyTree, x0: PyTree | None = None, Ax0: PyTree | None = None) -> MINRESState:
        """State before the first step."""
        x, r, b_norm = start(b, x0, Ax0)
        z, beta, definite = self._precondition(r)
        if self.preconditioner is not None:
            b_norm = beta if x0 is None else self._precondition(b)[1]
        none, zero = zeros(b), jnp.zeros_like(beta)
        row = jnp.zeros(self.max_steps, beta.dtype)
        status = jnp.where(beta <= self.rtol * b_norm, int(Status.CONVERGED), RUNNING)
        status = jnp.where(definite, status, int(Status.INDEFINITE_PRECONDITIONER))
        return MINRESState(
            x, r, z, none, none, none, beta, beta, zero, zero, zero - 1, zero, tree.norm(x), zero, b_norm,
            jnp.int32(0), status.astype(jnp.int32), first(beta, self.max_steps + 1), row, row,
            jnp.full_like(beta, jnp.inf), jnp.full_like(beta, -jnp.inf),
        )  # fmt: skip

    def direction(self, s: MINRESState) -> PyTree:
        """The Lanczos vector `v_(k+1)`."""
        return _divided(s.u if s.z is None else s.z, s.beta)

    def update(self, s: MINRESState, Av: PyTree) -> MINRESState:
        """One Lanczos step, one rotation, one new iterate."""
        v, u = self.direction(s), _divided(s.u, s.beta)
        # beta_1 belongs to b, not to T; u_old is zero then.
        Av = tree.axpy(-s.beta, s.u_old, Av)
        alpha = tree.vdot(v, Av)
        finite = jnp.isfinite(alpha)
        new = tree.axpy(-alpha, u, Av)
        z, beta, definite = self._precondition(new)

        # Two rotations of the past act on the new column of T; the third one makes it triangular.
        above = s.cosine * s.diagonal + s.sine * alpha
        pivot = s.sine * s.diagonal - s.cosine * alpha
        diagonal, corner = -s.cosine * beta, s.sine * beta
        gamma = jnp.hypot(pivot, beta)
        cosine, sine = pivot / jnp.where(gamma > 0, gamma, 1.0), beta / jnp.where(gamma > 0, gamma, 1.0)
        before = jnp.where(s.steps > 0, s.beta, 0.0)
        size = jnp.maximum(s.size, jnp.sqrt(before**2 + alpha**2 + beta**2))

        eps = jnp.finfo(alpha.dtype).eps
        exact = jnp.hypot(pivot, diagonal) <= 32 * eps * size  # ||A r|| / ||r|| of the iterate at hand
        w = jax.tree.map(
            lambda v, w, w_old: (v - s.corner * w_old - above * w) / jnp.where(gamma > 0, gamma, 1.0), v, s.w, s.w_old
        )
        x = tree.axpy(cosine * s.residual, w, s.x)
        length, vv = tree.norm(x), jnp.ones_like(alpha) if s.z is None else tree.vdot(v, v)
        flatness = eps**0.5 * size * tree.norm(w) / jnp.sqrt(jnp.where(vv > 0, vv, 1.0))
        null = (flatness > 1) & (cosine**2 < 1e-4 * flatness) & (length > 2 * s.length)
        singular = exact | null
        move = finite & definite & ~singular
        x, w = tree.where(move, x, s.x), tree.where(move, w, s.w)
        residual = jnp.where(move, sine * s.residual, s.residual)
        i, steps = s.steps, s.steps + 1
        curvature = alpha / jnp.where(vv > 0, vv, 1.0)
        state = MINRESState(
            x, new, z, u, w, s.w, beta, residual, diagonal, corner, cosine, sine,
            jnp.where(move, length, s.length), jnp.where(finite, size, s.size), s.b_norm, steps, s.status,
            s.residual_norms.at[steps].set(jnp.abs(residual)),
            s.alphas.at[i].set(jnp.where(finite, alpha, 0.0)), s.betas.at[i].set(jnp.where(finite, beta, 0.0)),
            jnp.where(finite, jnp.minimum(s.min_curvature, curvature), s.min_curvature),
            jnp.where(finite, jnp.maximum(s.max_curvature, curvature), s.max_curvature),
        )  # fmt: skip
        status = jnp.where(steps >= self.max_steps, int(Status.MAX_STEPS), RUNNING)
        status = jnp.where(singular, int(Status.LEAST_SQUARES), status)
        status = jnp.where(jnp.abs(residual) <= self.rtol * s.b_norm, int(Status.CONVERGED), status)
        status = jnp.where(definite, status, int(Status.INDEFINITE_PRECONDITIONER))
        status = jnp.where(finite, status, int(Status.NON_FINITE))
        return state._replace(status=status.astype(jnp.int32))

    def result(self, s: MINRESState) -> tuple[PyTree, SolveInfo]:
        """The iterate and the record of the solve so far."""
        info = SolveInfo(
            s.status, s.steps, relative(s.residual_norms[s.steps], s.b_norm), padded(s.residual_norms, s.steps),
            s.min_curvature, s.max_curvature, None, s.alphas, s.betas,
        )  # fmt: skip
        if s.z is not None:  # T belongs to the preconditioned operator, whose curvatures are not those of A
            return s.x, info
        ritz = ritz_values(info)
        lowest, highest = jnp.nanmin(ritz, initial=jnp.inf), jnp.nanmax(ritz, initial=-jnp.inf)
        return s.x, info._replace(min_curvature=lowest, max_curvature=highest)

    def _precondition(self, u: PyTree) -> tuple[PyTree | None, Array, Array]:
        """`z = M^-1 u` unless it is u, `sqrt(<u, z>)`, and whether M may be definite."""
        if self.preconditioner is None:
            return None, tree.norm(u), jnp.array(True)
        z = tree.to_vector(self.preconditioner(u))
        square = tree.vdot(u, z)
        return z, jnp.sqrt(jnp.maximum(square, 0.0)), ~(square <= 0) | (tree.vdot(u, u) == 0)


def _divided(u: PyTree, beta: Array) -> PyTree:
    return tree.scale(1.0 / jnp.where(beta > 0, beta, 1.0), u)
