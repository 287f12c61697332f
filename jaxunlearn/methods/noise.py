"""Removal, then noise: a step takes away what it can, noise hides what it leaves.

    theta + gamma (A + lambda I)^-1 g_f + (mu sigma^2)^(1/4) (F + lambda' I)^(-1/4) eps

The removal is that of `newton_removal` or `fisher_removal`, the noise that of `fisher_forgetting`: large where the
retain set would not notice. The trade-off `mu` weighs how much residual information is hidden against how much utility
it costs.
"""

from typing import Literal

import optax

from jaxunlearn.curvature import EmpiricalFisher, GaussNewton
from jaxunlearn.methods.fisher import fisher_removal, noise_scale
from jaxunlearn.methods.method import Method
from jaxunlearn.methods.newton import newton_removal
from jaxunlearn.solvers import Lanczos
from jaxunlearn.transforms import Curvature, add_curvature_noise


def noisy_newton(
    *,
    removal: Literal["newton", "fisher"] = "newton",
    damping: float = 1e-2,
    step_size: float = 1.0,
    cg_steps: int = 20,
    rtol: float = 1e-3,
    max_kl: float | None = None,
    microbatch: int | None = None,
    noise: Literal["fisher", "gauss_newton"] = "fisher",
    noise_damping: float = 1e-3,
    samples: int = 64,
    lanczos_steps: int = 20,
    mu: float = 1e-4,
    sigma: float = 1e-4,
) -> Method:
    """`newton_removal` or `fisher_removal`, plus the noise of `fisher_forgetting`.

    Args:
        removal: "newton" for exact Hessian products, "fisher" for the empirical Fisher.
        damping: lambda of the removal.
        step_size: gamma of the removal.
        cg_steps: most Hessian-vector products of a "newton" removal.
        rtol: relative residual at which they stop.
        max_kl: optional trust region of the removal, nats of KL on retain per step; the noise is not bounded by it.
        microbatch: examples per accumulation step of a product.
        noise: its metric: "fisher" for the empirical Fisher in the dual form, "gauss_newton" for the Gauss-Newton
            matrix and Lanczos, which protects more than the sampled directions.
        noise_damping: lambda' of the noise.
        samples: most retain examples in an empirical Fisher; memory is `samples` times the parameters in f32.
        lanczos_steps: Gauss-Newton products of the noise; as many copies of the parameters in f32.
        mu: trade-off between residual information and utility.
        sigma: scale of the uncertainty that the noise has to hide.

    After Gu et al., "Second-order information matters: revisiting machine unlearning for large language models", 2024,
    and Golatkar et al., "Eternal sunshine of the spotless net", CVPR 2020.

    Example:
        >>> noisy_newton(removal="fisher", max_kl=1e-3).name
        'noisy_newton'
    """
    if removal == "newton":
        step = newton_removal(
            damping=damping, step_size=step_size, cg_steps=cg_steps, rtol=rtol, max_kl=max_kl, microbatch=microbatch
        )
    elif removal == "fisher":
        step = fisher_removal(damping=damping, samples=samples, step_size=step_size, max_kl=max_kl)
    else:
        raise ValueError(f"noisy_newton(removal={removal!r}): choose 'newton' or 'fisher'")
    curvature: Curvature
    if noise == "fisher":
        curvature, root = EmpiricalFisher(samples), None
    elif noise == "gauss_newton":
        curvature, root = GaussNewton(microbatch), Lanczos(lanczos_steps, power=-0.25)
    else:
        raise ValueError(f"noisy_newton(noise={noise!r}): choose 'fisher' or 'gauss_newton'")
    scale = noise_scale("noisy_newton", mu, sigma)
    added = add_curvature_noise(curvature, scale=scale, damping=noise_damping, solver=root)
    return step._replace(name="noisy_newton", transform=optax.chain(step.transform, added))
