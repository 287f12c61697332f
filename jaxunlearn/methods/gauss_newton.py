"""Recipes in the Gauss-Newton metric of the retain set, with steps measured in nats of KL."""

from jaxunlearn.curvature import GaussNewton
from jaxunlearn.methods.first_order import ASCENT
from jaxunlearn.methods.method import Method, compose, trust
from jaxunlearn.objectives import NLL, CounterfactualKL, Divergence, Objective
from jaxunlearn.solvers import CG


def gauss_newton_ascent(
    *,
    max_kl: float = 1e-3,
    damping: float = 0.1,
    cg_steps: int = 5,
    rtol: float = 1e-3,
    microbatch: int | None = None,
) -> Method:
    """Maximise `g_f.d` subject to `d.G_r d / 2 <= max_kl`: the direction is `(G_r + damping I)^-1 g_f`.

    The forget loss rises as fast as a fixed cost on retain allows. Like every ascent it does not stop by itself.

    Args:
        max_kl: cost of a step, nats of KL on retain; every step goes to that boundary.
        damping: initial lambda, re-chosen each step from predicted and measured KL.
        cg_steps: most Gauss-Newton products a step.
        rtol: relative residual at which CG stops.
        microbatch: examples per accumulation step of a product.

    The exact, matrix-free form of the update that K-FADE (arXiv 2602.10568) takes with Kronecker factors.
    """
    return compose(
        "gauss_newton_ascent",
        Objective((ASCENT,), microbatch),
        GaussNewton(microbatch),
        CG(cg_steps, rtol),
        damping=damping,
        trust_region=trust(max_kl, fill=True),
    )


def counterfactual_matching(
    *,
    max_kl: float = 1e-3,
    damping: float = 0.1,
    step_size: float = 1.0,
    cg_steps: int = 5,
    rtol: float = 1e-3,
    retain_weight: float = 1.0,
    divergence: Divergence = "jeffreys",
    microbatch: int | None = None,
) -> Method:
    """Answer about the forgotten entity as about one never heard of: minimise the divergence of p from q on forget.

    q is the original model's mean answer to the same prompts with the entity replaced by unseen ones. Gauss-Newton
    steps in the summed metric of forget and retain, each at most `max_kl` on retain. Unlike ascent, the objective
    has a minimum where the model behaves as if retrained, and stops there.

    Args:
        max_kl: trust region, nats of KL on retain per step.
        damping: initial lambda, re-chosen each step from predicted and measured KL.
        step_size: factor on the Gauss-Newton step.
        cg_steps: most products a step.
        rtol: relative residual at which CG stops.
        retain_weight: weight of the retain NLL in the objective and of retain in the metric.
        divergence: forward (`KL(q || p)`, as published), reverse (`KL(p || q)`) or jeffreys, their mean: forward alone
            leaves the old answer far more probability than q gives it (see `objectives.CounterfactualKL`).
        microbatch: examples per accumulation step of a product.

    The objective is after Liu et al., "Revisiting Who's Harry Potter: towards targeted unlearning from a causal
    intervention perspective", EMNLP 2024; to charge both directions and the trust-region Gauss-Newton solve are ours.
    """
    objective = Objective(((1.0, CounterfactualKL(divergence)), (retain_weight, NLL("retain"))), microbatch)
    return compose(
        "counterfactual_matching",
        objective,
        GaussNewton(microbatch),
        CG(cg_steps, rtol),
        damping=damping,
        step_size=step_size,
        trust_region=trust(max_kl),
        metric=(("forget", 1.0), ("retain", retain_weight)),
        needs=("counterfactual_top",),
    )
