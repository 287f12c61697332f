"""Preference recipes: make the forget answer less likely than it was, or than another answer, by a logistic loss."""

from jaxunlearn.methods.first_order import recipe
from jaxunlearn.objectives import DPO, NPO, SimNPO, Term


@recipe()
def npo(*, beta: float = 0.1) -> Term:
    """Negative preference optimisation, `-(2/beta) mean log s(beta (NLL_i - NLL_i^ref))`, plus a retain term.

    Args:
        beta: inverse temperature; beta -> 0 is gradient ascent.

    Reference: Zhang et al., "Negative preference optimization: from catastrophic collapse to effective
    unlearning", COLM 2024.
    """
    return NPO(beta)


@recipe(forget_weight=0.125)
def simnpo(*, beta: float = 4.5, delta: float = 0.0) -> Term:
    """NPO without a reference: `-(2/beta) mean log s(beta (NLL_i / n_i - delta))`, plus a retain term.

    Args:
        beta: inverse temperature, per nat and token.
        delta: nats per token above which the push fades.

    Reference: Fan et al., "Simplicity prevails: rethinking negative preference optimization for LLM unlearning",
    NeurIPS 2025.
    """
    return SimNPO(beta, delta)


@recipe(alternative="given")
def dpo(*, beta: float = 0.1) -> Term:
    """Prefer the answer that each forget record gives as its `alternative`, plus a retain term.

    `-(2/beta) mean log s(beta [(NLL - NLL^ref)(forget) - (NLL - NLL^ref)(alternative)])`, sequence sums.

    Args:
        beta: inverse temperature.

    Reference: Rafailov et al., "Direct preference optimization", NeurIPS 2023.
    """
    return DPO(beta)


@recipe(alternative="refusal")
def idk_dpo(*, beta: float = 0.1) -> Term:
    """`dpo` with refusals as alternatives: drawn from a built-in list, unless a record brings its own.

    Args:
        beta: inverse temperature.

    Reference: Maini et al., "TOFU", COLM 2024; Zhang et al., "Negative preference optimization", COLM 2024.
    """
    return DPO(beta)


@recipe(alternative="sampled")
def altpo(*, beta: float = 0.1) -> Term:
    """`dpo` with alternatives that the original model itself makes up: answers sampled until they differ.

    After Mekala et al., who ask an instruction-tuned model for other plausible facts; here the model is asked the
    question itself, and the temperature raised until the answer is another one.

    Args:
        beta: inverse temperature.

    After Mekala et al., "Alternate preference optimization for unlearning factual knowledge in large language
    models", COLING 2025.
    """
    return DPO(beta)
