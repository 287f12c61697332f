"""Ascent on the forget loss, plain, balanced or weighted. None has a minimum: a stop rule belongs to each."""

import optax

from jaxunlearn.methods.first_order import ASCENT, Retain, first_order, keep, recipe
from jaxunlearn.methods.method import Method
from jaxunlearn.objectives import NLL, Term, WeightedAscent


def grad_ascent(*, learning_rate: float = 1e-5, optimizer: optax.GradientTransformation | None = None) -> Method:
    """Gradient ascent on the forget set: minimise `-NLL_f`.

    It has no minimum: without a stop rule it destroys the model.

    Args:
        learning_rate: of AdamW without weight decay, when `optimizer` is not given; 1e-5 as in TOFU (Jang: 5e-5).
        optimizer: any optax transformation.

    Reference: Jang et al., "Knowledge unlearning for mitigating privacy risks in language models", ACL 2023.

    Example:
        >>> grad_ascent(learning_rate=1e-4).name
        'grad_ascent'
    """
    return first_order("grad_ascent", (ASCENT,), learning_rate=learning_rate, optimizer=optimizer)


def grad_diff(
    *,
    learning_rate: float = 1e-5,
    forget_weight: float = 1.0,
    retain_weight: float = 1.0,
    optimizer: optax.GradientTransformation | None = None,
) -> Method:
    """Gradient difference: minimise `-forget_weight NLL_f + retain_weight NLL_r`.

    Args:
        learning_rate: of AdamW without weight decay, when `optimizer` is not given.
        forget_weight: of the ascent.
        retain_weight: of the retain NLL.
        optimizer: any optax transformation.

    Reference: Liu et al., "Continual learning and private unlearning", CoLLAs 2022; Maini et al., "TOFU", 2024.
    """
    forget = ((-forget_weight, NLL("forget")),)
    kept = keep("grad_diff", "nll", retain_weight)
    return first_order("grad_diff", forget, kept, learning_rate=learning_rate, optimizer=optimizer)


def grad_ascent_kl(
    *,
    learning_rate: float = 1e-5,
    forget_weight: float = 1.0,
    retain: Retain = "kl",
    retain_weight: float = 1.0,
    optimizer: optax.GradientTransformation | None = None,
) -> Method:
    """Gradient ascent held back by the original model: minimise `-forget_weight NLL_f + retain_weight KL_r(ref || p)`.

    Args:
        learning_rate: of AdamW without weight decay, when `optimizer` is not given.
        forget_weight: of the ascent.
        retain: the retain term: "kl" over loss tokens, "kl_all_positions" over prompt and padding too, as the released
            code does; "nll", "answer" and "none" as in the other recipes.
        retain_weight: its weight.
        optimizer: any optax transformation.

    Reference: Maini et al., "TOFU: a task of fictitious unlearning for LLMs", COLM 2024 ("KL minimization").
    """
    forget = ((-forget_weight, NLL("forget")),)
    kept = keep("grad_ascent_kl", retain, retain_weight)
    return first_order("grad_ascent_kl", forget, kept, learning_rate=learning_rate, optimizer=optimizer)


@recipe()
def wga(*, beta: float = 1.0) -> Term:
    """Weighted gradient ascent, `-mean_t p_t^beta (-log p_t)` with the weights held constant, plus a retain term.

    Args:
        beta: how fast a token stops counting as it becomes unlikely; 0 is gradient ascent.

    Reference: Wang et al., "Rethinking LLM unlearning objectives: a gradient perspective and go beyond", ICLR 2025.
    """
    return WeightedAscent(beta)


@recipe(forget_weight=0.1)
def satimp(*, beta1: float = 5.0, beta2: float = 1.0) -> Term:
    """Ascent weighted by saturation and importance, `-mean_t p_t^beta1 (1 - p_t)^beta2 (-log p_t)`, weights constant.

    Args:
        beta1: saturation: how fast a token stops counting as it becomes unlikely.
        beta2: importance: how little a token counts that is certain.

    Reference: Yang et al., "Exploring criteria of loss reweighting to enhance LLM unlearning", ICML 2025.
    """
    return WeightedAscent(beta1, beta2)
