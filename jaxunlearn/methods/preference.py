"""Preference recipes: make the forget answer less likely than it was, or than another answer, by a logistic loss."""

import optax

from jaxunlearn.methods.first_order import Retain, first_order, keep
from jaxunlearn.methods.method import Method
from jaxunlearn.objectives import DPO, NPO, SimNPO


def npo(
    *,
    beta: float = 0.1,
    learning_rate: float = 1e-5,
    retain: Retain = "nll",
    forget_weight: float = 1.0,
    retain_weight: float = 1.0,
    optimizer: optax.GradientTransformation | None = None,
) -> Method:
    """Negative preference optimisation, `-(2/beta) mean log s(beta (NLL_i - NLL_i^ref))`, plus a retain term.

    Args:
        beta: inverse temperature; beta -> 0 is gradient ascent.
        learning_rate: of AdamW without weight decay, when `optimizer` is not given.
        retain: the retain term, "nll", "kl" (against the original model), "kl_all_positions", "answer" or "none".
        forget_weight: of the forget term.
        retain_weight: of the retain term.
        optimizer: any optax transformation.

    Reference: Zhang et al., "Negative preference optimization: from catastrophic collapse to effective
    unlearning", COLM 2024.
    """
    forget, kept = ((forget_weight, NPO(beta)),), keep("npo", retain, retain_weight)
    return first_order("npo", forget, kept, learning_rate=learning_rate, optimizer=optimizer)


def simnpo(
    *,
    beta: float = 4.5,
    delta: float = 0.0,
    learning_rate: float = 1e-5,
    retain: Retain = "nll",
    forget_weight: float = 0.125,
    retain_weight: float = 1.0,
    optimizer: optax.GradientTransformation | None = None,
) -> Method:
    """NPO without a reference: `-(2/beta) mean log s(beta (NLL_i / n_i - delta))`, plus a retain term.

    Args:
        beta: inverse temperature, per nat and token.
        delta: nats per token above which the push fades.
        learning_rate: of AdamW without weight decay, when `optimizer` is not given.
        retain: the retain term, "nll", "kl", "kl_all_positions", "answer" or "none".
        forget_weight: of the forget term.
        retain_weight: of the retain term.
        optimizer: any optax transformation.

    Reference: Fan et al., "Simplicity prevails: rethinking negative preference optimization for LLM unlearning",
    NeurIPS 2025.
    """
    forget, kept = ((forget_weight, SimNPO(beta, delta)),), keep("simnpo", retain, retain_weight)
    return first_order("simnpo", forget, kept, learning_rate=learning_rate, optimizer=optimizer)


def dpo(
    *,
    beta: float = 0.1,
    learning_rate: float = 1e-5,
    retain: Retain = "nll",
    forget_weight: float = 1.0,
    retain_weight: float = 1.0,
    optimizer: optax.GradientTransformation | None = None,
) -> Method:
    """Prefer the answer that each forget record gives as its `alternative`, plus a retain term.

    `-(2/beta) mean log s(beta [(NLL - NLL^ref)(forget) - (NLL - NLL^ref)(alternative)])`, sequence sums.

    Args:
        beta: inverse temperature.
        learning_rate: of AdamW without weight decay, when `optimizer` is not given.
        retain: the retain term, "nll", "kl", "kl_all_positions", "answer" or "none".
        forget_weight: of the forget term.
        retain_weight: of the retain term.
        optimizer: any optax transformation.

    Reference: Rafailov et al., "Direct preference optimization", NeurIPS 2023.
    """
    return _dpo("dpo", "given", beta, learning_rate, retain, forget_weight, retain_weight, optimizer)


def idk_dpo(
    *,
    beta: float = 0.1,
    learning_rate: float = 1e-5,
    retain: Retain = "nll",
    forget_weight: float = 1.0,
    retain_weight: float = 1.0,
    optimizer: optax.GradientTransformation | None = None,
) -> Method:
    """`dpo` with refusals as alternatives: drawn from a built-in list, unless a record brings its own.

    Args:
        beta: inverse temperature.
        learning_rate: of AdamW without weight decay, when `optimizer` is not given.
        retain: the retain term, "nll", "kl", "kl_all_positions", "answer" or "none".
        forget_weight: of the forget term.
        retain_weight: of the retain term.
        optimizer: any optax transformation.

    Reference: Maini et al., "TOFU", COLM 2024; Zhang et al., "Negative preference optimization", COLM 2024.
    """
    return _dpo("idk_dpo", "refusal", beta, learning_rate, retain, forget_weight, retain_weight, optimizer)


def altpo(
    *,
    beta: float = 0.1,
    learning_rate: float = 1e-5,
    retain: Retain = "nll",
    forget_weight: float = 1.0,
    retain_weight: float = 1.0,
    optimizer: optax.GradientTransformation | None = None,
) -> Method:
    """`dpo` with alternatives that the original model itself makes up: answers sampled until they differ.

    After Mekala et al., who ask an instruction-tuned model for other plausible facts; here the model is asked the
    question itself, and the temperature raised until the answer is another one.

    Args:
        beta: inverse temperature.
        learning_rate: of AdamW without weight decay, when `optimizer` is not given.
        retain: the retain term, "nll", "kl", "kl_all_positions", "answer" or "none".
        forget_weight: of the forget term.
        retain_weight: of the retain term.
        optimizer: any optax transformation.

    After Mekala et al., "Alternate preference optimization for unlearning factual knowledge in large language
    models", COLING 2025.
    """
    return _dpo("altpo", "sampled", beta, learning_rate, retain, forget_weight, retain_weight, optimizer)


def _dpo(name, alternative, beta, learning_rate, retain, forget_weight, retain_weight, optimizer) -> Method:
    forget, kept = ((forget_weight, DPO(beta)),), keep(name, retain, retain_weight)
    return first_order(name, forget, kept, learning_rate=learning_rate, optimizer=optimizer, alternative=alternative)
