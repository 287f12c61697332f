"""ULD: train a small assistant on the opposite of unlearning, to recall what is to be forgotten and nothing else.

    CE_f + weight KL_r(uniform || p)

Both terms have a minimum, which an ascent has not. The assistant is a model of its own, by default the lowest layers of
the one that is to forget (`models.truncate_layers`). That one is never changed: `models.uld` takes the assistant's
logits off its own while it is asked.

Reference: Ji et al., "Reversing the forget-retain objectives: an efficient LLM unlearning framework from logit
difference", NeurIPS 2024.
"""

import optax

from jaxunlearn.methods.first_order import first_order
from jaxunlearn.methods.method import Method
from jaxunlearn.objectives import NLL, MaxEntropy


def uld_assistant(
    *,
    learning_rate: float = 1e-3,
    forget_weight: float = 1.0,
    uniform_weight: float = 5.0,
    optimizer: optax.GradientTransformation | None = None,
) -> Method:
    """Train an assistant for `models.uld`: cross-entropy on forget, uniform answers on retain.

    What it trains is *not* a model that has forgotten; take a step on the assistant's model and parameters:

        small, start = models.truncate_layers(model, params, 8)
        state = init(uld_assistant(), small, jax.tree.map(jnp.copy, start), key=key)
        ...
        forgetful, both = models.uld(model, small), (params, state.params)

    Args:
        learning_rate: of AdamW without weight decay, when `optimizer` is not given.
        forget_weight: of the cross-entropy on forget.
        uniform_weight: of `KL_r(uniform || p)`.
        optimizer: any optax transformation.

    Reference: Ji et al., NeurIPS 2024.

    Example:
        >>> uld_assistant().objective.terms
        ((1.0, NLL(on='forget')), (5.0, MaxEntropy(on='retain')))
    """
    forget, kept = ((forget_weight, NLL("forget")),), ((uniform_weight, MaxEntropy("retain")),)
    return first_order("uld_assistant", forget, kept, learning_rate=learning_rate, optimizer=optimizer)
