"""Distribution recipes: change what the model says at the loss tokens of forget, as a distribution over tokens."""

from jaxunlearn.methods.first_order import recipe
from jaxunlearn.objectives import (
    UNDIAL,
    CounterfactualKL,
    CrossEntropyUnlearning,
    Divergence,
    InvertedHinge,
    MaxEntropy,
    Term,
)


@recipe()
def matching(*, divergence: Divergence = "jeffreys") -> Term:
    """The objective of `counterfactual_matching` under AdamW: its divergence from q on forget plus a retain term.

    q is the original model's mean answer to the same prompts with the entity replaced by unseen ones. The objective has
    a minimum where the model behaves as if it had never heard of the entity, and the run may stay there.

    Args:
        divergence: forward (`KL(q || p)`, as published), reverse (`KL(p || q)`) or jeffreys, their mean.

    Reference: Liu et al., "Revisiting Who's Harry Potter: towards targeted unlearning from a causal intervention
    perspective", EMNLP 2024; to charge both directions is ours.
    """
    return CounterfactualKL(divergence)


@recipe(learning_rate=1e-4, retain="none")
def undial(*, strength: float = 10.0) -> Term:
    """Self-distillation to `softmax(z_ref - strength onehot(label))`: cross-entropy on the loss tokens of forget.

    Args:
        strength: nats by which the true token's logit is lowered in the teacher.

    Reference: Dong et al., "UNDIAL: self-distillation with adjusted logits for robust unlearning in large language
    models", NAACL 2025.
    """
    return UNDIAL(strength)


@recipe(retain="answer")
def max_entropy() -> Term:
    """`KL(uniform || p)` on forget, and on retain the answer preferred over a refusal (answer preservation).

    Reference: Yuan et al., "A closer look at machine unlearning for large language models", ICLR 2025.
    """
    return MaxEntropy()


@recipe(retain="none")
def ce_u() -> Term:
    """Cross-entropy to the model's own answer without the true token, `softmax(stopgrad(z), true logit = -inf)`.

    Reference: Yang, "CE-U: cross entropy unlearning", arXiv 2503.01224, 2025.
    """
    return CrossEntropyUnlearning()


@recipe()
def inverted_hinge() -> Term:
    """`mean max(0, 1 + p_t - max_{v != t} p_v)` on forget plus a retain term: the loss of LoKU.

    Reference: Cha et al., "Towards robust and parameter-efficient knowledge unlearning for LLMs", ICLR 2025; there it
    trains low-rank adapters of rank 32.
    """
    return InvertedHinge()
