"""Distribution recipes: change what the model says at the loss tokens of forget, as a distribution over tokens."""

import optax

from jaxunlearn.methods.first_order import Retain, first_order, keep
from jaxunlearn.methods.method import Method
from jaxunlearn.objectives import UNDIAL, CrossEntropyUnlearning, InvertedHinge, MaxEntropy


def undial(
    *,
    strength: float = 10.0,
    learning_rate: float = 1e-4,
    retain: Retain = "none",
    forget_weight: float = 1.0,
    retain_weight: float = 1.0,
    optimizer: optax.GradientTransformation | None = None,
) -> Method:
    """Self-distillation to `softmax(z_ref - strength onehot(label))`: cross-entropy on the loss tokens of forget.

    Args:
        strength: nats by which the true token's logit is lowered in the teacher.
        learning_rate: of AdamW without weight decay, when `optimizer` is not given.
        retain: the retain term, "none" as published, "nll", "kl", "kl_all_positions" or "answer".
        forget_weight: of the forget term.
        retain_weight: of the retain term.
        optimizer: any optax transformation.

    Reference: Dong et al., "UNDIAL: self-distillation with adjusted logits for robust unlearning in large language
    models", NAACL 2025.
    """
    forget, kept = ((forget_weight, UNDIAL(strength)),), keep("undial", retain, retain_weight)
    return first_order("undial", forget, kept, learning_rate=learning_rate, optimizer=optimizer)


def max_entropy(
    *,
    learning_rate: float = 1e-5,
    retain: Retain = "answer",
    forget_weight: float = 1.0,
    retain_weight: float = 1.0,
    optimizer: optax.GradientTransformation | None = None,
) -> Method:
    """`KL(uniform || p)` on forget, and on retain the answer preferred over a refusal (answer preservation).

    Args:
        learning_rate: of AdamW without weight decay, when `optimizer` is not given.
        retain: the retain term, "answer", "nll", "kl", "kl_all_positions" or "none".
        forget_weight: of the forget term.
        retain_weight: of the retain term.
        optimizer: any optax transformation.

    Reference: Yuan et al., "A closer look at machine unlearning for large language models", ICLR 2025.
    """
    forget, kept = ((forget_weight, MaxEntropy()),), keep("max_entropy", retain, retain_weight)
    return first_order("max_entropy", forget, kept, learning_rate=learning_rate, optimizer=optimizer)


def ce_u(
    *,
    learning_rate: float = 1e-5,
    retain: Retain = "none",
    forget_weight: float = 1.0,
    retain_weight: float = 1.0,
    optimizer: optax.GradientTransformation | None = None,
) -> Method:
    """Cross-entropy to the model's own answer without the true token, `softmax(stopgrad(z), true logit = -inf)`.

    Args:
        learning_rate: of AdamW without weight decay, when `optimizer` is not given.
        retain: the retain term, "none" as published, "nll", "kl", "kl_all_positions" or "answer".
        forget_weight: of the forget term.
        retain_weight: of the retain term.
        optimizer: any optax transformation.

    Reference: Yang, "CE-U: cross entropy unlearning", arXiv 2503.01224, 2025.
    """
    forget, kept = ((forget_weight, CrossEntropyUnlearning()),), keep("ce_u", retain, retain_weight)
    return first_order("ce_u", forget, kept, learning_rate=learning_rate, optimizer=optimizer)


def inverted_hinge(
    *,
    learning_rate: float = 1e-5,
    retain: Retain = "nll",
    forget_weight: float = 1.0,
    retain_weight: float = 1.0,
    optimizer: optax.GradientTransformation | None = None,
) -> Method:
    """`mean max(0, 1 + p_t - max_{v != t} p_v)` on forget plus a retain term: the loss of LoKU.

    Args:
        learning_rate: of AdamW without weight decay, when `optimizer` is not given.
        retain: the retain term, "nll", "kl", "kl_all_positions", "answer" or "none".
        forget_weight: of the forget term.
        retain_weight: of the retain term.
        optimizer: any optax transformation.

    Reference: Cha et al., "Towards robust and parameter-efficient knowledge unlearning for LLMs", ICLR 2025; there it
    trains low-rank adapters of rank 32.
    """
    forget, kept = ((forget_weight, InvertedHinge()),), keep("inverted_hinge", retain, retain_weight)
    return first_order("inverted_hinge", forget, kept, learning_rate=learning_rate, optimizer=optimizer)
