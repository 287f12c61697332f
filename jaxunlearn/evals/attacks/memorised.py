"""How much of each text a model has by heart, in [0, 1], higher says more: what the robustness ratios compare.

Three measures from one scoring pass, by name: `probability` (per token, `exp(-NLL / n)`: smooth, and the only one that
sees text coming back before it is likeliest), `exact_memorisation` and `extraction_strength` (`evals.memorisation`).
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from jaxunlearn.data import Encoded
from jaxunlearn.evals.memorisation import exact_memorisation, extraction_strength
from jaxunlearn.evals.score import Scores, score
from jaxunlearn.evals.tofu import probability
from jaxunlearn.types import Model, Params

Measured = Literal["probability", "exact_memorisation", "extraction_strength"]
_MEASURES: dict[str, Callable[[Scores], np.ndarray]] = {
    "probability": lambda scores: probability(scores.nll),
    "exact_memorisation": lambda scores: exact_memorisation(scores.hits),
    "extraction_strength": lambda scores: extraction_strength(scores.hits),
}


def memorised(
    model: Model, params: Params, encoded: Sequence[Encoded], metric: Measured = "probability", **options: Any
) -> Float[np.ndarray, " N"]:
    """One measure of memorisation of each text; `options` are `batch_size`, `mesh`, `progress` of `score`.

    Errors:
        ValueError: an unknown metric, or outputs that are not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> bigram = Model(logits=lambda params, tokens: params[tokens])
        >>> text = Encoded(np.array([0, 1, 1], np.int32), np.array([0.0, 1.0, 1.0]), None, "", None)
        >>> memorised(bigram, jnp.log(jnp.array([[0.2, 0.8], [0.8, 0.2]])), [text]).round(2).tolist()
        [0.4]
    """
    if metric not in _MEASURES:
        raise ValueError(f"metric {metric!r} is no measure of memorisation; choose one of {', '.join(_MEASURES)}")
    scores = score(model, params, encoded, **options)
    if not np.all(np.isfinite(scores.nll)):
        raise ValueError(
            f"{np.sum(~np.isfinite(scores.nll))} of {len(scores)} texts have an NLL that is not finite: the model's "
            "outputs overflow or are NaN, so it has no memorisation to speak of"
        )
    return _MEASURES[metric](scores)
