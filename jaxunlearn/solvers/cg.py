"""Conjugate gradients for curvature systems `A x = b`, in the form Hessian-free optimisation needs.

Differences from a textbook CG, each for a reason:

1. It stops on the residual *or* when the quadratic model `phi(x) = x.A x / 2 - b.x` has nearly stopped improving
   (Martens 2010): a step that is used once needs no six-digit solve.
2. A direction of negative curvature ends the solve with a status and the last good iterate (Steihaug 1983). Met in
   the very first direction, the step along it is scaled by the curvature's absolute value.
3. There is no breakdown test that grows with the number of unknowns: f32 systems of 10^9 unknowns are ordinary here.
4. Inner products are leafwise, so vectors stay sharded like the parameters.

`init` and `step` are pure; `CG` drives them inside `jit` with a `while_loop`, and any host loop may drive them too.

References:
    Hestenes and Stiefel 1952; Steihaug 1983; Martens, "Deep learning via Hessian-free optimization", 2010, section 4.4.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxunlearn import tree
from jaxunlearn.operators import LinearOperator
from jaxunlearn.solvers.status import SolveInfo, Status

RUNNING = -1


class CGState(NamedTuple):
    """State between two products: iterate `x`, residual `r = b - A x`, direction `p`, and histories."""

    x: PyTree
    r: PyTree
    p: PyTree
    rz: Float[Array, ""]
    steps: Int[Array, ""]
    status: Int[Array, ""]
    residual_norms: Float[Array, " n"]
    models: Float[Array, " n"]
    min_curvature: Float[Array, ""]
    max_curvature: Float[Array, ""]


@dataclass(frozen=True)
class CG:
    """Solve `A x = b`; call it as `x, info = CG(...)(A, b)`.

    Args:
        max_steps: most products to spend.
        rtol: converged when `||b - A x|| <= rtol ||b||`.
        progress: stop when the quadratic model's mean relative improvement over the last `max(10, steps / 10)`
            steps is under this (Martens' rule); `None` switches it off.
        preconditioner: optional symmetric positive definite map `M^-1`, tree to tree.

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

    def __call__(self, A: LinearOperator, b: PyTree, x0: PyTree | None = None) -> tuple[PyTree, SolveInfo]:
        b = tree.to_vector(b)
        b_norm = tree.norm(b)
        state = self.init(A, b, x0)
        state = jax.lax.while_loop(
            lambda s: s.status == RUNNING, lambda s: self.step(A, b, b_norm, s), self._judge(b_norm, state)
        )
        return state.x, self.info(b_norm, state)

    def init(self, A: LinearOperator, b: PyTree, x0: PyTree | None = None) -> CGState:
        """State before the first step; a warm start `x0` costs one product."""
        x = tree.zeros_like(b) if x0 is None else tree.to_vector(x0)
        r = b if x0 is None else tree.sub(b, A(x))
        z = self._precondition(r)
        dtype = tree.norm(r).dtype
        history = jnp.zeros(self.max_steps + 1, dtype)
        return CGState(
            x, r, z, tree.vdot(r, z), jnp.int32(0), jnp.int32(RUNNING),
            history.at[0].set(tree.norm(r)), history.at[0].set(_quadratic_model(b, x, r)),
            jnp.array(jnp.inf, dtype), jnp.array(-jnp.inf, dtype),
        )  # fmt: skip

    def step(self, A: LinearOperator, b: PyTree, b_norm: Array, s: CGState) -> CGState:
        """One product, one new iterate."""
        Ap = A(s.p)
        pAp, pp = tree.vdot(s.p, Ap), tree.vdot(s.p, s.p)
        curvature = pAp / jnp.where(pp > 0, pp, 1.0)
        finite = jnp.isfinite(pAp)
        negative = finite & (pAp <= 0)
        # Only the first direction may be followed against its curvature: later iterates are already useful without it.
        move = finite & (~negative | (s.steps == 0))
        alpha = jnp.where(move & (pAp != 0), s.rz / jnp.where(pAp == 0, 1.0, jnp.abs(pAp)), 0.0)
        x = tree.axpy(alpha, s.p, s.x)
        r = tree.where(move, tree.axpy(-alpha, Ap, s.r), s.r)
        z = self._precondition(r)
        rz = tree.vdot(r, z)
        p = tree.axpy(rz / jnp.where(s.rz == 0, 1.0, s.rz), s.p, z)
        steps = s.steps + 1
        status = jnp.where(
            ~finite, int(Status.NON_FINITE), jnp.where(negative, int(Status.NEGATIVE_CURVATURE), RUNNING)
        )
        state = CGState(
            x, r, p, rz, steps, status.astype(jnp.int32),
            s.residual_norms.at[steps].set(tree.norm(r)), s.models.at[steps].set(_quadratic_model(b, x, r)),
            jnp.where(finite, jnp.minimum(s.min_curvature, curvature), s.min_curvature),
            jnp.where(finite, jnp.maximum(s.max_curvature, curvature), s.max_curvature),
        )  # fmt: skip
        return self._judge(b_norm, state)

    def info(self, b_norm: Array, s: CGState) -> SolveInfo:
        last = s.residual_norms[s.steps]
        norms = jnp.where(jnp.arange(self.max_steps + 1) <= s.steps, s.residual_norms, last)
        relative = last / jnp.where(b_norm > 0, b_norm, 1.0)
        return SolveInfo(s.status, s.steps, relative, norms, s.min_curvature, s.max_curvature)

    def _precondition(self, r: PyTree) -> PyTree:
        return r if self.preconditioner is None else self.preconditioner(r)

    def _judge(self, b_norm: Array, s: CGState) -> CGState:
        """Decide whether to go on; a status that is already final stays."""
        converged = s.residual_norms[s.steps] <= self.rtol * b_norm
        status = jnp.where(s.steps >= self.max_steps, int(Status.MAX_STEPS), RUNNING)
        if self.progress is not None:
            window = jnp.maximum(10, s.steps // 10)
            now, then = s.models[s.steps], s.models[jnp.maximum(s.steps - window, 0)]
            stalled = (s.steps > window) & (now < 0) & (then - now < window * self.progress * -now)
            status = jnp.where(stalled, int(Status.NO_PROGRESS), status)
        status = jnp.where(converged, int(Status.CONVERGED), status)
        return s._replace(status=jnp.where(s.status == RUNNING, status, s.status).astype(jnp.int32))


def _quadratic_model(b: PyTree, x: PyTree, r: PyTree) -> Float[Array, ""]:
    """`x.A x / 2 - b.x`, from the residual alone: `A x = b - r`."""
    return -0.5 * (tree.vdot(x, b) + tree.vdot(x, r))
