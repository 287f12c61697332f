"""Distribution terms: match what the model says, at every loss token, to a distribution that is given.

    KLRetain           the original model's own answer, on retain
    KLForget           the same on forget
    CounterfactualKL   its mean answer about entities it has never heard of
    UNDIAL             its answer with the true token's logit lowered by a constant
    MaxEntropy         the uniform distribution

Unlike an ascent each has a minimum that a model can reach, and stops there; `KLForget` alone is there to be moved away
from. Stored distributions are the k likeliest classes with the rest lumped into one bucket (`TopK`): exact at k = V.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxunlearn import losses
from jaxunlearn.objectives.objective import need, stored
from jaxunlearn.types import Batch, Model, Params, Predictions, TokenBatch, TopK, UnlearnBatch

Divergence = Literal["forward", "reverse", "jeffreys"]
"""`KL(q || p)`, `KL(p || q)`, or the mean of both; q is the given distribution, p the model's."""

_FORGET_TOP = "store objectives.reference.top_with_target(model, original_params, forget) beforehand"


@dataclass(frozen=True)
class KLRetain:
    """`KL(ref || current)` over the loss tokens of retain, ref stored as top-k log-probabilities.

    Args:
        compat: `"all_positions"` averages over every place of a row (prompt, answer, padding), as the released code of
            TOFU and OpenUnlearning does; it then reads `reference.retain_top_all`.
    """

    compat: Literal["all_positions"] | None = None

    def __post_init__(self):
        if self.compat not in (None, "all_positions"):
            raise ValueError(f"KLRetain(compat={self.compat!r}): choose 'all_positions' or None")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("retain_top",) if self.compat is None else ("retain_top_all",)

    def rows(self, batch: UnlearnBatch) -> dict:
        name = "top" if self.compat is None else "top_all"
        remedy = f"store objectives.reference.{name}(model, original_params, retain) beforehand"
        data = need(batch.retain, "retain", "pass retain examples in every batch")
        return {"data": data, "top": stored(batch, *self.needs, remedy)}

    def total(self, model: Model, params: Params, rows: dict) -> tuple[Array, Array]:
        data, top = rows["data"], rows["top"]
        if self.compat is None:
            return _kl(model, params, data, top)
        if isinstance(data, TokenBatch):
            data = data._replace(positions=None)

        def sums(predictions: Predictions, top: TopK) -> tuple[Array, Array]:
            # Which places count is said by the stored distribution alone.
            return losses.kl_from_top(top, predictions._replace(weights=jnp.ones_like(predictions.weights)))

        return losses.over_places(sums, model, params, data, top)


@dataclass(frozen=True)
class KLForget:
    """`KL(ref || current)` over the loss tokens of forget. With a negative weight, the original answer is left behind.

    It has no largest value: like any ascent it needs a place to stop.
    """

    needs: ClassVar[tuple[str, ...]] = ("forget_top",)

    def rows(self, batch: UnlearnBatch) -> dict:
        return {"data": batch.forget, "top": stored(batch, "forget_top", _FORGET_TOP)}

    def total(self, model: Model, params: Params, rows: dict) -> tuple[Array, Array]:
        return _kl(model, params, rows["data"], rows["top"])


@dataclass(frozen=True)
class CounterfactualKL:
    """A divergence between p and q on forget, q = the original model's mean answer when the entity is replaced by
    unseen ones.

    Its minimum, p = q, is the answer of a model that has never heard of the entity, so the objective knows where to
    stop: no ascent objective does. q is stored once, sparse (`reference.counterfactual_top`).

    The direction decides what is seen on the way. `KL(q || p)` asks that everything a stranger's answer could be gets
    its share, and hardly minds what is left on the old answer: where q gives it nothing, half of the probability costs
    log 2 nats and a twentieth costs .05. `KL(p || q)` charges what is left by how much less q gives it.

    Args:
        divergence: `"forward"` is `KL(q || p)`, `"reverse"` is `KL(p || q)`, `"jeffreys"` their mean.

    After Liu et al., "Revisiting Who's Harry Potter: towards targeted unlearning from a causal intervention
    perspective", EMNLP 2024, where it is forward.
    """

    divergence: Divergence = "jeffreys"
    needs: ClassVar[tuple[str, ...]] = ("counterfactual_top",)

    def __post_init__(self):
        if self.divergence not in get_args(Divergence):
            raise ValueError(f"CounterfactualKL({self.divergence!r}): choose 'forward', 'reverse' or 'jeffreys'")

    def rows(self, batch: UnlearnBatch) -> dict:
        remedy = "store objectives.reference.counterfactual_top(...) of the original model beforehand"
        return {"data": batch.forget, "top": stored(batch, "counterfactual_top", remedy)}

    def total(self, model: Model, params: Params, rows: dict) -> tuple[Array, Array]:
        def sums(predictions: Predictions, top: TopK) -> tuple[Array, Array]:
            one_way = {"forward": losses.kl_from_top, "reverse": losses.reverse_kl_from_top}
            if self.divergence in one_way:
                return one_way[self.divergence](top, predictions)
            (there, count), (back, _) = (kl(top, predictions) for kl in one_way.values())
            return 0.5 * (there + back), count

        return losses.over_places(sums, model, params, rows["data"], rows["top"])


