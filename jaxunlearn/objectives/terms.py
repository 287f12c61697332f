"""The forget and retain terms of this release. `b` below is a Python name for beta; all values are in nats."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxunlearn import losses
from jaxunlearn.objectives.objective import need
from jaxunlearn.types import Model, Params, UnlearnBatch

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
class NPO:
    """Negative preference optimisation: `-(2/b) mean_i log s(b (NLL_i - NLL_i^ref))`, sequence sums.

    The gradient of example i is that of `-2 NLL_i s(-b (NLL_i - NLL_i^ref))`: ascent that fades once the example is
    much less likely than it was. Needs `reference.forget_nll`, stored once; no second model.

    Reference: Zhang et al., "Negative preference optimization", COLM 2024.
    """

    beta: float = 0.1

    def __post_init__(self):
        if not self.beta > 0:
            raise ValueError(f"NPO(beta={self.beta}): beta must be positive")

    def rows(self, batch: UnlearnBatch) -> dict:
        stored = None if batch.reference is None else batch.reference.forget_nll
        remedy = "store objectives.reference.forget_nll(model, original_params, forget) beforehand"
        return {"data": batch.forget, "nll": need(stored, "reference.forget_nll", remedy)}

    def total(self, model: Model, params: Params, rows: dict) -> tuple[Array, Array]:
        sums, counts = losses.example_nll(model, params, rows["data"])
        real = (counts > 0).astype(sums.dtype)
        values = -(2.0 / self.beta) * jax.nn.log_sigmoid(self.beta * (sums - rows["nll"]))
        return jnp.sum(real * values), jnp.sum(real)


@dataclass(frozen=True)
class KLRetain:
    """`KL(ref || current)` over the loss tokens of retain, ref stored as top-k log-probabilities."""

    def rows(self, batch: UnlearnBatch) -> dict:
        stored = None if batch.reference is None else batch.reference.retain_top
        remedy = "store objectives.reference.top(model, original_params, retain) beforehand"
        data = need(batch.retain, "retain", "pass retain examples in every batch")
        return {"data": data, "top": need(stored, "reference.retain_top", remedy)}

    def total(self, model: Model, params: Params, rows: dict) -> tuple[Array, Array]:
        return losses.kl_from_top(rows["top"], rows["data"].predict(model, params))


@dataclass(frozen=True)
class CounterfactualKL:
    """`KL(q || p)` on forget, q = the original model's mean answer when the entity is replaced by unseen ones.

    Its minimum is the answer of a model that has never heard of the entity, so the objective knows where to stop:
    no ascent objective does. q is stored once, sparse (`reference.counterfactual_top`).

    After Liu et al., "Revisiting Who's Harry Potter: towards targeted unlearning from a causal intervention
    perspective", EMNLP 2024.
    """

    def rows(self, batch: UnlearnBatch) -> dict:
        stored = None if batch.reference is None else batch.reference.counterfactual_top
        remedy = "store objectives.reference.counterfactual_top(...) of the original model beforehand"
        return {"data": batch.forget, "top": need(stored, "reference.counterfactual_top", remedy)}

    def total(self, model: Model, params: Params, rows: dict) -> tuple[Array, Array]:
        return losses.kl_from_top(rows["top"], rows["data"].predict(model, params))
