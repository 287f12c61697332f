"""The residual certificate of a step: what it was predicted to do, and what it did.

No part of it is inferred from the method: losses, gradients and KL are measured on the batch before and after.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn import losses, tree
from jaxunlearn.accumulate import accumulate
from jaxunlearn.solvers import Status
from jaxunlearn.transforms import CurvatureState, NoiseState, measured_kl, predicted_kl
from jaxunlearn.types import Batch, Model, Params, UnlearnBatch


class Certificate(NamedTuple):
    """Losses in nats per loss token on this batch; entries about a part are `None` when the batch lacks it.

    Attributes:
        forget_before: NLL on forget before the step.
        forget_after: after it.
        forget_predicted: predicted change, `g_f.d`.
        retain_before: NLL on retain before the step.
        retain_after: after it.
        retain_predicted: predicted change, `g_r.d + d.G_r d / 2`.
        kl_predicted: predicted KL(before || after) on retain, `d.G_r d / 2`.
        kl_measured: measured.
        retain_grad_before: `||grad L_r||` before.
        retain_grad_after: after.
    """

    forget_before: Float[Array, ""] | None
    forget_after: Float[Array, ""] | None
    forget_predicted: Float[Array, ""] | None
    retain_before: Float[Array, ""] | None
    retain_after: Float[Array, ""] | None
    retain_predicted: Float[Array, ""] | None
    kl_predicted: Float[Array, ""] | None
    kl_measured: Float[Array, ""] | None
    retain_grad_before: Float[Array, ""] | None
    retain_grad_after: Float[Array, ""] | None


def certify(
    model: Model, before: Params, after: Params, batch: UnlearnBatch, microbatch: int | None = None
) -> Certificate:
    """Measure a step from `before` to `after`, `microbatch` examples at a time; pure, inside `jit`."""
    step = jax.tree.map(lambda a, b: a.astype(jnp.float32) - b.astype(jnp.float32), after, before)
    forget: tuple[Array | None, Array | None, Array | None] = (None, None, None)
    if batch.forget is not None:
        value, grad = _loss_and_grad(model, before, batch.forget, microbatch)
        forget = (value, _mean(model, after, batch.forget, microbatch), tree.vdot(grad, step))
    if batch.retain is None:
        return Certificate(*forget, *([None] * 7))
    retain, retain_grad = _loss_and_grad(model, before, batch.retain, microbatch)
    retain_after, grad_after = _loss_and_grad(model, after, batch.retain, microbatch)
    kl = predicted_kl(model, before, batch.retain, step, microbatch)
    return Certificate(
        *forget,
        retain,
        retain_after,
        tree.vdot(retain_grad, step) + kl,
        kl,
        measured_kl(model, before, after, batch.retain, microbatch),
        tree.norm(retain_grad),
        tree.norm(grad_after),
    )


def describe(certificate: Certificate | None, curvature: CurvatureState | None, noise: NoiseState | None = None) -> str:
    """The certificate in words, on the host: one line a fact."""
    lines = []
    if curvature is not None:
        solve = curvature.solve
        status = Status(int(solve.status))
        lines += [
            f"solve: {status.name} after {int(solve.steps)} products, relative residual "
            f"{float(solve.relative_residual):.2e}: {status.message}",
            f"damping {float(curvature.used_damping):.2e}, lowest curvature met {float(solve.min_curvature):.2e}, "
            f"share of the step in the sampled span {float(curvature.span_share):.3f}",
        ]
    if noise is not None:
        status = Status(int(noise.solve.status))
        lines.append(
            f"noise: {status.name} after {int(noise.solve.steps)} products, relative error "
            f"{float(noise.solve.relative_residual):.2e}: {status.message}"
        )
    if certificate is not None:
        c = certificate
        if c.forget_before is not None:
            change = float(c.forget_after) - float(c.forget_before)
            lines.append(f"forget NLL change: predicted {float(c.forget_predicted):+.2e}, measured {change:+.2e}")
        if c.retain_before is not None:
            change = float(c.retain_after) - float(c.retain_before)
            lines += [
                f"retain NLL change: predicted {float(c.retain_predicted):+.2e}, measured {change:+.2e}",
                f"retain KL: predicted {float(c.kl_predicted):.2e}, measured {float(c.kl_measured):.2e}",
                f"retain gradient norm: {float(c.retain_grad_before):.2e} -> {float(c.retain_grad_after):.2e}",
            ]
    return "\n".join(lines)


def _mean(model: Model, params: Params, batch: Batch, microbatch: int | None) -> Array:
    total, count = accumulate(lambda rows: losses.nll(model, params, rows), batch, microbatch)
    return total / jnp.where(count > 0, count, 1.0)


def _loss_and_grad(model: Model, params: Params, batch: Batch, microbatch: int | None) -> tuple[Array, Params]:
    def sums(rows: Batch) -> tuple[Array, Array, Params]:
        (total, count), grad = jax.value_and_grad(lambda p: losses.nll(model, p, rows), has_aux=True)(params)
        return total, count, tree.to_vector(grad)

    total, count, grad = accumulate(sums, batch, microbatch)
    count = jnp.where(count > 0, count, 1.0)
    return total / count, tree.scale(1.0 / count, grad)
