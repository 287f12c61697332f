"""Conjugate gradients for curvature systems `A x = b`, in the form Hessian-free optimisation needs.

Differences from a textbook CG, each for a reason:

1. It stops on the residual *or* when the quadratic model `phi(x) = x.A x / 2 - b.x` has nearly stopped improving
   (Martens 2010): a step that is used once needs no six-digit solve.
2. A direction of negative curvature ends the solve with a status and the last good iterate (Steihaug 1983). Met in
   the very first direction, the step along it is scaled by the curvature's absolute value.
3. There is no breakdown test that grows with the number of unknowns: f32 systems of 10^9 unknowns are ordinary here.
4. Inner products are leafwise, so vectors stay sharded like the parameters.
5. What the recurrences know already is not computed again: beside the product a step takes two inner products and
   three updates of vectors (two more inner products and one application of `M^-1` with a preconditioner). The
   quadratic model falls by `rz^2 / (2 p.A p)` a step, and `p.p` grows by `r.r`, because the step length makes the new
   residual orthogonal to the old direction to rounding, whatever the product was.

CG is the Lanczos process in disguise. From its step lengths `a_i` and ratios `g_i = rz_(i+1) / rz_i` it gives the
tridiagonal matrix of the operator `M^-1 A` in the Krylov space of the first residual,

    T_ii = 1 / a_i + g_(i-1) / a_(i-1),        T_(i,i+1) = sqrt(g_i) / a_i,

for nothing: `SolveInfo.alphas` and `betas`, whose eigenvalues `ritz_values` returns.

References:
    Hestenes and Stiefel 1952; Steihaug 1983; Martens, "Deep learning via Hessian-free optimization", 2010, section 4.4;
    Saad, "Iterative methods for sparse linear systems", 2003, section 6.7 (the tridiagonal matrix).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxunlearn import tree
from jaxunlearn.operators import LinearOperator
from jaxunlearn.solvers.protocol import RUNNING, drive, first, padded, relative, start, zeros
from jaxunlearn.solvers.status import SolveInfo, Status


class CGState(NamedTuple):
    """State between two products.

    Attributes:
        x: iterate.
        r: residual `b - A x`.
        z: `M^-1 r`; `None` without a preconditioner, where it is r.
        p: search direction of the step before.
        rz: `<r, z>`.
        ratio: the next direction is `z + ratio p`.
        pp: its square `<p, p>`, known without a preconditioner.
        coupling: `g / a` of the step before, what it adds to the next diagonal entry of T.
        b_norm: `||b||`.
        steps: products spent.
        status: a `Status` code.
        residual_norms, models, alphas, betas, min_curvature, max_curvature: as in `SolveInfo`.
    """

    x: PyTree
    r: PyTree
    z: PyTree | None
    p: PyTree
    rz: Float[Array, ""]
    ratio: Float[Array, ""]
    pp: Float[Array, ""]
    coupling: Float[Array, ""]
    b_norm: Float[Array, ""]
    steps: Int[Array, ""]
    status: Int[Array, ""]
    residual_norms: Float[Array, " n"]
    models: Float[Array, " n"]
    alphas: Float[Array, " m"]
    betas: Float[Array, " m"]
    min_curvature: Float[Array, ""]
    max_curvature: Float[Array, ""]


@dataclass(frozen=True)
class CG:
    """Solve `A x = b` for a positive definite A; call it as `x, info = CG(...)(A, b)`.

    The curvatures in `info` are Rayleigh quotients `<p, A p> / <p, p>` of A itself, with or without preconditioner.

    Args:
        max_steps: most products to spend.
        rtol: converged when `||b - A x|| <= rtol ||b||`, the true residual under any preconditioner or warm start.
        progress: stop when the quadratic model's mean relative improvement over the last `max(10, steps / 10)`
            steps is under this (Martens' rule); `None` switches it off.
        preconditioner: optional symmetric positive definite map `M^-1`, tree to tree: a function or a `LinearOperator`.

    Raises:
        ValueError: for settings out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxunlearn.operators import LinearOperator
        >>> scale = jnp.array([1.0, 2.0, 4.0])
        >>> A = LinearOperator(lambda v: scale * v, like=jnp.zeros(3), psd=True)
        >>> x, info = CG(rtol=1e-6)(A, jnp.ones(3))
        >>> [round(float(v), 4) for v in x], int(info.steps), Status(int(info.status)).name
        ([1.0, 0.5, 0.25], 3, 'CONVERGED')
    """

    max_steps: int = 20
    rtol: float = 1e-3
    progress: float | None = 5e-4
    preconditioner: Callable[[PyTree], PyTree] | None = None

    def __post_init__(self):
        if self.max_steps < 1:
            raise ValueError(f"CG(max_steps={self.max_steps}): at least one product is needed")
        if not 0 <= self.rtol < 1:
            raise ValueError(f"CG(rtol={self.rtol}): give a relative tolerance between 0 and 1")
        if self.progress is not None and not self.progress > 0:
            raise ValueError(f"CG(progress={self.progress}): give a positive share, or None to solve to rtol")

    def __call__(self, A: LinearOperator, b: PyTree, x0: PyTree | None = None) -> tuple[PyTree, SolveInfo]:
        return self.result(drive(self, A, b, x0))

    def init(self, b: PyTree, x0: PyTree | None = None, Ax0: PyTree | None = None) -> CGState:
        """State before the first step."""
        x, r, b_norm = start(b, x0, Ax0)
        z, rz, r_norm = self._precondition(r)
        zero = jnp.zeros_like(rz)
        row = jnp.zeros(self.max_steps, r_norm.dtype)
        # `A x = b - r` turns the model into two inner products.
        model = zero if x0 is None else -0.5 * (tree.vdot(x, b) + tree.vdot(x, r))
        state = CGState(
            x, r, z, zeros(b), rz, zero, rz, zero, b_norm,
            jnp.int32(0), jnp.int32(RUNNING),
            first(r_norm, self.max_steps + 1), first(model, self.max_steps + 1), row, row,
            jnp.full_like(r_norm, jnp.inf), jnp.full_like(r_norm, -jnp.inf),
        )  # fmt: skip
        return self._judge(state)

    def direction(self, s: CGState) -> PyTree:
        """The search direction, made from the step before only when it is needed.

        A state that held it would make XLA copy it each step, and the last step would make it in vain.
        """
        return tree.axpy(s.ratio, s.p, s.r if s.z is None else s.z)

    def update(self, s: CGState, Ap: PyTree) -> CGState:
        """One new iterate from `A p`."""
        p = self.direction(s)
        pAp, pp = tree.vdot(p, Ap), s.pp if s.z is None else tree.vdot(p, p)
        finite = jnp.isfinite(pAp)
        # A null direction has curvature zero up to rounding; a step along it would be as long as rounding is small.
        flat = jnp.finfo(pAp.dtype).eps ** 1.5 * jnp.maximum(s.max_curvature, 0.0) * pp
        negative = finite & (pAp <= flat)
        # Only the first direction may be followed against its curvature: later iterates are already useful without it.
        move = finite & (pAp != 0) & (~negative | (s.steps == 0))
        alpha = jnp.where(move, s.rz / jnp.where(move, jnp.abs(pAp), 1.0), 0.0)
        x = tree.axpy(alpha, p, s.x)
        r = tree.where(move, tree.axpy(-alpha, Ap, s.r), s.r)
        z, rz, r_norm = self._precondition(r)
        # A residual of zero ends the solve here, and with it every division by its length.
        old = jnp.where(s.rz == 0, 1.0, s.rz)
        ratio, inverse_step = rz / old, pAp / old
        i, steps = s.steps, s.steps + 1
        status = jnp.where(negative, int(Status.NEGATIVE_CURVATURE), jnp.where(finite, RUNNING, int(Status.NON_FINITE)))
        curvature = pAp / jnp.where(pp > 0, pp, 1.0)
        state = CGState(
            x, r, z, p, rz, ratio, rz + ratio**2 * pp, ratio * inverse_step, s.b_norm, steps, status.astype(jnp.int32),
            s.residual_norms.at[steps].set(r_norm),
            s.models.at[steps].set(s.models[i] - alpha * (s.rz - 0.5 * alpha * jnp.where(finite, pAp, 0.0))),
            s.alphas.at[i].set(jnp.where(finite, inverse_step + s.coupling, 0.0)),
            s.betas.at[i].set(jnp.where(finite, jnp.sqrt(jnp.maximum(ratio, 0.0)) * inverse_step, 0.0)),
            jnp.where(finite, jnp.minimum(s.min_curvature, curvature), s.min_curvature),
            jnp.where(finite, jnp.maximum(s.max_curvature, curvature), s.max_curvature),
        )  # fmt: skip
        return self._judge(state)

    def result(self, s: CGState) -> tuple[PyTree, SolveInfo]:
        """The iterate and the record of the solve so far."""
        return s.x, SolveInfo(
            s.status, s.steps, relative(s.residual_norms[s.steps], s.b_norm), padded(s.residual_norms, s.steps),
            s.min_curvature, s.max_curvature, padded(s.models, s.steps), s.alphas, s.betas,
        )  # fmt: skip

    def _precondition(self, r: PyTree) -> tuple[PyTree | None, Array, Array]:
        """`z = M^-1 r` unless it is r, `<r, z>` and `||r||`."""
        rr = tree.vdot(r, r)
        if self.preconditioner is None:
            return None, rr, jnp.sqrt(rr)
        z = tree.to_vector(self.preconditioner(r))
        return z, tree.vdot(r, z), jnp.sqrt(rr)

    def _judge(self, s: CGState) -> CGState:
        """Decide whether to go on; a status that is already final stays."""
        r_norm = s.residual_norms[s.steps]
        status = jnp.where(s.steps >= self.max_steps, int(Status.MAX_STEPS), RUNNING)
        if self.progress is not None:
            window = jnp.maximum(10, s.steps // 10)
            now, then = s.models[s.steps], s.models[jnp.maximum(s.steps - window, 0)]
            stalled = (s.steps > window) & (now < 0) & (then - now < window * self.progress * -now)
            status = jnp.where(stalled, int(Status.NO_PROGRESS), status)
        if self.preconditioner is not None:
            status = jnp.where((s.rz <= 0) & (r_norm > 0), int(Status.INDEFINITE_PRECONDITIONER), status)
        status = jnp.where(r_norm <= self.rtol * s.b_norm, int(Status.CONVERGED), status)
        return s._replace(status=jnp.where(s.status == RUNNING, status, s.status).astype(jnp.int32))
