"""A trust region in output space: how far a step may move the model's answers on what is kept, in nats.

To second order `KL(before || after) = d.G d / 2`, G the Gauss-Newton matrix on retain. A longer step is shortened to
the bound, then the KL is measured, and the damping of the next step re-chosen from how well it had been predicted
(Levenberg-Marquardt). Where no retain examples are at hand, the metric of the step itself predicts, and nothing is
measured.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxunlearn import losses, tree
from jaxunlearn.accumulate import accumulate
from jaxunlearn.curvature import GaussNewton
from jaxunlearn.operators import LinearOperator
from jaxunlearn.types import Batch, Model, Params, UnlearnBatch


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
        predict: "retain": as above. "metric": `d.A d / 2` of the step's own undamped metric A, say a stored Fisher
            matrix, is the prediction; retain is not looked at, nothing is measured, and the damping stays.
    """

    max_kl: float
    fill: bool = False
    adapt: bool = True
    damping_range: tuple[float, float] = (1e-5, 1e3)
    predict: Literal["retain", "metric"] = "retain"

    def __post_init__(self):
        if not self.max_kl > 0:
            raise ValueError(f"TrustRegion(max_kl={self.max_kl}): give a positive bound in nats per retain token")
        if self.predict not in ("retain", "metric"):
            raise ValueError(f"TrustRegion(predict={self.predict!r}): choose 'retain' or 'metric'")


def predicted_kl(
    model: Model, params: Params, retain: Batch, step: PyTree, microbatch: int | None = None
) -> Float[Array, ""]:
    """`d.G d / 2` on retain, nats per loss token, d = `step`: the second-order prediction of KL(before || after)."""
    return 0.5 * tree.vdot(step, GaussNewton(microbatch)(model, params, retain)(step))


def measured_kl(
    model: Model, before: Params, after: Params, retain: Batch, microbatch: int | None = None
) -> Float[Array, ""]:
    """`KL(before || after)` of the predictions on retain, nats per loss token, `microbatch` examples at a time."""

    def sums(rows: Batch) -> tuple[Array, Array]:
        old, new = rows.predict(model, before), rows.predict(model, after)
        return losses.kl_between(old.logits, new.logits, old.weights)

    total, count = accumulate(sums, retain, microbatch)
    return total / jnp.where(count > 0, count, 1.0)


def shorten(
    region: TrustRegion,
    A: LinearOperator,
    model: Model,
    params: Params,
    batch: UnlearnBatch,
    step: PyTree,
    microbatch: int | None = None,
) -> tuple[Array, Array]:
    """The factor that brings `params - factor step` into the region, and measured over predicted KL there."""
    if region.predict == "metric":
        length, _ = _to_boundary(region, 0.5 * tree.vdot(step, A(step)))
        return length, jnp.float32(1.0)
    if batch.retain is None:
        raise ValueError(
            "the trust region is measured on UnlearnBatch.retain, which is None: pass retain examples in every batch, "
            'or let a stored metric predict with TrustRegion(predict="metric")'
        )

    def measured(length: Array) -> Array:
        after = jax.tree.map(lambda p, d: (p - length * d).astype(p.dtype), params, step)
        return measured_kl(model, params, after, batch.retain, microbatch)

    return shorten_by(region, predicted_kl(model, params, batch.retain, step, microbatch), measured)


def shorten_by(region: TrustRegion, predicted: Array, measured: Callable[[Array], Array]) -> tuple[Array, Array]:
    """The factor that brings a step into the region, and measured over predicted KL there.

    Args:
        region: the bound.
        predicted: KL of the whole step, nats per retain loss token.
        measured: KL of the step times a factor, in the same unit.

    Example:
        >>> length, ratio = shorten_by(TrustRegion(max_kl=1e-2), jnp.float32(4e-2), lambda length: 4e-2 * length**2)
        >>> round(float(length), 4), round(float(ratio), 4)
        (0.5, 1.0)
    """
    length, predicted = _to_boundary(region, predicted)
    actual = measured(length)
    cut = jnp.sqrt(region.max_kl / jnp.maximum(actual, 1e-30))
    length = jnp.where(actual > 2 * region.max_kl, length * cut, length)
    return length, actual / jnp.maximum(predicted, 1e-12)


def levenberg_marquardt(region: TrustRegion, damping: Array, ratio: Array) -> Array:
    """The next damping from the ratio of measured to predicted KL."""
    if not region.adapt or region.predict == "metric":
        return damping
    good = (ratio > 0.75) & (ratio < 1.25)
    bad = ~((ratio > 0.5) & (ratio < 2.0))
    return jnp.clip(jnp.where(bad, 1.5 * damping, jnp.where(good, damping / 1.5, damping)), *region.damping_range)


def _to_boundary(region: TrustRegion, predicted: Array) -> tuple[Array, Array]:
    """The factor on a step of this predicted KL, and the KL predicted with it."""
    length = jnp.sqrt(region.max_kl / jnp.maximum(predicted, 1e-30))
    # Where the metric is blind to the step (predicted 0) there is no boundary to fill up to.
    length = jnp.minimum(length, 1e3) if region.fill else jnp.minimum(length, 1.0)
    return length, length**2 * predicted
