"""Flat forgetting: the forget gradient taken at the worst point nearby (`sam`), or averaged around it (`smoothed`).

Both aim at a place that a few steps of relearning do not leave. The retain gradient is taken at the point itself.
"""

from typing import Literal

import jax
import optax
from jaxtyping import Array

from jaxunlearn import tree
from jaxunlearn.accumulate import sum_over
from jaxunlearn.methods.first_order import ASCENT, Retain, Terms, descent, keep
from jaxunlearn.methods.method import Method
from jaxunlearn.objectives import NPO, Objective, SharpnessAware, SimNPO, Term, needs_of
from jaxunlearn.types import Model, UnlearnBatch

Forget = Literal["npo", "simnpo", "ascent"]
_FORGETS: dict[str, tuple[float, Term]] = {"npo": (1.0, NPO()), "simnpo": (0.125, SimNPO()), "ascent": ASCENT}


def sam(
    *,
    forget: Forget = "npo",
    rho: float = 0.1,
    learning_rate: float = 1e-5,
    retain: Retain = "nll",
    retain_weight: float = 1.0,
    optimizer: optax.GradientTransformation | None = None,
) -> Method:
    """Sharpness-aware forgetting: `F(theta + rho g / ||g||) + retain_weight R(theta)`, g the gradient of F.

    Args:
        forget: F: "npo", "simnpo" or "ascent", with their published defaults.
        rho: radius of the ball in which forgetting must hold, units of the parameters.
        learning_rate: of AdamW without weight decay, when `optimizer` is not given.
        retain: the retain term, "nll", "kl", "kl_all_positions", "answer" or "none".
        retain_weight: of the retain term.
        optimizer: any optax transformation.

    Reference: Fan et al., "Towards LLM unlearning resilient to relearning attacks: a sharpness-aware minimization
    perspective and beyond", ICML 2025.
    """
    gone, kept = _forget("sam", forget), keep("sam", retain, retain_weight)
    objective = SharpnessAware(Objective(gone), Objective(kept), rho)
    return Method("sam", objective, descent("sam", learning_rate, optimizer), needs_of(gone + kept))


def smoothed(
    *,
    forget: Forget = "npo",
    sigma: float = 0.01,
    samples: int = 3,
    learning_rate: float = 1e-5,
    retain: Retain = "nll",
    retain_weight: float = 1.0,
    optimizer: optax.GradientTransformation | None = None,
) -> Method:
    """Randomised smoothing: the mean forget gradient at `theta + sigma eps_k`, eps_k standard normal, drawn anew.

    Args:
        forget: the forget term: "npo", "simnpo" or "ascent", with their published defaults.
        sigma: standard deviation of the perturbation of each parameter.
        samples: perturbations a step.
        learning_rate: of AdamW without weight decay, when `optimizer` is not given.
        retain: the retain term, "nll", "kl", "kl_all_positions", "answer" or "none".
        retain_weight: of the retain term.
        optimizer: any optax transformation.

    Reference: Fan et al., "Towards LLM unlearning resilient to relearning attacks", ICML 2025 (smoothness by random
    perturbation); the defaults of sigma and samples are ours.
    """
    gone, kept = _forget("smoothed", forget), keep("smoothed", retain, retain_weight)
    transform = optax.chain(smooth(Objective(gone), sigma, samples), descent("smoothed", learning_rate, optimizer))
    return Method("smoothed", Objective(gone + kept), transform, needs_of(gone + kept))


def smooth(forget: Objective, sigma: float, samples: int) -> optax.GradientTransformationExtraArgs:
    """Replace the gradient of `forget` within the incoming one by its mean over `samples` perturbations.

    `g -> g - grad F(theta) + (1/K) sum_k grad F(theta + sigma eps_k)`; takes `model`, `batch` and `key`.
    """
    if not sigma > 0:
        raise ValueError(f"smooth(sigma={sigma}): give a positive standard deviation, or use the plain objective")
    if samples < 1:
        raise ValueError(f"smooth(samples={samples}): give at least 1 perturbation")

    def update(grads, state, params=None, *, model: Model, batch: UnlearnBatch, key: Array, **_):
        def perturbed(k: Array):
            there = tree.axpy(sigma, tree.normal_like(k, params), params)
            return forget.value_and_grad(model, there, batch)[1]

        mean = tree.scale(1.0 / samples, sum_over(perturbed, jax.random.split(key, samples)))
        here = forget.value_and_grad(model, params, batch)[1]
        return tree.add(tree.sub(grads, here), mean), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _forget(name: str, forget: Forget) -> Terms:
    if forget not in _FORGETS:
        raise ValueError(f"{name}(forget={forget!r}): choose one of {', '.join(map(repr, _FORGETS))}")
    return (_FORGETS[forget],)
