"""Counterfactual answers pushed away from what the model says of the entity itself.

A counterfactual answer is what the model says once the entity is replaced. Where a record was learned by heart, its
question or the answer so far gives the rest away whoever is named, and a model that matches such answers still knows
the record. What the entity adds shows the way on: a class that its own answer p makes likelier than q does loses that
difference once more, `alpha` times; the others only share what becomes free,

    log q'(v) = log q(v) - alpha max(0, log p(v) - log q(v)) + const.

That is the generic prediction of Eldan & Russinovich 2023 ("Who's Harry Potter? Approximate unlearning in LLMs",
v_generic = v_baseline - alpha ReLU(v_reinforced - v_baseline)) with both models the same one, asked about a stranger
(baseline) and about the entity (reinforced). They choose alpha by hand; text of the same kind that the model never saw
says how surprising the answers should be, and with that `alpha_for` finds it.

Stored answers lie on the host, and so does all of this.
"""

import numpy as np
from jaxtyping import Float

from jaxunlearn.types import TopK

MOST = 64.0
"""Where `alpha_for` gives up: q' then is q without what the entity itself makes any likelier."""


def generic(q: TopK, own: Float[np.ndarray, "B P K"], alpha: float) -> TopK:
    """q', the answers `q` pushed away from `own` (module docstring); the rest of the mass counts as one class.

    Args:
        q: counterfactual answers.
        own: log-probabilities of the classes `q.ids` when asked about the entity itself, nats.
        alpha: how far, 0 for `q` itself.

    Example:
        >>> half = TopK(np.array([[[0, 1]]]), np.log([[[0.5, 0.5]]]), np.ones((1, 1)))
        >>> own = np.log([[[0.9, 0.1]]])  # the entity makes class 0 likelier: its odds fall by 1.8
        >>> np.exp(generic(half, own, 1.0).log_probs).round(3).tolist()
        [[[0.357, 0.643]]]
    """
    from scipy.special import log_softmax

    kept = np.asarray(q.log_probs)
    log_q, log_p = (np.concatenate([x, _rest(x)], axis=-1) for x in (kept, own))
    pushed = log_q - alpha * np.maximum(log_p - log_q, 0.0)
    return q._replace(log_probs=log_softmax(pushed, axis=-1)[..., :-1].astype(kept.dtype))


def true_nll(answers: TopK) -> float | None:
    """Mean NLL of the classes that come first, which in counterfactual answers are the true ones, nats per token; None
    where there are no answers."""
    count = answers.weights.sum()
    return float(-(answers.weights * answers.log_probs[..., 0]).sum() / count) if count > 0 else None


def alpha_for(q: TopK, own: Float[np.ndarray, "B P K"], nll: float) -> float:
    """The least alpha with which the true classes lose `nll` nats per token: 0 where they do already, at most 64.

    At single places the loss may fall as well, where the entity makes other classes likelier than the true one. So
    alpha is doubled until it is enough, and then bisected, to a thousandth.

    Example:
        >>> half = TopK(np.array([[[0, 1]]]), np.log([[[0.5, 0.5]]]), np.ones((1, 1)))
        >>> own = np.log([[[0.9, 0.1]]])
        >>> round(alpha_for(half, own, 2.0), 1), alpha_for(half, own, 0.5)
        (3.2, 0.0)
    """

    def enough(alpha: float) -> bool:
        loss = true_nll(generic(q, own, alpha))
        return loss is None or loss >= nll

    if enough(0.0):
        return 0.0
    low, high = 0.0, 0.5
    while not enough(high):
        if high >= MOST:
            return MOST
        low, high = high, 2.0 * high
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _rest(log_probs: Float[np.ndarray, "B P K"]) -> Float[np.ndarray, "B P 1"]:
    """Log of the mass of all other classes; where rounding leaves none, as good as none."""
    from scipy.special import logsumexp

    mass = -np.expm1(logsumexp(log_probs, axis=-1, keepdims=True))
    return np.log(np.maximum(mass, 1e-30))
