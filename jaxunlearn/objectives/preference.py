"""Preference terms: a logistic loss of how far one answer's likelihood lies from another's, or from what it was.

All have the form `-(c/b) mean_i log s(b margin_i)`, s the logistic function and b the inverse temperature (`beta`):
linear in the margin while it is negative, fading exponentially once it is large, so that an example stops pushing
when it is forgotten. They differ in the margin, written with NLL_i, the sum over the loss tokens of example i, and
n_i, their number:

    NPO      NLL_i - NLL_i^ref                                        forget against what it was
    SimNPO   NLL_i / n_i - delta                                      forget, by length, no reference
    DPO      (NLL_i - NLL_i^ref) - (NLL_a - NLL_a^ref)                an alternative answer a against the forget answer
    AP       NLL_refusal - NLL_i, on retain                           the answer against a refusal

The original model's NLL^ref are stored numbers; there is no second model.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn import losses
from jaxunlearn.objectives.objective import need, stored
from jaxunlearn.types import Model, Params, UnlearnBatch

_NLL = "store objectives.reference.sequence_nll(model, original_params, {}) beforehand"


@dataclass(frozen=True)
class NPO:
    """Negative preference optimisation: `-(2/b) mean_i log s(b (NLL_i - NLL_i^ref))`, sequence sums.

    The gradient of example i is that of `-2 NLL_i s(-b (NLL_i - NLL_i^ref))`: ascent that fades once the example is
    much less likely than it was. Needs `reference.forget_nll`, stored once; no second model.

    Reference: Zhang et al., "Negative preference optimization", COLM 2024.
    """

    beta: float = 0.1
    needs: ClassVar[tuple[str, ...]] = ("forget_nll",)

    def __post_init__(self):
        _positive(self)

    def rows(self, batch: UnlearnBatch) -> dict:
        return {"data": batch.forget, "nll": stored(batch, "forget_nll", _NLL.format("forget"))}

    def total(self, model: Model, params: Params, rows: dict) -> tuple[Array, Array]:
        sums, counts = losses.example_nll(model, params, rows["data"])
        return _logistic(2.0, self.beta, sums - rows["nll"], counts > 0)


@dataclass(frozen=True)
class SimNPO:
    """NPO by length and without a reference: `-(2/b) mean_i log s(b (NLL_i / n_i - delta))`.

    Args:
        beta: b, inverse temperature per nat and token.
        delta: margin, nats per loss token: ascent is strong below it and fades above.

    Reference: Fan et al., "Simplicity prevails: rethinking negative preference optimization for LLM unlearning",
    NeurIPS 2025.
    """

    beta: float = 4.5
    delta: float = 0.0

    def __post_init__(self):
        _positive(self)

    def rows(self, batch: UnlearnBatch) -> dict:
        return {"data": batch.forget}

    def total(self, model: Model, params: Params, rows: dict) -> tuple[Array, Array]:
        sums, counts = losses.example_nll(model, params, rows["data"])
        return _logistic(2.0, self.beta, sums / jnp.maximum(counts, 1e-9) - self.delta, counts > 0)


@dataclass(frozen=True)
class DPO:
    """Direct preference for an alternative answer over the one to forget.

    `-(2/b) mean_i log s(b [(NLL_i - NLL_i^ref)(forget) - (NLL_i - NLL_i^ref)(alternative)])`. The alternative is a
    refusal, another plausible answer, or whatever `UnlearnBatch.alternative` holds.

    Reference: Rafailov et al., "Direct preference optimization", NeurIPS 2023; Zhang et al., "Negative preference
    optimization", COLM 2024, for its use in unlearning.
    """

    beta: float = 0.1
    needs: ClassVar[tuple[str, ...]] = ("forget_nll", "alternative_nll")

    def __post_init__(self):
        _positive(self)

    def rows(self, batch: UnlearnBatch) -> dict:
        remedy = "pass the forget prompts with other answers in every batch"
        return {
            "forget": batch.forget,
            "alternative": need(batch.alternative, "alternative", remedy),
            "forget_nll": stored(batch, "forget_nll", _NLL.format("forget")),
            "alternative_nll": stored(batch, "alternative_nll", _NLL.format("alternative")),
        }

    def total(self, model: Model, params: Params, rows: dict) -> tuple[Array, Array]:
        forget, n = losses.example_nll(model, params, rows["forget"])
        other, m = losses.example_nll(model, params, rows["alternative"])
        margin = (forget - rows["forget_nll"]) - (other - rows["alternative_nll"])
        return _logistic(2.0, self.beta, margin, (n > 0) & (m > 0))


@dataclass(frozen=True)
class AnswerPreservation:
    """Keep answering: `-(1/b) mean_i log s(b (NLL_i(refusal) - NLL_i(answer)))` on retain, sequence sums.

    A model taught to refuse, or to say nothing in particular, about some questions does so about all of them unless
    it is told that elsewhere the answer is better than the refusal.

    Reference: Yuan et al., "A closer look at machine unlearning for large language models", ICLR 2025.
    """

    beta: float = 0.1
    needs: ClassVar[tuple[str, ...]] = ("retain_alternative",)

    def __post_init__(self):
        _positive(self)

    def rows(self, batch: UnlearnBatch) -> dict:
        refused = "pass the retain prompts with refusals as answers in every batch"
        return {
            "answer": need(batch.retain, "retain", "pass retain examples in every batch"),
            "refusal": need(batch.retain_alternative, "retain_alternative", refused),
        }

    def total(self, model: Model, params: Params, rows: dict) -> tuple[Array, Array]:
        answer, n = losses.example_nll(model, params, rows["answer"])
        refusal, m = losses.example_nll(model, params, rows["refusal"])
        return _logistic(1.0, self.beta, refusal - answer, (n > 0) & (m > 0))


def _logistic(
    c: float, beta: float, margin: Float[Array, " B"], real: Array
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`-(c/b) log s(b margin)` summed over the examples that are real, and their number."""
    real = real.astype(margin.dtype)
    return jnp.sum(real * (-c / beta) * jax.nn.log_sigmoid(beta * margin)), jnp.sum(real)


def _positive(term: NPO | SimNPO | DPO | AnswerPreservation) -> None:
    if not term.beta > 0:
        raise ValueError(f"{type(term).__name__}(beta={term.beta}): beta must be positive")
