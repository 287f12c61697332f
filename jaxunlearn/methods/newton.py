"""Newton's method on the retain loss: the step towards the model that was never trained on forget."""

from jaxunlearn.curvature import Hessian
from jaxunlearn.methods.first_order import ASCENT
from jaxunlearn.methods.method import Method, compose, trust
from jaxunlearn.objectives import Objective
from jaxunlearn.solvers import CG


def newton_removal(
    *,
    damping: float = 1e-2,
    step_size: float = 1.0,
    cg_steps: int = 20,
    rtol: float = 1e-3,
    max_kl: float | None = None,
    microbatch: int | None = None,
) -> Method:
    """`theta + step_size (H_r + damping I)^-1 g_f`, exact Hessian-vector products and conjugate gradients.

    At a minimum of the loss on forget and retain together, `g_r = -(n_f / n_r) g_f`, so `step_size = n_f / n_r`
    (ratio of loss tokens) is the influence-function step: on a quadratic loss one step lands on the retrained
    optimum. Away from a minimum H_r is indefinite: CG then stops with `NEGATIVE_CURVATURE` and says how low it went.

    Args:
        damping: lambda, added to the Hessian.
        step_size: gamma.
        cg_steps: most Hessian-vector products a step.
        rtol: relative residual at which CG stops.
        max_kl: optional trust region, nats of KL on retain per step. A model that has memorised has almost no
            curvature left, and the textbook step then goes far outside the region where it means anything.
        microbatch: examples per accumulation step of a product.

    Reference: Guo et al., "Certified data removal from machine learning models", ICML 2020; Koh and Liang,
    "Understanding black-box predictions via influence functions", ICML 2017.
    """
    return compose(
        "newton_removal",
        Objective((ASCENT,), microbatch),
        Hessian(microbatch),
        CG(cg_steps, rtol),
        damping=damping,
        step_size=step_size,
        trust_region=trust(max_kl),
    )
