"""The vocabulary every floor shares: batches, predictions and the pure-function view of a model.

A loss is always a pair `(sum, count)`: a weighted sum over loss tokens (nats) and the total weight. Sums and counts
add over microbatches, devices and hosts, so gradients and curvature accumulate exactly; the one normalisation used
everywhere is `sum / count`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

Params: TypeAlias = PyTree[Array]
Key: TypeAlias = Array


class Predictions(NamedTuple):
    """What a model says at the places that carry loss.

    Attributes:
        logits: unnormalised log-probabilities, nats, shape [B, P, V].
        targets: the class or token that was really there, shape [B, P].
        weights: loss weight of each place, f32, 0 where padded, shape [B, P].
    """

    logits: Float[Array, "B P V"]
    targets: Int[Array, "B P"]
    weights: Float[Array, "B P"]


class Places(NamedTuple):
    """What the head of a model is applied to: hidden states at the places that may carry loss.

    Attributes:
        hidden: normalised inputs of the head, shape [B, P, D].
        targets: the token that was really there, shape [B, P].
        weights: loss weight of each place, f32, 0 where there is none, shape [B, P].
    """

    hidden: Float[Array, "B P D"]
    targets: Int[Array, "B P"]
    weights: Float[Array, "B P"]


class Model(NamedTuple):
    """A model as pure functions of its parameters; hashable, so it can be a static argument of `jax.jit`.

    Attributes:
        logits: `(params, inputs) -> [B, T, V]`, or `[B, V]` for a classifier used with `LabelledBatch`.
        hidden: optional `(params, inputs, layer) -> [B, T, D]`, the residual stream after `layer` layers
            (`None`: the normalised input of the head).
        logits_at: optional `(params, tokens, positions) -> [B, P, V]`, equal to `logits` gathered at `positions`
            but applying the head to those places only.
        head: optional `(params, hidden [B, P, D]) -> [B, P, V]`, so that `logits` is `head` of `hidden`; losses and
            curvature then never hold more than `head_rows` rows of logits.
        head_rows: most rows (examples times places) that the head is applied to at once; `None` means all.
        source: whatever `save` needs to write the model back (hashable; `None` for a hand-written model).
        packs: whether the functions take `packed.PackedTokens` for token ids and keep the records of a row apart.
    """

    logits: Callable[..., Array]
    hidden: Callable[..., Array] | None = None
    logits_at: Callable[..., Array] | None = None
    head: Callable[..., Array] | None = None
    head_rows: int | None = None
    source: Any = None
    packs: bool = False


class Batch(Protocol):
    """A set of examples that knows how to ask a model for its predictions; leaves have the example axis first."""

    def predict(self, model: Model, params: Params) -> Predictions: ...


class TokenBatch(NamedTuple):
    """Right-padded token sequences for a causal language model.

    Attributes:
        tokens: token ids, int32, shape [B, T].
        loss_mask: `loss_mask[b, t]` weights predicting `tokens[b, t]` from what precedes it; column 0 must be 0.
        positions: optional index, int32 [B, P], of the places with loss in each row, padded with 0. The head is
            then applied to P places instead of T.

    Example:
        >>> import jax.numpy as jnp
        >>> batch = TokenBatch(jnp.array([[5, 6, 7, 0]]), jnp.array([[0.0, 0.0, 1.0, 0.0]]), jnp.array([[2]]))
        >>> model = Model(logits=lambda params, tokens: params[tokens])
        >>> batch.predict(model, jnp.eye(8)).targets.tolist()
        [[7]]
    """

    tokens: Int[Array, "B T"]
    loss_mask: Float[Array, "B T"]
    positions: Int[Array, "B P"] | None = None

    def predict(self, model: Model, params: Params) -> Predictions:
        """Logits, targets and weights at every place that may carry loss: P of them, or T without `positions`."""
        before = None if self.positions is None else jnp.maximum(self.positions - 1, 0)
        if before is not None and model.logits_at is not None:
            logits = model.logits_at(params, self._inputs(model), before)
        else:
            logits = _at(model.logits(params, self._inputs(model)), before)
        return Predictions(logits, *self._labels())

    def places(self, model: Model, params: Params, layer: int | None = None) -> Places:
        """The same places before the head; `model.head` of their hidden states gives the logits of `predict`.

        With `layer`, the residual stream after that many layers instead, of which none above is computed.
        """
        before = None if self.positions is None else jnp.maximum(self.positions - 1, 0)
        asked = () if layer is None else (layer,)
        return Places(_at(model.hidden(params, self._inputs(model), *asked), before), *self._labels())

    def _inputs(self, model: Model) -> Any:
        return self.tokens

    def _labels(self) -> tuple[Array, Array]:
        if self.positions is None:
            # What follows the last token is unknown. Its place stays, with weight 0: cutting it off would copy the
            # logits of all the others.
            last = jnp.zeros_like(self.loss_mask[:, :1])
            weights = jnp.concatenate([self.loss_mask[:, 1:], last], axis=1)
            return jnp.roll(self.tokens, -1, axis=1), weights.astype(jnp.float32)
        targets = jnp.take_along_axis(self.tokens, self.positions, axis=1)
        weights = jnp.take_along_axis(self.loss_mask, self.positions, axis=1).astype(jnp.float32)
        return targets, jnp.where(self.positions > 0, weights, 0.0)


class LabelledBatch(NamedTuple):
    """Inputs with one class label each: the form any classifier takes.

    Attributes:
        inputs: whatever `model.logits` takes, example axis first.
        labels: class ids, int32, shape [B].
        loss_mask: optional weight of each example, shape [B]; default 1.
    """

    inputs: Float[Array, "B ..."]
    labels: Int[Array, " B"]
    loss_mask: Float[Array, " B"] | None = None

    def predict(self, model: Model, params: Params) -> Predictions:
        weights = jnp.ones(self.labels.shape, jnp.float32) if self.loss_mask is None else self.loss_mask
        return Predictions(model.logits(params, self.inputs)[:, None], self.labels[:, None], weights[:, None])


class TopK(NamedTuple):
    """A sparse distribution per place: the `k` likeliest classes, the rest of the mass lumped into one bucket.

    Attributes:
        ids: class ids, int32, shape [B, P, K].
        log_probs: their log-probabilities, nats, shape [B, P, K].
        weights: 1 where the distribution is defined, 0 where there is none to match, shape [B, P].
    """

    ids: Int[Array, "B P K"]
    log_probs: Float[Array, "B P K"]
    weights: Float[Array, "B P"]


class Reference(NamedTuple):
    """What the model said before unlearning, computed once and stored, so that no second model is kept in memory.

    Attributes:
        forget_nll: sequence NLL of each forget example (sum over loss tokens, nats), shape [B].
        retain_top: the original distribution on the retain examples, for a KL retain term.
        counterfactual_top: the distribution to match on the forget examples (see `counterfactual_matching`).
        alternative_nll: sequence NLL of each alternative answer, nats, shape [B].
        forget_top: the original distribution on the forget examples, the true class always among the k.
        retain_top_all: as `retain_top`, at all T places of each row: prompt, answer and padding.
        retain_hidden: residual stream at the places of retain after the layer a method asks for, shape [R, P, D].
    """

    forget_nll: Float[Array, " B"] | None = None
    retain_top: TopK | None = None
    counterfactual_top: TopK | None = None
    alternative_nll: Float[Array, " B"] | None = None
    forget_top: TopK | None = None
    retain_top_all: TopK | None = None
    retain_hidden: Float[Array, "R P D"] | None = None


class UnlearnBatch(NamedTuple):
    """One step's data: what to forget, what to keep, and what the original model said about them.

    Attributes:
        forget: examples to forget.
        retain: examples to keep.
        alternative: the prompts of `forget`, row by row, with the answers to give instead.
        reference: what the original model said.
        curvature: curvature taken beforehand, for the methods that read it: a store of `curvature.stored`, for example
            what `curvature.load` gives. It takes the place of retain examples.
        retain_alternative: the prompts of `retain`, row by row, with answers not to give (refusals).
    """

    forget: Any
    retain: Any = None
    alternative: Any = None
    reference: Reference | None = None
    curvature: Any = None
    retain_alternative: Any = None


def _at(x: Float[Array, "B T _"], index: Int[Array, "B P"] | None) -> Float[Array, "B P _"]:
    return x if index is None else jnp.take_along_axis(x, index[..., None], axis=1)


def examples_in(batch: Any) -> int:
    """Number of examples in a batch: the length of the leading axis of its leaves."""
    return jax.tree.leaves(batch)[0].shape[0]
