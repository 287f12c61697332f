"""Empirical-Fisher recipes in the dual form: exact powers, no diagonal approximation.

Both are reconstructions after Gu et al. (2024) from the abstract and secondary sources; they claim the formulas
below, not the paper's tables.
"""

import optax

from jaxunlearn.curvature import EmpiricalFisher
from jaxunlearn.methods.first_order import ASCENT
from jaxunlearn.methods.method import Method, compose, trust
from jaxunlearn.objectives import Objective
from jaxunlearn.solvers import ClosedForm
from jaxunlearn.transforms import add_curvature_noise


def fisher_removal(
    *, damping: float = 1e-3, samples: int = 64, step_size: float = 1.0, max_kl: float | None = None
) -> Method:
    """`theta + step_size (E_r + damping I)^-1 g_f` per forget batch, E_r the empirical Fisher of retain.

    Only the span of the sampled retain gradients is protected; along every other direction the step is
    `step_size / damping` times the gradient. The step's `span_share` says how much of it was protected.

    Args:
        damping: lambda.
        samples: most retain examples in E_r; memory is `samples` times the parameters in f32.
        step_size: gamma.
        max_kl: optional trust region, nats of KL on retain per step.

    After Gu et al., "Second-order information matters: revisiting machine unlearning for large language models", 2024.
    """
    return compose(
        "fisher_removal",
        Objective((ASCENT,)),
        EmpiricalFisher(samples),
        ClosedForm(-1.0),
        damping=damping,
        step_size=step_size,
        trust_region=trust(max_kl, adapt=False),
    )


def fisher_forgetting(*, damping: float = 1e-3, samples: int = 64, mu: float = 1e-4, sigma: float = 1e-4) -> Method:
    """`theta + (mu sigma^2)^(1/4) (E_r + damping I)^(-1/4) eps`: noise where the retain loss is flat.

    It does not look at the forget set at all: it erases whatever the retain set does not need, evenly, which keeps
    utility over repeated requests and erases less of any one of them.

    Args:
        damping: lambda; along unsampled directions the noise has standard deviation
            `(mu sigma^2)^(1/4) lambda^(-1/4)` per parameter.
        samples: most retain examples in E_r.
        mu: trade-off between residual information and utility.
        sigma: scale of the uncertainty that the noise has to hide.

    After Gu et al. 2024, and Golatkar et al., "Eternal sunshine of the spotless net", CVPR 2020.
    """
    if mu <= 0 or sigma <= 0:
        raise ValueError(f"fisher_forgetting(mu={mu}, sigma={sigma}): both must be positive")
    noise = add_curvature_noise(EmpiricalFisher(samples), scale=(mu * sigma**2) ** 0.25, damping=damping)
    transform = optax.chain(optax.with_extra_args_support(optax.set_to_zero()), noise)
    return Method("fisher_forgetting", Objective((ASCENT,)), transform)
