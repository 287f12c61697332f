"""Cubic-regularised Newton unlearning: a step that needs neither a convex loss nor a chosen damping.

    minimise  g.d + d.H_r d / 2 + (L / 6) ||d||^3,      optimal where  (H_r + (L/2) ||d|| I) d = -g,  H_r + ... >= 0

The Hessian of a trained network is nearly singular and indefinite, so the damping of a Newton step decides everything.
The cubic term, an upper bound of what the quadratic model leaves out when the Hessian is L-Lipschitz, finds it: the
longer the step, the more it is damped. One Lanczos run answers for every damping (`solvers.trust_region`), and negative
curvature is followed, not refused.

References: Nesterov and Polyak, "Cubic regularization of Newton method and its global performance", 2006; after
CuReNU (Bui et al., "On Newton's method to unlearn neural networks", arXiv 2406.14507).
"""

from jaxunlearn.curvature import Hessian
from jaxunlearn.methods.method import Method, compose, trust
from jaxunlearn.objectives import NLL, Objective
from jaxunlearn.solvers import CubicRegularized


def cubic_newton(
    *,
    L: float = 400.0,
    forget_weight: float = 1.0,
    retain_weight: float = 0.0,
    lanczos_steps: int = 20,
    max_kl: float | None = None,
    microbatch: int | None = None,
) -> Method:
    """The cubic step on `-forget_weight NLL_f + retain_weight NLL_r` with the exact Hessian of retain.

    At a minimum of the loss on forget and retain together, `g_r = -(n_f / n_r) g_f`: weights (n_f / n_r, 0), the
    influence step, and (0, 1), the Newton step on retain, are then the same. The certificate reports the damping that
    was found, `(L / 2) ||d||`.

    Args:
        L: Lipschitz constant of the Hessian, nats per unit length cubed; 400 is what was published for TOFU.
        forget_weight: of the forget loss, ascended.
        retain_weight: of the retain loss, descended.
        lanczos_steps: Hessian-vector products a step; as many copies of the parameters in f32.
        max_kl: optional trust region, nats of KL on retain per step.
        microbatch: examples per accumulation step of a product.

    After CuReNU, from the abstract and secondary sources.

    Example:
        >>> cubic_newton(L=100.0).name
        'cubic_newton'
    """
    weighted = ((-forget_weight, NLL("forget")), (retain_weight, NLL("retain")))
    terms = tuple((weight, term) for weight, term in weighted if weight != 0)
    if not terms:
        raise ValueError("cubic_newton(forget_weight=0, retain_weight=0): give at least one loss a weight")
    return compose(
        "cubic_newton",
        Objective(terms, microbatch),
        Hessian(microbatch),
        CubicRegularized(L, lanczos_steps),
        damping=0.0,
        trust_region=trust(max_kl, adapt=False),
    )
