"""Forgetting under a constraint: minimise the forget term subject to `R(theta) <= eps`, by primal and dual steps.

    theta <- theta - optimiser(grad F + lam grad R),      lam <- max(0, lam + step (R - eps))

The multiplier lam grows while the retain loss is above its bound and falls to zero while it is well under it, so the
weight between forgetting and keeping, which every other first-order recipe must be given, is found on the way.
"""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxunlearn import tree
from jaxunlearn.methods.first_order import Retain, descent, keep
from jaxunlearn.methods.method import Method
from jaxunlearn.objectives import LogitFlattening, Objective, needs_of
from jaxunlearn.types import Model, Params, UnlearnBatch


class DualState(NamedTuple):
    """State of `primal_dual`.

    Attributes:
        multiplier: lam of the next step.
        constraint: R as last measured, in its own units.
    """

    multiplier: Float[Array, ""]
    constraint: Float[Array, ""]


def primal_dual(
    constraint: Objective, eps: float, *, step_size: float = 1.0, multiplier: float = 1.0
) -> optax.GradientTransformationExtraArgs:
    """`g -> g + lam grad R`, then `lam <- max(0, lam + step_size (R - eps))`; takes `model` and `batch`.

    Args:
        constraint: R, kept at or under the bound.
        eps: the bound, in the units of R.
        step_size: of the multiplier.
        multiplier: lam at the start.

    Example:
        >>> from jaxunlearn.objectives import NLL
        >>> pair = optax.chain(primal_dual(Objective(((1.0, NLL("retain")),)), 0.5), optax.sgd(0.1))
        >>> float(pair.init(jnp.zeros(3))[0].multiplier)
        1.0
    """
    for name, value, least in (("eps", eps, 0.0), ("multiplier", multiplier, 0.0)):
        if not value >= least:
            raise ValueError(f"primal_dual({name}={value}): give at least {least:g}")
    if not step_size > 0:
        raise ValueError(f"primal_dual(step_size={step_size}): the multiplier needs a positive step")

    def init(params: Params) -> DualState:
        return DualState(jnp.float32(multiplier), jnp.float32(0.0))

    def update(grads, state, params=None, *, model: Model, batch: UnlearnBatch, **_):
        value, grad = constraint.value_and_grad(model, params, batch)
        updates = tree.axpy(state.multiplier, grad, grads)
        lam = jnp.maximum(0.0, state.multiplier + step_size * (value - eps))
        return updates, DualState(lam.astype(jnp.float32), value.astype(jnp.float32))

    return optax.GradientTransformationExtraArgs(init, update)


def pdu(
    *,
    eps: float,
    dual_step: float = 1.0,
    multiplier: float = 1.0,
    learning_rate: float = 1e-5,
    retain: Retain = "nll",
    forget_weight: float = 1.0,
    optimizer: optax.GradientTransformation | None = None,
) -> Method:
    """Primal-dual unlearning: flatten the logits on forget, `mean (max_v z - mean_v z)^2`, subject to `R <= eps`.

    Args:
        eps: bound on the retain term, nats per loss token; somewhat above the original model's loss there.
        dual_step: step of the multiplier per nat of violation.
        multiplier: weight of the retain term at the start.
        learning_rate: of AdamW without weight decay, when `optimizer` is not given.
        retain: R, "nll", or "kl", "kl_all_positions", "answer".
        forget_weight: of the forget term.
        optimizer: any optax transformation.

    Reference: Entesari et al., "Constrained entropic unlearning: a primal-dual framework for large language models",
    NeurIPS 2025.
    """
    if retain == "none":
        raise ValueError("pdu(retain='none'): the constraint is on a retain term; choose 'nll' or 'kl'")
    constraint, forget = keep("pdu", retain, 1.0), ((forget_weight, LogitFlattening()),)
    dual = primal_dual(Objective(constraint), eps, step_size=dual_step, multiplier=multiplier)
    transform = optax.chain(dual, descent("pdu", learning_rate, optimizer))
    return Method("pdu", Objective(forget), transform, needs_of(forget + constraint))
