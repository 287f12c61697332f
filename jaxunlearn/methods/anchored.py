"""Forgetting by matching counterfactual answers, anchored by stored curvature in the place of a retain set.

    minimise  D_f(theta) + strength/2 (theta - theta_0).F_T (theta - theta_0)

D_f is the objective of `counterfactual_matching`: its minimum is what a model would say that never read the forget
set. F_T, the EK-FAC approximation of the Fisher matrix of what is to be kept, is taken once while that is at hand
(`jaxunlearn curvature --temperature 3`), and then stands for it: no retain example is read. Softening the answers by a
temperature is what makes it work on a model that has memorised, whose Fisher matrix at T = 1 nearly vanishes, and sees
no cost in moves that ruin it (`curvature.kronecker.Settings`).

The penalty is quadratic in the whole displacement, so plain AdamW can minimise the sum: the curvature is in the
objective and not in the step. It may be in both. AdamW's first steps are equally long in all directions, those that
what is kept would notice included, and every request begins with them; with `max_kl` each step is

    theta <- theta - (F_T + damping)^-1 grad,       shortened to  d.F_T d / 2 <= max_kl.
"""

import optax

from jaxunlearn.curvature import EKFAC, Stored
from jaxunlearn.methods.first_order import descent
from jaxunlearn.methods.method import Method, compose
from jaxunlearn.objectives import NLL, CounterfactualKL, Divergence, Objective, needs_of
from jaxunlearn.solvers import ClosedForm
from jaxunlearn.transforms import RETAIN, STORED, TrustRegion, anchor_by_curvature, damp_by_mean


def anchored_matching(
    *,
    strength: float = 10.0,
    factors: str | None = None,
    temperature: float = 3.0,
    retain_weight: float = 0.0,
    divergence: Divergence = "jeffreys",
    learning_rate: float = 1e-5,
    optimizer: optax.GradientTransformation | None = None,
    max_kl: float | None = None,
    damping: float = 1.0,
    samples: int = 1,
    microbatch: int | None = None,
) -> Method:
    """Match counterfactual answers on forget, held by the softened EK-FAC curvature of what is kept.

    Args:
        strength: of the penalty; more keeps more and forgets less. Of 10, 30 and 100 the default was best without any
            retain example, and 30 for ten requests in a row, on the small model of benchmarks/methods.py.
        factors: folder that `jaxunlearn curvature` or `curvature.save` wrote, best at a temperature of about 3: every
            batch carries its content in `curvature`, and no retain example is needed. Without it factors are taken on
            the retain batch of each step, and cost two more gradients.
        temperature: of the factors that a step takes.
        retain_weight: of the NLL of retain examples in the objective, where there are some.
        divergence: forward, reverse or jeffreys, as in `counterfactual_matching`.
        learning_rate: of AdamW without weight decay, when neither `optimizer` nor `max_kl` is given; small models want
            1e-3 to 3e-3.
        optimizer: any optax transformation.
        max_kl: takes steps in the metric of the factors, of at most this predicted KL at their temperature, nats per
            loss token of what is kept; 1e-4 with a strength of 3 to 10 suits many requests in a row.
        damping: with `max_kl`, share of the mean eigenvalue of each block that is added to it.
        samples: draws of labels a token for the factors that a step takes.
        microbatch: examples at a time while factors are taken, and in the gradient.

    The objective is after Liu et al., EMNLP 2024, the penalty after Ritter, Botev and Barber, "Online structured
    Laplace approximations for overcoming catastrophic forgetting", NeurIPS 2018; to soften it is ours.

    Example:
        >>> anchored_matching(factors="folder").retain, anchored_matching().retain
        (False, True)
    """
    if not strength > 0:
        raise ValueError(f"anchored_matching(strength={strength}): give a positive strength")
    if retain_weight < 0:
        raise ValueError(f"anchored_matching(retain_weight={retain_weight}): give 0 or more")
    if max_kl is not None and optimizer is not None:
        raise ValueError(f"anchored_matching(max_kl={max_kl}, optimizer=...): both take the steps; give one of them")
    stored = factors is not None
    recipe = Stored() if stored else EKFAC(samples=samples, temperature=temperature, microbatch=microbatch)
    metric = STORED if stored else RETAIN
    forget = ((1.0, CounterfactualKL(divergence)),)
    kept = ((retain_weight, NLL("retain")),) if retain_weight else ()
    objective, needs = Objective(forget + kept, microbatch), needs_of(forget)
    if max_kl is None:
        steps = descent("anchored_matching", learning_rate, optimizer)
        method = Method("anchored_matching", objective, steps, needs, factors=factors, retain=bool(kept) or not stored)
    else:
        method = compose(
            "anchored_matching",
            objective,
            recipe,
            ClosedForm(-1.0),
            damping=damping,
            trust_region=TrustRegion(max_kl, predict="metric"),
            metric=metric,
            needs=needs,
            damp=damp_by_mean,
            factors=factors,
        )
    anchor = anchor_by_curvature(recipe, strength=strength, metric=metric)
    return method._replace(transform=optax.chain(anchor, method.transform))
