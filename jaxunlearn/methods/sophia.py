"""Sophia: a diagonal second-order optimiser, here for unlearning objectives (SOUL).

    m     = beta1 m + (1 - beta1) g
    h     = beta2 h + (1 - beta2) hhat                       every k steps, hhat an unbiased diagonal of curvature
    theta = theta - lr (clip(m / max(rho h, eps), 1) + wd theta)

Coordinates that curve move by Newton's step on their own, those that do not (or curve downwards) by at most `lr`. The
estimate hhat costs one gradient at labels drawn from the model (Gauss-Newton-Bartlett, `n ghat^2`) or one
Hessian-vector product (Hutchinson, `u * H u`), and only in the steps that take it.

The released code of SOUL differs from this in three ways, which `compat="released"` reproduces: h is the running mean
of the *squared unlearning gradient*, in every step, which is no curvature; the momentum is advanced twice with each
gradient; and rho is multiplied by 5120, the number of tokens of a pre-training batch, which changes which coordinates
are clipped.

References: Liu et al., "Sophia: a scalable stochastic second-order optimizer for language model pre-training", ICLR
2024; Jia et al., "SOUL: unlocking the power of second-order optimization for LLM unlearning", EMNLP 2024.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from jaxunlearn import tree
from jaxunlearn.curvature import GaussNewtonBartlett, Hessian, HutchinsonDiagonal
from jaxunlearn.methods.method import Method
from jaxunlearn.objectives import NLL, NPO, CounterfactualKL, Objective
from jaxunlearn.transforms import Metric
from jaxunlearn.types import Model, Params, UnlearnBatch

RELEASED_TOKENS = 5120


class SophiaState(NamedTuple):
    """State of `sophia`.

    Attributes:
        count: steps taken.
        m: running mean of gradients, f32.
        h: running mean of diagonal estimates, f32.
    """

    count: Int[Array, ""]
    m: PyTree
    h: PyTree


def sophia(
    *,
    learning_rate: float = 1e-5,
    beta1: float = 0.9,
    beta2: float = 0.95,
    rho: float = 0.04,
    eps: float = 1e-15,
    weight_decay: float = 0.1,
    interval: int = 10,
    diagonal: GaussNewtonBartlett | HutchinsonDiagonal | None = None,
    metric: Metric = (("forget", 1.0), ("retain", 1.0)),
    compat: Literal["released"] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Sophia as an optax transformation; see the module for the update. It runs under any objective.

    Args:
        learning_rate: most that a coordinate moves in a step, before decay.
        beta1: decay of the gradients' mean.
        beta2: decay of the diagonal's mean, per estimate.
        rho: scale of h; a coordinate is clipped where `|m| > rho h`.
        eps: what `rho h` counts as where it is smaller.
        weight_decay: decoupled, per step and unit of `learning_rate`.
        interval: k, steps from one estimate to the next; the first step takes one.
        diagonal: what estimates it; default `GaussNewtonBartlett()`.
        metric: `(part of the batch, weight)` pairs whose diagonals are summed.
        compat: "released" for the update of the released code, which takes no estimate.

    Example:
        >>> transform = sophia(learning_rate=1e-4, diagonal=HutchinsonDiagonal(probes=2))
        >>> method = Method("mine", Objective(((1.0, NLL("retain")),)), transform)
    """
    _check(learning_rate=learning_rate, rho=rho, eps=eps, interval=interval)
    for name, value in (("beta1", beta1), ("beta2", beta2)):
        if not 0 <= value < 1:
            raise ValueError(f"sophia({name}={value}): give a decay between 0 and 1, below 1")
    if compat not in (None, "released"):
        raise ValueError(f"sophia(compat={compat!r}): choose 'released', or None for the published update")
    released = compat == "released"
    estimator = GaussNewtonBartlett() if diagonal is None else diagonal
    scale = rho * RELEASED_TOKENS if released else rho

    def init(params: Params) -> SophiaState:
        return SophiaState(jnp.int32(0), tree.zeros_like(params), tree.zeros_like(params))

    def update(grads, state, params=None, *, model: Model, batch: UnlearnBatch, key: Array, **_):
        m = _mean(beta1, state.m, grads)
        if released:
            m = _mean(beta1, m, grads)
            h = _mean(beta2, state.h, jax.tree.map(jnp.square, grads))
        else:

            def refreshed() -> PyTree:
                return _mean(beta2, state.h, _estimate(estimator, metric, model, params, batch, key))

            h = jax.lax.cond(state.count % interval == 0, refreshed, lambda: state.h)

        def step(m: Array, h: Array, p: Array) -> Array:
            ratio = jnp.clip(m / jnp.maximum(scale * h, eps), -1.0, 1.0)
            return -learning_rate * (ratio + weight_decay * p.astype(m.dtype))

        return jax.tree.map(step, m, h, params), SophiaState(state.count + 1, m, h)

    return optax.GradientTransformationExtraArgs(init, update)


