"""Likelihood terms: how probable the tokens that were really there are.

Raising the negative log-likelihood of what must be forgotten is the oldest way to forget. Its gradient at a token is
the gradient of the logits times `p - onehot`, which does not fade: a token that is as good as forgotten is pushed as
hard as ever, and the model is destroyed. Weighting each token by its own probability, taken as a constant,

    -mean_t w(p_t) (-log p_t),   w(p) = p^b1 (1 - p)^b2,

lets the push fade with the probability (b1: saturation) and spares tokens that are certain anyway (b2: importance).
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxunlearn import losses
from jaxunlearn.objectives.objective import need
from jaxunlearn.types import Model, Params, Predictions, UnlearnBatch

Part = Literal["forget", "retain", "alternative"]


@dataclass(frozen=True)
class NLL:
    """Mean negative log-likelihood of one part of the batch. With weight -1 on forget it is gradient ascent."""

    on: Part = "forget"

    def __post_init__(self):
        if self.on not in ("forget", "retain", "alternative"):
            raise ValueError(f"NLL(on={self.on!r}): choose 'forget', 'retain' or 'alternative'")

    def rows(self, batch: UnlearnBatch) -> dict:
        return {"data": need(getattr(batch, self.on), self.on, f"pass {self.on} examples in every batch")}

    def total(self, model: Model, params: Params, rows: dict) -> tuple[Array, Array]:
        return losses.nll(model, params, rows["data"])


@dataclass(frozen=True)
class WeightedAscent:
    """Ascent that fades: `-mean_t p_t^saturation (1 - p_t)^importance (-log p_t)` on forget, the weights constants.

    `importance = 0` is weighted gradient ascent (WGA); both positive is SatImp.

    Args:
        saturation: b1 >= 0; 0 never fades.
        importance: b2 >= 0; 0 treats certain tokens like any other.

    Reference: Wang et al., "Rethinking LLM unlearning objectives: a gradient perspective and go beyond", ICLR 2025
    (WGA); Yang et al., "Exploring criteria of loss reweighting to enhance LLM unlearning", ICML 2025 (SatImp).

    Example:
        >>> from jaxunlearn.types import LabelledBatch
        >>> model = Model(logits=lambda w, x: x @ w)  # all logits 0: p = 1/2
        >>> batch = UnlearnBatch(LabelledBatch(jnp.ones((4, 3)), jnp.zeros(4, jnp.int32)))
        >>> term = WeightedAscent(saturation=1.0)
        >>> total, count = term.total(model, jnp.zeros((3, 2)), term.rows(batch))
        >>> round(float(total / count), 4)  # -log(2) / 2
        -0.3466
    """

    saturation: float = 1.0
    importance: float = 0.0

    def __post_init__(self):
        for name in ("saturation", "importance"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"WeightedAscent({name}={getattr(self, name)}): exponents must be at least 0")

    def rows(self, batch: UnlearnBatch) -> dict:
        return {"data": batch.forget}

    def total(self, model: Model, params: Params, rows: dict) -> tuple[Array, Array]:
        def sums(predictions: Predictions) -> tuple[Array, Array]:
            nll = losses.token_nll(predictions)
            certain = jax.lax.stop_gradient(nll)
            weight = jnp.exp(-self.saturation * certain) * jnp.maximum(-jnp.expm1(-certain), 0.0) ** self.importance
            return -jnp.sum(predictions.weights * weight * nll), jnp.sum(predictions.weights)

        return losses.over_places(sums, model, params, rows["data"])
