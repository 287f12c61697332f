"""Curvature as optax transformations: they chain with any optimiser, schedule or clipping.

`precondition_by_curvature` turns a gradient g into `(A + lambda I)^-1 g`; `add_curvature_noise` adds
`scale * (A + lambda I)^p eps`. Both take the model and the batch as optax extra arguments:

    updates, state = transform.update(grads, state, params, model=model, batch=batch, key=key)
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from jaxunlearn import losses, operators, tree
from jaxunlearn.curvature import GaussNewton, LowRankOperator
from jaxunlearn.operators import LinearOperator
from jaxunlearn.solvers import SolveInfo
from jaxunlearn.types import Batch, Model, Params, UnlearnBatch

Curvature = Callable[[Model, Params, Batch], LinearOperator]
Solver = Callable[..., tuple[PyTree, SolveInfo]]
Metric = tuple[tuple[str, float], ...]

RETAIN: Metric = (("retain", 1.0),)


@dataclass(frozen=True)
class TrustRegion:
    """Bound a step by what it does to the model's answers on the retain set.

    The predicted `KL(before || after)` of a step d is `d.G d / 2`, G the Gauss-Newton matrix on retain. A longer step
    is shortened to `max_kl`; then the KL is measured, the step cut back if it still exceeds twice the bound, and the
    damping re-chosen for the next step: raised when the prediction was bad, lowered when it was good
    (Levenberg-Marquardt).

    Args:
        max_kl: bound, nats per retain loss token and step.
        fill: also lengthen a shorter step to the bound (for ascent, which has no length of its own).
        adapt: re-choose the damping; False keeps it fixed.
        damping_range: the damping never leaves this range.
    """

    max_kl: float
    fill: bool = False
    adapt: bool = True
    damping_range: tuple[float, float] = (1e-5, 1e3)

    def __post_init__(self):
        if not self.max_kl > 0:
            raise ValueError(f"TrustRegion(max_kl={self.max_kl}): give a positive bound in nats per retain token")


class CurvatureState(NamedTuple):
    """State of `precondition_by_curvature`: the next damping, and the record of the last solve.

    Attributes:
        damping: lambda for the next step.
        used_damping: lambda of the last one.
        solve: how the last solve ended.
        span_share: share of the squared step in the span of the sampled gradients; 1 where curvature is not low-rank.
        length: factor the trust region put on the step.
        ratio: measured over predicted KL on retain; 1 without a trust region.
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
        shape = jax.eval_shape(lambda p: solver(operators.identity(p), tree.zeros_like(p))[1], params)
        solve = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape)
        # Distinct buffers: a state is donated, and one buffer cannot be donated twice.
        return CurvatureState(lam, lam + 0, solve, one, one + 0, one + 0)

    def update(grads, state, params=None, *, model: Model, batch: UnlearnBatch, **_):
        A = _metric(curvature, model, params, batch, metric).damped(state.damping)
        solve_with = solver
        if preconditioner is not None:
            M = _metric(preconditioner, model, params, batch, metric).damped(state.damping)
            solve_with = replace(solver, preconditioner=M.power(-1.0))
        x, solve = solve_with(A, grads)
        step = tree.scale(step_size, x)
        share = A.span_share(x) if isinstance(A, LowRankOperator) else jnp.float32(1.0)
        length, ratio, lam = jnp.float32(1.0), jnp.float32(1.0), state.damping
        if trust_region is not None:
            length, ratio = _shorten(trust_region, model, params, batch.retain, step)
            step = tree.scale(length, step)
            if trust_region.adapt:
                lam = _levenberg_marquardt(trust_region, lam, ratio)
        record = (lam, state.damping, solve, share, length, ratio)
        return step, CurvatureState(*(_cast(new, old) for new, old in zip(record, state, strict=True)))

    return optax.GradientTransformationExtraArgs(init, update)


class NoiseState(NamedTuple):
    """`add_curvature_noise` keeps nothing between steps; randomness comes from the `key` argument."""


