"""Suppression terms: push the true token below the others, by what the model itself says about those.

No reference answer is matched: the target is read off the logits at hand (or, for `AdversarialNLL`, off those of the
original model). Below, z are the logits at a loss token, p = softmax(z), t the true token:

    AdversarialNLL     -log p_a,  a = the original model's likeliest token other than t
    CrossEntropyUnlearning    cross-entropy of p to softmax(z with z_t = -inf), the target a constant
    InvertedHinge      max(0, 1 + p_t - max_{v != t} p_v)
    LogitFlattening    (max_v z_v - mean_v z_v)^2
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxunlearn import losses
from jaxunlearn.objectives.objective import stored
from jaxunlearn.types import Model, Params, Predictions, TopK, UnlearnBatch


@dataclass(frozen=True)
class AdversarialNLL:
    """NLL of the token that the original model found likeliest after the true one.

    The wrong labels are read off the stored distribution, so they stay the same while the model changes.

    Reference: Yao et al., "Machine unlearning of pre-trained large language models", ACL 2024 (adversarial samples).
    """

    needs: ClassVar[tuple[str, ...]] = ("forget_top",)

    def rows(self, batch: UnlearnBatch) -> dict:
        remedy = "store objectives.reference.top_with_target(model, original_params, forget) beforehand"
        return {"data": batch.forget, "top": stored(batch, "forget_top", remedy)}

    def total(self, model: Model, params: Params, rows: dict) -> tuple[Array, Array]:
        if rows["top"].ids.shape[-1] < 2:
            raise ValueError("reference.forget_top holds 1 class a place: store at least 2, the true one and another")

        def sums(predictions: Predictions, top: TopK) -> tuple[Array, Array]:
            others = jnp.where(top.ids == predictions.targets[..., None], -jnp.inf, top.log_probs)
            best = others >= jnp.max(others, axis=-1, keepdims=True)
            wrong = jnp.min(jnp.where(best, top.ids, jnp.iinfo(top.ids.dtype).max), axis=-1)
            weights = predictions.weights * top.weights
            return jnp.sum(weights * losses.token_nll(predictions._replace(targets=wrong))), jnp.sum(weights)

        return losses.over_places(sums, model, params, rows["data"], rows["top"])


@dataclass(frozen=True)
class CrossEntropyUnlearning:
    """CE-U: cross-entropy to the model's own answer without the true token, `softmax(stopgrad(z), z_t = -inf)`.

    The gradient of a logit v other than t is `p_v - p_v / (1 - p_t)`, and `p_t` for the true one: bounded, and zero
    once the token is forgotten.

    Reference: Yang, "CE-U: cross entropy unlearning", arXiv 2503.01224, 2025.
    """

    def rows(self, batch: UnlearnBatch) -> dict:
        return {"data": batch.forget}

    def total(self, model: Model, params: Params, rows: dict) -> tuple[Array, Array]:
        def place(predictions: Predictions) -> Array:
            logp = losses.log_probs(predictions)
            target = jax.nn.softmax(jnp.where(_hit(predictions), -jnp.inf, jax.lax.stop_gradient(logp)), axis=-1)
            return -jnp.sum(target * logp, axis=-1)

        return _mean_over(place, model, params, rows)


@dataclass(frozen=True)
class InvertedHinge:
    """`max(0, 1 + p_t - max_{v != t} p_v)`: lower the true token by raising only its closest competitor.

    Differences of probabilities are at least -1, so the hinge never closes; ascent on the NLL, in contrast, raises
    every other token of the vocabulary at once.

    Reference: Cha et al., "Towards robust and parameter-efficient knowledge unlearning for LLMs" (LoKU), ICLR 2025.
    """

    def rows(self, batch: UnlearnBatch) -> dict:
        return {"data": batch.forget}

    def total(self, model: Model, params: Params, rows: dict) -> tuple[Array, Array]:
        def place(predictions: Predictions) -> Array:
            p, hit = jnp.exp(losses.log_probs(predictions)), _hit(predictions)
            true = jnp.sum(jnp.where(hit, p, 0.0), axis=-1)
            return jnp.maximum(0.0, 1.0 + true - jnp.max(jnp.where(hit, -jnp.inf, p), axis=-1))

        return _mean_over(place, model, params, rows)


@dataclass(frozen=True)
class LogitFlattening:
    """`(max_v z_v - mean_v z_v)^2`: no token above the average, whatever the true one is.

    Zero exactly where the answer is uniform, as for `MaxEntropy`, but quadratic in the logits: its gradient does not
    fade on a model that is certain.

    Reference: Entesari et al., "Constrained entropic unlearning: a primal-dual framework for large language models",
    NeurIPS 2025.
    """

    def rows(self, batch: UnlearnBatch) -> dict:
        return {"data": batch.forget}

    def total(self, model: Model, params: Params, rows: dict) -> tuple[Array, Array]:
        def place(predictions: Predictions) -> Array:
            logits = predictions.logits.astype(jnp.promote_types(predictions.logits.dtype, jnp.float32))
            return (jnp.max(logits, axis=-1) - jnp.mean(logits, axis=-1)) ** 2

        return _mean_over(place, model, params, rows)


def _hit(predictions: Predictions) -> Bool[Array, "B P V"]:
    classes = jnp.arange(predictions.logits.shape[-1], dtype=predictions.targets.dtype)
    return classes == predictions.targets[..., None]


def _mean_over(place, model: Model, params: Params, rows: dict) -> tuple[Float[Array, ""], Float[Array, ""]]:
    def sums(predictions: Predictions) -> tuple[Array, Array]:
        return jnp.sum(predictions.weights * place(predictions)), jnp.sum(predictions.weights)

    return losses.over_places(sums, model, params, rows["data"])
