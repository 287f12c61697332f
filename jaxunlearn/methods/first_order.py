"""First-order recipes: an objective under a plain optimiser. They are the baselines every comparison includes."""

from typing import Literal

import optax

from jaxunlearn.methods.method import Method
from jaxunlearn.objectives import NLL, NPO, KLRetain, Objective

ASCENT = (-1.0, NLL("forget"))


def grad_ascent(*, learning_rate: float = 1e-5, optimizer: optax.GradientTransformation | None = None) -> Method:
    """Gradient ascent on the forget set: minimise `-NLL_f`.

    It has no minimum: without a stop rule it destroys the model.

    Args:
        learning_rate: of AdamW without weight decay, when `optimizer` is not given.
        optimizer: any optax transformation.

    Reference: Jang et al., "Knowledge unlearning for mitigating privacy risks in language models", ACL 2023.

    Example:
        >>> grad_ascent(learning_rate=1e-4).name
        'grad_ascent'
    """
    return _first_order("grad_ascent", Objective((ASCENT,)), learning_rate, optimizer)


def grad_diff(
    *,
    learning_rate: float = 1e-5,
    forget_weight: float = 1.0,
    retain_weight: float = 1.0,
    optimizer: optax.GradientTransformation | None = None,
) -> Method:
    """Gradient difference: minimise `-forget_weight NLL_f + retain_weight NLL_r`.

    Reference: Liu et al., "Continual learning and private unlearning", CoLLAs 2022; Maini et al., "TOFU", 2024.
    """
    objective = Objective(((-forget_weight, NLL("forget")), (retain_weight, NLL("retain"))))
    return _first_order("grad_diff", objective, learning_rate, optimizer)


def npo(
    *,
    beta: float = 0.1,
    learning_rate: float = 1e-5,
    retain: Literal["nll", "kl", "none"] = "nll",
    retain_weight: float = 1.0,
    optimizer: optax.GradientTransformation | None = None,
) -> Method:
    """Negative preference optimisation, `-(2/beta) mean log s(beta (NLL_i - NLL_i^ref))`, plus a retain term.

    Args:
        beta: inverse temperature; beta -> 0 is gradient ascent.
        learning_rate: of AdamW without weight decay, when `optimizer` is not given.
        retain: the retain term, `"nll"`, `"kl"` (against the original model) or `"none"`.
        retain_weight: its weight.
        optimizer: any optax transformation.

    Reference: Zhang et al., "Negative preference optimization: from catastrophic collapse to effective
    unlearning", COLM 2024.
    """
    kept = {"nll": ((retain_weight, NLL("retain")),), "kl": ((retain_weight, KLRetain()),), "none": ()}
    if retain not in kept:
        raise ValueError(f"npo(retain={retain!r}): choose one of {', '.join(map(repr, kept))}")
    needs = ("forget_nll", "retain_top") if retain == "kl" else ("forget_nll",)
    return _first_order("npo", Objective(((1.0, NPO(beta)), *kept[retain])), learning_rate, optimizer, needs)


def _first_order(name, objective, learning_rate, optimizer, needs=()) -> Method:
    if not learning_rate > 0:
        raise ValueError(f"{name}(learning_rate={learning_rate}): give a positive learning rate")
    optimizer = optax.adamw(learning_rate, weight_decay=0.0) if optimizer is None else optimizer
    return Method(name, objective, optax.with_extra_args_support(optimizer), needs)
