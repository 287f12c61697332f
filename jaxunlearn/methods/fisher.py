"""Empirical-Fisher recipes in the dual form: exact powers, no diagonal approximation.

Both are reconstructions after Gu et al. (2024) from the abstract and secondary sources; they claim the formulas
below, not the paper's tables.
"""

from dataclasses import replace
from typing import Literal

import optax

from jaxunlearn.curvature import EmpiricalFisher, SquaredGradients, Stored
from jaxunlearn.methods.first_order import ASCENT
from jaxunlearn.methods.method import Method, compose, trust
from jaxunlearn.objectives import Objective
from jaxunlearn.solvers import ClosedForm
from jaxunlearn.transforms import RETAIN, STORED, add_curvature_noise


def fisher_removal(
    *,
    damping: float = 1e-3,
    samples: int = 64,
    step_size: float = 1.0,
    max_kl: float | None = None,
    factors: str | None = None,
) -> Method:
    """`theta + step_size (E_r + damping I)^-1 g_f` per forget batch, E_r the empirical Fisher of retain.

    The inverse is that of the WoodFisher recursion, taken at once in the dual form. Only the span of the sampled retain
    gradients is protected; along every other direction the step is `step_size / damping` times the gradient. The step's
    `span_share` says how much of it was protected.

    Args:
        damping: lambda.
        samples: most retain examples in E_r; memory is `samples` times the parameters in f32.
        step_size: gamma.
        max_kl: optional trust region, nats of KL on retain per step; with stored curvature the KL that it predicts.
        factors: folder that `curvature.save` wrote, read instead of taking gradients on retain; every batch then
            carries its content in `curvature`, and retain examples serve the certificate only.

    After Gu et al., "Second-order information matters: revisiting machine unlearning for large language models", 2024.
    """
    stored = factors is not None
    region = trust(max_kl, adapt=False)
    if stored and region is not None:
        region = replace(region, predict="metric")
    return compose(
        "fisher_removal",
        Objective((ASCENT,)),
        Stored() if stored else EmpiricalFisher(samples),
        ClosedForm(-1.0),
        damping=damping,
        step_size=step_size,
        trust_region=region,
        metric=STORED if stored else RETAIN,
        factors=factors,
    )


def fisher_forgetting(
    *,
    damping: float = 1e-3,
    samples: int = 64,
    mu: float = 1e-4,
    sigma: float = 1e-4,
    compat: Literal["golatkar_code"] | None = None,
) -> Method:
    """`theta + (mu sigma^2)^(1/4) (E_r + damping I)^(-1/4) eps`: noise where the retain loss is flat.

    It does not look at the forget set at all: it erases whatever the retain set does not need, evenly, which keeps
    utility over repeated requests and erases less of any one of them.

    With `compat="golatkar_code"` the noise is that of the released code of Golatkar et al. instead, which differs from
    the formula in two ways: the metric is the diagonal of the true Fisher (labels drawn from the model, squared
    gradients of all examples one by one), and its standard deviation is `F^(-1/2)`, not `F^(-1/4)`:
    `theta + (mu sigma^2)^(1/4) (diag F_r + damping I)^(-1/2) eps`.

    Args:
        damping: lambda; along unsampled directions the noise has standard deviation
            `(mu sigma^2)^(1/4) lambda^(-1/4)` per parameter.
        samples: most retain examples in E_r; "golatkar_code" takes all of the batch.
        mu: trade-off between residual information and utility.
        sigma: scale of the uncertainty that the noise has to hide.
        compat: "golatkar_code" for what the released code does.

    After Gu et al. 2024, and Golatkar et al., "Eternal sunshine of the spotless net", CVPR 2020.
    """
    if compat not in (None, "golatkar_code"):
        raise ValueError(f"fisher_forgetting(compat={compat!r}): choose 'golatkar_code', or None for the formula")
    scale = noise_scale("fisher_forgetting", mu, sigma)
    if compat is None:
        noise = add_curvature_noise(EmpiricalFisher(samples), scale=scale, damping=damping)
    else:
        diagonal, root = SquaredGradients("drawn"), ClosedForm(-0.5)
        noise = add_curvature_noise(diagonal, scale=scale, damping=damping, solver=root)
    transform = optax.chain(optax.with_extra_args_support(optax.set_to_zero()), noise)
    return Method("fisher_forgetting", Objective((ASCENT,)), transform)


def noise_scale(name: str, mu: float, sigma: float) -> float:
    """`(mu sigma^2)^(1/4)`."""
    if mu <= 0 or sigma <= 0:
        raise ValueError(f"{name}(mu={mu}, sigma={sigma}): both must be positive")
    return (mu * sigma**2) ** 0.25
