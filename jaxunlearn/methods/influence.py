"""Influence unlearning: the first-order effect of training without the forget set, with curvature.

Let `theta` minimise the mean loss over all n examples, of which n_f are to be forgotten. Moving the weight of each
forget example from 1/n to 0 and of each other from 1/n to 1/n_r moves the minimum, to first order in n_f/n, by

    d = (n_f/n) (H_D + lambda I)^-1 (g_f - g_r)

with H_D the Hessian of the loss over all the data: `H_D = (n_f/n) H_f + (1 - n_f/n) H_r`. Published baselines of this
name that follow the "wfisher" code apply no curvature at all: their inverse acts on nothing. Here it does.

References: Koh and Liang, "Understanding black-box predictions via influence functions", ICML 2017; Izzo et al.,
"Approximate data deletion from machine learning models", AISTATS 2021; Jia et al., "Model sparsity can simplify machine
unlearning", NeurIPS 2023 (the baseline IU).
"""

from typing import Literal

from jaxunlearn.curvature import EmpiricalFisher, GaussNewton, Hessian
from jaxunlearn.methods.method import Method, compose, trust
from jaxunlearn.objectives import NLL, Objective
from jaxunlearn.solvers import CG
from jaxunlearn.transforms import Curvature


def influence(
    *,
    curvature: Literal["fisher", "gauss_newton", "hessian"] = "fisher",
    forget_share: float = 0.1,
    alpha: float = 1.0,
    damping: float = 1e-3,
    samples: int = 64,
    cg_steps: int = 20,
    rtol: float = 1e-3,
    max_kl: float | None = None,
    microbatch: int | None = None,
) -> Method:
    """`theta + alpha forget_share (A_D + damping I)^-1 (g_f - g_r)`, A_D the curvature over forget and retain.

    Args:
        curvature: "fisher" for the empirical Fisher E_D, "gauss_newton" or "hessian" for those matrices.
        forget_share: n_f / n, the share of the training examples that is to be forgotten, between 0 and 1.
        alpha: factor on the step; 1 is the influence-function step.
        damping: lambda, in the units of the curvature.
        samples: most examples of forget, and of retain, in E_D.
        cg_steps: most products a step.
        rtol: relative residual at which CG stops.
        max_kl: optional trust region, nats of KL on retain per step.
        microbatch: examples per accumulation step of a Hessian or Gauss-Newton product.

    Reference: Koh and Liang, ICML 2017; as a baseline of unlearning ("IU") Jia et al., NeurIPS 2023.

    Example:
        >>> influence(curvature="hessian", forget_share=0.05).name
        'influence'
    """
    recipes: dict[str, Curvature] = {
        "fisher": EmpiricalFisher(samples),
        "gauss_newton": GaussNewton(microbatch),
        "hessian": Hessian(microbatch),
    }
    if curvature not in recipes:
        raise ValueError(f"influence(curvature={curvature!r}): choose one of {', '.join(map(repr, recipes))}")
    if not 0 < forget_share < 1:
        raise ValueError(f"influence(forget_share={forget_share}): give a share of the data, above 0 and below 1")
    return compose(
        "influence",
        Objective(((-1.0, NLL("forget")), (1.0, NLL("retain"))), microbatch),
        recipes[curvature],
        CG(cg_steps, rtol),
        damping=damping,
        step_size=alpha * forget_share,
        trust_region=trust(max_kl, adapt=False),
        metric=(("retain", 1.0 - forget_share), ("forget", forget_share)),
    )
