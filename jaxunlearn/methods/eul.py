"""EUL: unlearning layers, small and new, learn to leave the original model behind on forget and to follow it on retain.

    alpha KL_r(ref || p) - KL_f(ref || p) + lambda NLL_r - gamma NLL_f

The original model is the teacher of both divergences; its answers are stored, so that no second model is kept. Only
the new layers are trained: `models.add_unlearning_layers` puts them behind each feed-forward network, and layers of
several requests are fused in closed form by `models.fuse_unlearning_layers`.

After Chen and Yang, "Unlearn what you want to forget: efficient unlearning for LLMs", EMNLP 2023: a reconstruction for
causal models, where the language-modelling loss and the loss of the task are the same loss on different examples.
"""

import optax

from jaxunlearn.methods.first_order import first_order
from jaxunlearn.methods.method import Method
from jaxunlearn.objectives import NLL, KLForget, KLRetain


def eul(
    *,
    learning_rate: float = 5e-5,
    kl_retain_weight: float = 0.8,
    kl_forget_weight: float = 1.0,
    retain_weight: float = 1.0,
    forget_weight: float = 0.2,
    optimizer: optax.GradientTransformation | None = None,
) -> Method:
    """Follow the original model on retain and leave it on forget, in unlearning layers that are all that is trained.

    Meant for `init(..., trainable=models.is_unlearning_layer)`; the objective is the same without such layers.

    Args:
        learning_rate: of AdamW without weight decay, when `optimizer` is not given.
        kl_retain_weight: alpha, of `KL_r(ref || p)`.
        kl_forget_weight: of `-KL_f(ref || p)`.
        retain_weight: lambda, of the retain NLL.
        forget_weight: gamma, of the ascent on the forget NLL.
        optimizer: any optax transformation.

    After Chen and Yang, EMNLP 2023.

    Example:
        >>> eul().needs
        ('forget_top', 'retain_top')
    """
    forget = ((-kl_forget_weight, KLForget()), (-forget_weight, NLL("forget")))
    kept = ((kl_retain_weight, KLRetain()), (retain_weight, NLL("retain")))
    return first_order("eul", forget, kept, learning_rate=learning_rate, optimizer=optimizer)
