"""Relabelling recipes: fine-tune on another answer to the same prompt. Descent, so each ends by itself."""

import optax

from jaxunlearn.methods.first_order import Retain, first_order, keep
from jaxunlearn.methods.method import Method
from jaxunlearn.objectives import NLL, AdversarialNLL, Term


def refusal(
    *,
    learning_rate: float = 1e-5,
    retain: Retain = "nll",
    forget_weight: float = 1.0,
    retain_weight: float = 1.0,
    optimizer: optax.GradientTransformation | None = None,
) -> Method:
    """NLL of a refusal on the forget prompts (preference optimisation, "I don't know"), plus a retain term.

    Refusals are drawn from a built-in list, unless a record brings its own `alternative`. With `retain="answer"` it is
    IDK + AP (Yuan et al., ICLR 2025).

    Args:
        learning_rate: of AdamW without weight decay, when `optimizer` is not given.
        retain: the retain term, "nll", "kl", "kl_all_positions", "answer" or "none".
        forget_weight: of the forget term.
        retain_weight: of the retain term.
        optimizer: any optax transformation.

    Reference: Maini et al., "TOFU: a task of fictitious unlearning for LLMs", COLM 2024.
    """
    return _relabelled(
        "refusal", NLL("alternative"), "refusal", learning_rate, retain, forget_weight, retain_weight, optimizer
    )


def random_label(
    *,
    learning_rate: float = 1e-5,
    retain: Retain = "nll",
    forget_weight: float = 1.0,
    retain_weight: float = 1.0,
    optimizer: optax.GradientTransformation | None = None,
) -> Method:
    """NLL of mismatched answers: each forget prompt with the answer to another one, plus a retain term.

    Args:
        learning_rate: of AdamW without weight decay, when `optimizer` is not given.
        retain: the retain term, "nll", "kl", "kl_all_positions", "answer" or "none".
        forget_weight: of the forget term.
        retain_weight: of the retain term.
        optimizer: any optax transformation.

    Reference: Golatkar et al., "Eternal sunshine of the spotless net", CVPR 2020; Yao et al., "Machine unlearning of
    pre-trained large language models", ACL 2024.
    """
    return _relabelled(
        "random_label", NLL("alternative"), "mismatched", learning_rate, retain, forget_weight, retain_weight, optimizer
    )


def adversarial_label(
    *,
    learning_rate: float = 1e-5,
    retain: Retain = "nll",
    forget_weight: float = 1.0,
    retain_weight: float = 1.0,
    optimizer: optax.GradientTransformation | None = None,
) -> Method:
    """NLL of the token that the original model found likeliest after the true one, plus a retain term.

    Args:
        learning_rate: of AdamW without weight decay, when `optimizer` is not given.
        retain: the retain term, "nll", "kl", "kl_all_positions", "answer" or "none".
        forget_weight: of the forget term.
        retain_weight: of the retain term.
        optimizer: any optax transformation.

    Reference: Yao et al., "Machine unlearning of pre-trained large language models", ACL 2024.
    """
    return _relabelled(
        "adversarial_label", AdversarialNLL(), None, learning_rate, retain, forget_weight, retain_weight, optimizer
    )


def _relabelled(
    name, term: Term, alternative, learning_rate, retain, forget_weight, retain_weight, optimizer
) -> Method:
    forget, kept = ((forget_weight, term),), keep(name, retain, retain_weight)
    return first_order(name, forget, kept, learning_rate=learning_rate, optimizer=optimizer, alternative=alternative)