@dataclass(frozen=True)
class UNDIAL:
    """Self-distillation on adjusted logits: cross-entropy to `q = softmax(z_ref - b onehot(label))` on forget.

    The original model is its own teacher, the true token's logit lowered by b: the other tokens keep their
    proportions, so the answer stays fluent while the memorised token fades by a chosen amount.

    Args:
        strength: b, nats, by which the true token's logit is lowered.

    Reference: Dong et al., "UNDIAL: self-distillation with adjusted logits for robust unlearning in large language
    models", NAACL 2025.
    """

    strength: float = 10.0
    needs: ClassVar[tuple[str, ...]] = ("forget_top",)

    def __post_init__(self):
        if not self.strength > 0:
            raise ValueError(f"UNDIAL(strength={self.strength}): the logit is lowered by a positive number of nats")

    def rows(self, batch: UnlearnBatch) -> dict:
        return {"data": batch.forget, "top": stored(batch, "forget_top", _FORGET_TOP)}

    def total(self, model: Model, params: Params, rows: dict) -> tuple[Array, Array]:
        def sums(predictions: Predictions, top: TopK) -> tuple[Array, Array]:
            teacher = self._teacher(predictions, top)
            kl, count = losses.kl_from_top(teacher, predictions)
            return kl + jnp.sum(predictions.weights * top.weights * _entropy(teacher, predictions)), count

        return losses.over_places(sums, model, params, rows["data"], rows["top"])

    def _teacher(self, predictions: Predictions, top: TopK) -> TopK:
        """q over the stored classes, the true one among them; the mass of the others is scaled like theirs."""
        lowered = top.log_probs - self.strength * (top.ids == predictions.targets[..., None])
        mass = jnp.sum(jnp.exp(lowered), axis=-1, keepdims=True) + _rest(top, predictions)[..., None]
        return top._replace(log_probs=lowered - jnp.log(mass))


@dataclass(frozen=True)
class MaxEntropy:
    """`KL(uniform || p)`: say nothing in particular, `-log V - mean_v log p_v` at every loss token.

    Args:
        on: "forget", or "retain" for an assistant that knows nothing but the forget set (ULD).

    Reference: Yuan et al., "A closer look at machine unlearning for large language models", ICLR 2025.
    """

    on: Literal["forget", "retain"] = "forget"

    def __post_init__(self):
        if self.on not in ("forget", "retain"):
            raise ValueError(f"MaxEntropy(on={self.on!r}): choose 'forget' or 'retain'")

    def rows(self, batch: UnlearnBatch) -> dict:
        return {"data": need(getattr(batch, self.on), self.on, f"pass {self.on} examples in every batch")}

    def total(self, model: Model, params: Params, rows: dict) -> tuple[Array, Array]:
        def sums(predictions: Predictions) -> tuple[Array, Array]:
            logp = losses.log_probs(predictions)
            kl = -jnp.log(logp.shape[-1]) - jnp.mean(logp, axis=-1)
            return jnp.sum(predictions.weights * kl), jnp.sum(predictions.weights)

        return losses.over_places(sums, model, params, rows["data"])


def _kl(model: Model, params: Params, data: Batch, top: TopK) -> tuple[Array, Array]:
    return losses.over_places(lambda p, q: losses.kl_from_top(q, p), model, params, data, top)


def _rest(top: TopK, predictions: Predictions) -> Array:
    """Mass of the classes that are not stored."""
    if top.ids.shape[-1] >= predictions.logits.shape[-1]:
        return jnp.zeros_like(top.log_probs[..., 0])
    return jnp.maximum(-jnp.expm1(jax.nn.logsumexp(top.log_probs, axis=-1)), 0.0)


def _entropy(top: TopK, predictions: Predictions) -> Array:
    """`-sum q log q`, the classes that are not stored in one bucket."""
    rest = _rest(top, predictions)
    lumped = jnp.where(rest > 0, rest * jnp.log(jnp.maximum(rest, 1e-30)), 0.0)
    return -jnp.sum(jnp.exp(top.log_probs) * top.log_probs, axis=-1) - lumped
