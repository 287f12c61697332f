"""Preconditioning by curvature, `g -> (A + lambda I)^-1 g`: Newton, natural-gradient and influence steps in one form.

The metric A is any curvature of any parts of the batch, the solver any of `jaxunlearn.solvers`; what the solve did and
what the trust region made of it is kept in the state, for the certificate.
"""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from jaxunlearn import operators, tree
from jaxunlearn.curvature import LowRankOperator
from jaxunlearn.solvers import SecularInfo, SolveInfo
from jaxunlearn.transforms.metric import RETAIN, Curvature, Damp, Metric, Solver, damp_by, metric_of
from jaxunlearn.transforms.trust_region import TrustRegion, levenberg_marquardt, shorten
from jaxunlearn.types import Model, Params, UnlearnBatch


class CurvatureState(NamedTuple):
    """State of `precondition_by_curvature`: the next damping, and the record of the last solve.

    Attributes:
        damping: lambda for the next step.
        used_damping: lambda of the last one; with a cubic or trust-region solver the one that it found is included.
        solve: how the last solve ended.
        span_share: share of the squared step in the span of the sampled gradients; 1 where curvature is not low-rank.
        length: factor the trust region put on the step.
        ratio: measured over predicted KL on retain; 1 where it is not measured.
    """

    damping: Float[Array, ""]
    used_damping: Float[Array, ""]
    solve: SolveInfo
    span_share: Float[Array, ""]
    length: Float[Array, ""]
    ratio: Float[Array, ""]


def precondition_by_curvature(
    curvature: Curvature,
    solver: Solver,
    *,
    damping: float,
    step_size: float = 1.0,
    trust_region: TrustRegion | None = None,
    metric: Metric = RETAIN,
    preconditioner: Curvature | None = None,
    damp: Damp = damp_by,
) -> optax.GradientTransformationExtraArgs:
    """`g -> step_size (A + damping I)^-1 g`, shortened to the trust region; negate afterwards as usual.

    Args:
        curvature: recipe `(model, params, batch) -> LinearOperator`, for example `curvature.GaussNewton()`.
        solver: `(operator, rhs) -> (x, SolveInfo)`, for example `solvers.CG()`.
        damping: initial lambda >= 0, in the units of the curvature.
        step_size: factor on the solution.
        trust_region: optional bound on the KL on retain.
        metric: `(part of the batch, weight)` pairs whose curvatures are summed into A; a weight may be negative.
        preconditioner: curvature with a closed-form inverse, for example `curvature.EKFAC()`, taken on the same data
            and damped alike; its inverse preconditions an iterative solver such as `CG` or `MINRES`.
        damp: how the damping enters A: `damp_by`, or `damp_by_mean` for a share of each block's mean eigenvalue.

    Example:
        >>> from jaxunlearn.curvature import GaussNewton
        >>> from jaxunlearn.solvers import CG
        >>> newton = optax.chain(precondition_by_curvature(GaussNewton(), CG(), damping=0.1), optax.scale(-1.0))
    """
    if damping < 0:
        raise ValueError(f"damping={damping}: a negative damping makes the metric indefinite; use 0 or more")
    if preconditioner is not None and not hasattr(solver, "preconditioner"):
        raise ValueError(
            f"{type(solver).__name__} takes no preconditioner; use solvers.CG or solvers.MINRES, or leave it out"
        )

    def init(params: Params) -> CurvatureState:
        one, lam = jnp.float32(1.0), jnp.float32(damping)
        # Distinct buffers: a state is donated, and one buffer cannot be donated twice.
        return CurvatureState(lam, lam + 0, blank_record(solver, params), one, one + 0, one + 0)

    def update(grads, state, params=None, *, model: Model, batch: UnlearnBatch, **_):
        A = metric_of(curvature, model, params, batch, metric)
        damped = damp(A, state.damping)
        solve_with = solver
        if preconditioner is not None:
            M = damp(metric_of(preconditioner, model, params, batch, metric), state.damping)
            solve_with = replace(solver, preconditioner=M.power(-1.0))  # type: ignore[type-var]  # checked above by hasattr
        x, solve = solve_with(damped, grads)
        step = tree.scale(step_size, x)
        share = damped.span_share(x) if isinstance(damped, LowRankOperator) else jnp.float32(1.0)
        used = state.damping + solve.damping if isinstance(solve, SecularInfo) else state.damping
        length, ratio, lam = jnp.float32(1.0), jnp.float32(1.0), state.damping
        if trust_region is not None:
            microbatch = getattr(curvature, "microbatch", None)
            length, ratio = shorten(trust_region, A, model, params, batch, step, microbatch)
            step = tree.scale(length, step)
            lam = levenberg_marquardt(trust_region, lam, ratio)
        record = (lam, used, solve, share, length, ratio)
        return step, CurvatureState(*(keep_types(new, old) for new, old in zip(record, state, strict=True)))

    return optax.GradientTransformationExtraArgs(init, update)


def blank_record(solver: Solver, params: Params) -> SolveInfo:
    """The record of a solve that has not been made: zeros of the right shapes."""
    shape = jax.eval_shape(lambda p: solver(operators.identity(p), tree.zeros_like(p))[1], params)
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape)


def keep_types(new: PyTree, old: PyTree) -> PyTree:
    """Keep the state's types fixed, so that a jitted step compiles once."""
    return jax.tree.map(lambda a, b: jnp.asarray(a).astype(b.dtype), new, old)