def add_curvature_noise(
    curvature: Curvature, *, scale: float, damping: float, power: float = -0.25, metric: Metric = RETAIN
) -> optax.GradientTransformationExtraArgs:
    """`u -> u + scale (A + damping I)^power eps`, eps standard normal: large where the retain loss is flat.

    Its covariance is `scale^2 (A + damping I)^(2 power)`; needs curvature with a closed-form power
    (`curvature.EmpiricalFisher`).

    Reference: Golatkar et al., "Eternal sunshine of the spotless net", CVPR 2020.
    """
    if not damping > 0:
        raise ValueError(f"damping={damping}: a negative power of a singular metric needs positive damping")

    def init(params: Params) -> NoiseState:
        return NoiseState()

    def update(updates, state, params=None, *, model: Model, batch: UnlearnBatch, key: Array, **_):
        A = _metric(curvature, model, params, batch, metric).damped(damping)
        noise = A.power(power)(tree.normal_like(key, params))
        return jax.tree.map(lambda u, n: u + scale * n, updates, noise), state

    return optax.GradientTransformationExtraArgs(init, update)


def _metric(curvature: Curvature, model: Model, params: Params, batch: UnlearnBatch, metric: Metric) -> LinearOperator:
    terms = []
    for part, weight in metric:
        data = getattr(batch, part)
        if data is None:
            raise ValueError(
                f"curvature is taken on UnlearnBatch.{part}, which is None: pass {part} examples in every batch, or "
                "use a first-order method (methods.grad_ascent needs only forget)"
            )
        A = curvature(model, params, data)
        terms.append(A if weight == 1.0 else operators.scaled(weight, A, psd=A.psd and weight > 0))
    return terms[0] if len(terms) == 1 else operators.summed(*terms)


def predicted_kl(model: Model, params: Params, retain: Batch, step: PyTree) -> Float[Array, ""]:
    """`d.G d / 2` on retain, nats per loss token, d = `step`: the second-order prediction of KL(before || after)."""
    return 0.5 * tree.vdot(step, GaussNewton()(model, params, retain)(step))


def measured_kl(model: Model, before: Params, after: Params, retain: Batch) -> Float[Array, ""]:
    """`KL(before || after)` of the predictions on retain, nats per loss token."""
    old, new = retain.predict(model, before), retain.predict(model, after)
    total, count = losses.kl_between(old.logits, new.logits, old.weights)
    return total / jnp.where(count > 0, count, 1.0)


def _shorten(region: TrustRegion, model: Model, params: Params, retain: Batch, step: PyTree) -> tuple[Array, Array]:
    predicted = predicted_kl(model, params, retain, step)
    length = jnp.sqrt(region.max_kl / jnp.maximum(predicted, 1e-30))
    # Where the metric is blind to the step (predicted 0) there is no boundary to fill up to.
    length = jnp.minimum(length, 1e3) if region.fill else jnp.minimum(length, 1.0)
    predicted = length**2 * predicted
    after = jax.tree.map(lambda p, d: (p - length * d).astype(p.dtype), params, step)
    actual = measured_kl(model, params, after, retain)
    cut = jnp.sqrt(region.max_kl / jnp.maximum(actual, 1e-30))
    length = jnp.where(actual > 2 * region.max_kl, length * cut, length)
    return length, actual / jnp.maximum(predicted, 1e-12)


def _levenberg_marquardt(region: TrustRegion, damping: Array, ratio: Array) -> Array:
    good = (ratio > 0.75) & (ratio < 1.25)
    bad = ~((ratio > 0.5) & (ratio < 2.0))
    return jnp.clip(jnp.where(bad, 1.5 * damping, jnp.where(good, damping / 1.5, damping)), *region.damping_range)


def _cast(new: PyTree, old: PyTree) -> PyTree:
    """Keep the state's types fixed, so that a jitted step compiles once."""
    return jax.tree.map(lambda a, b: jnp.asarray(a).astype(b.dtype), new, old)
