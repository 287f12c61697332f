"""Relabelling recipes: fine-tune on another answer to the same prompt. Descent, so each ends by itself."""

from jaxunlearn.methods.first_order import recipe
from jaxunlearn.objectives import NLL, AdversarialNLL, Term


@recipe(alternative="refusal")
def refusal() -> Term:
    """NLL of a refusal on the forget prompts (preference optimisation, "I don't know"), plus a retain term.

    Refusals are drawn from a built-in list, unless a record brings its own `alternative`. With `retain="answer"` it is
    IDK + AP (Yuan et al., ICLR 2025).

    Reference: Maini et al., "TOFU: a task of fictitious unlearning for LLMs", COLM 2024.
    """
    return NLL("alternative")


@recipe(alternative="mismatched")
def random_label() -> Term:
    """NLL of mismatched answers: each forget prompt with the answer to another one, plus a retain term.

    Reference: Golatkar et al., "Eternal sunshine of the spotless net", CVPR 2020; Yao et al., "Machine unlearning of
    pre-trained large language models", ACL 2024.
    """
    return NLL("alternative")


@recipe()
def adversarial_label() -> Term:
    """NLL of the token that the original model found likeliest after the true one, plus a retain term.

    Reference: Yao et al., "Machine unlearning of pre-trained large language models", ACL 2024.
    """
    return AdversarialNLL()