def soul(
    *,
    objective: Literal["grad_diff", "npo", "matching"] = "grad_diff",
    learning_rate: float = 1e-5,
    retain_weight: float = 1.0,
    npo_beta: float = 0.1,
    beta1: float = 0.9,
    beta2: float = 0.95,
    rho: float = 0.04,
    weight_decay: float = 0.1,
    interval: int = 10,
    diagonal: Literal["bartlett", "hutchinson"] = "bartlett",
    microbatch: int | None = None,
    compat: Literal["released"] | None = None,
) -> Method:
    """Second-order unlearning by Sophia: any forget objective plus a retain loss. For others use `sophia`.

    The diagonal is that of the curvature on forget plus `retain_weight` times that on retain.

    Args:
        objective: the forget term: "grad_diff" for `-NLL_f`, "npo", or "matching" for `KL(q || p)` to counterfactual
            answers.
        learning_rate: most that a coordinate moves in a step, before decay.
        retain_weight: weight of the retain NLL, and of retain in the curvature.
        npo_beta: inverse temperature of "npo".
        beta1: decay of the gradients' mean.
        beta2: decay of the diagonal's mean, per estimate.
        rho: scale of the diagonal; a coordinate is clipped where `|m| > rho h`.
        weight_decay: decoupled, per step and unit of `learning_rate`.
        interval: steps from one estimate of the diagonal to the next.
        diagonal: "bartlett" for Gauss-Newton-Bartlett, "hutchinson" for the Hessian's.
        microbatch: examples per accumulation step of gradients and estimates.
        compat: "released" for the update of the released code, with squared gradients for curvature.

    Reference: Jia et al., "SOUL: unlocking the power of second-order optimization for LLM unlearning", EMNLP 2024.

    Example:
        >>> soul(objective="npo").needs
        ('forget_nll',)
    """
    forget_terms = {
        "grad_diff": ((-1.0, NLL("forget")), ()),
        "npo": ((1.0, NPO(npo_beta)), ("forget_nll",)),
        "matching": ((1.0, CounterfactualKL()), ("counterfactual_top",)),
    }
    estimators = {
        "bartlett": GaussNewtonBartlett(microbatch=microbatch),
        "hutchinson": HutchinsonDiagonal(Hessian(microbatch)),
    }
    for name, value, known in (("objective", objective, forget_terms), ("diagonal", diagonal, estimators)):
        if value not in known:
            raise ValueError(f"soul({name}={value!r}): choose one of {', '.join(map(repr, known))}")
    term, needs = forget_terms[objective]
    transform = sophia(
        learning_rate=learning_rate,
        beta1=beta1,
        beta2=beta2,
        rho=rho,
        weight_decay=weight_decay,
        interval=interval,
        diagonal=estimators[diagonal],
        metric=(("forget", 1.0), ("retain", retain_weight)),
        compat=compat,
    )
    return Method("soul", Objective((term, (retain_weight, NLL("retain"))), microbatch), transform, needs)


def _mean(beta: float, mean: PyTree, new: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: beta * a + (1 - beta) * b.astype(a.dtype), mean, new)


def _estimate(estimator, metric: Metric, model: Model, params: Params, batch: UnlearnBatch, key: Array) -> PyTree:
    """`sum_i w_i hhat_i` over the parts of the batch, each from a key of its own."""
    total = tree.zeros_like(params)
    for number, (part, weight) in enumerate(metric):
        data = getattr(batch, part)
        if data is None:
            raise ValueError(
                f"curvature is taken on UnlearnBatch.{part}, which is None: pass {part} examples in every batch, or "
                "leave that part out of the metric"
            )
        diagonal = estimator.estimate(model, params, data, jax.random.fold_in(key, number)).mean
        total = tree.axpy(weight, diagonal, total)
    return tree.shard_like(total, params)


def _check(**settings: float) -> None:
    for name, value in settings.items():
        if not value > 0:
            raise ValueError(f"sophia({name}={value}): give a positive number")
