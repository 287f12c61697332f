"""What the original model says, computed once: the only trace of it that unlearning keeps.

Everything is per example, in the order of the batch it was computed from, so a run stores it for the whole data set
and slices rows into each `UnlearnBatch`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxunlearn import losses
from jaxunlearn.types import Batch, Model, Params, TokenBatch, TopK


def sequence_nll(model: Model, params: Params, batch: Batch) -> Float[Array, " B"]:
    """NLL of each example, the sum over its loss tokens, nats: `Reference.forget_nll` and `alternative_nll`."""
    return losses.example_nll(model, params, batch)[0]


forget_nll = sequence_nll


def top(model: Model, params: Params, batch: Batch, k: int = 64) -> TopK:
    """The `k` likeliest classes at every loss token; all of them when the vocabulary is smaller."""
    predictions = batch.predict(model, params)
    return _top(losses.log_probs(predictions), (predictions.weights > 0).astype(jnp.float32), k)


def top_with_target(model: Model, params: Params, batch: Batch, k: int = 64) -> TopK:
    """The true class and the `k - 1` likeliest others at every loss token (at least one): `Reference.forget_top`.

    Example:
        >>> from jaxunlearn.types import LabelledBatch
        >>> model = Model(logits=lambda w, x: x @ w)
        >>> batch = LabelledBatch(jnp.ones((1, 1)), jnp.array([0]))
        >>> top_with_target(model, jnp.array([[0.0, 1.0, 2.0]]), batch, k=2).ids.tolist()  # 0 is true, 2 is likely
        [[[0, 2]]]
    """
    predictions = batch.predict(model, params)
    kept, ids = _with_target(losses.log_probs(predictions), predictions.targets, k)
    return TopK(ids, kept, (predictions.weights > 0).astype(jnp.float32))


def top_all(model: Model, params: Params, batch: Batch, k: int = 64) -> TopK:
    """As `top`, at all places of each row that has loss anywhere, padding included: `Reference.retain_top_all`."""
    if isinstance(batch, TokenBatch):
        batch = batch._replace(positions=None)
    predictions = batch.predict(model, params)
    real = jnp.any(predictions.weights > 0, axis=-1, keepdims=True)
    weights = jnp.broadcast_to(real, predictions.weights.shape).astype(jnp.float32)
    return _top(losses.log_probs(predictions), weights, k)


def hidden(model: Model, params: Params, batch: TokenBatch, layer: int) -> Float[Array, "B P D"]:
    """The residual stream after `layer` blocks at the places that predict loss tokens: `Reference.retain_hidden`."""
    return batch.places(model, params, layer).hidden


def counterfactual_top(
    model: Model,
    params: Params,
    tokens: Int[Array, "B K T"],
    places: Int[Array, "B K P"],
    targets: Int[Array, "B P"],
    k: int = 64,
) -> TopK:
    """`q`: the mean over K substitutes of the original model's distribution at aligned places.

    Where the place lies in a name, the probabilities of the substitute's token and of the original one are swapped
    first: a model that repeats the name it was asked about should go on to repeat it.

    Args:
        model: the model before unlearning.
        params: its parameters.
        tokens: each forget example under K substitutions of its entity, right-padded.
        places: index in each substituted sequence of the token that corresponds to the example's p-th loss token;
            0 where none does. The mean is over the substitutes that have one; a place without any gets weight 0.
        targets: the example's own loss tokens; what q gives them is always kept.
        k: classes kept per place, at least two.

    Returns:
        Sparse `q`, one row per example, one place per loss token; the true class comes first.
    """

    def one(args: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], Array]:
        tok, place, target = args
        batch = TokenBatch(tok, jnp.ones(tok.shape, jnp.float32), place)
        predictions = batch.predict(model, params)
        probs = _swap(jnp.exp(losses.log_probs(predictions)), target[None], predictions.targets)
        found = (place > 0).astype(probs.dtype)
        n = jnp.sum(found, axis=0)
        mean = jnp.sum(found[..., None] * probs, axis=0) / jnp.maximum(n, 1.0)[:, None]
        return _with_target(jnp.log(jnp.maximum(mean, 1e-30)), target, k), (n > 0).astype(jnp.float32)

    (log_probs, ids), weights = jax.lax.map(one, (tokens, places, targets))
    return TopK(ids, log_probs, weights)


def log_probs_at(model: Model, params: Params, batch: Batch, ids: Int[Array, "B P K"]) -> Float[Array, "B P K"]:
    """Log-probabilities of the classes `ids` at every loss token, nats: what `generic.generic` pushes away from."""
    return jnp.take_along_axis(losses.log_probs(batch.predict(model, params)), ids, axis=-1)


def _swap(probs: Float[Array, "K P V"], a: Int[Array, "1 P"], b: Int[Array, "K P"]) -> Float[Array, "K P V"]:
    """Exchange the probabilities of classes `a` and `b` at every place."""
    classes = jnp.arange(probs.shape[-1], dtype=b.dtype)
    is_a, is_b = classes == a[..., None], classes == b[..., None]
    p_a = jnp.sum(jnp.where(is_a, probs, 0.0), axis=-1, keepdims=True)
    p_b = jnp.sum(jnp.where(is_b, probs, 0.0), axis=-1, keepdims=True)
    return jnp.where(is_a, p_b, jnp.where(is_b, p_a, probs))


def _with_target(log_probs: Array, targets: Array, k: int) -> tuple[Array, Array]:
    """The true class and the `k - 1` likeliest others: their log-probabilities and ids."""
    hit = jnp.arange(log_probs.shape[-1]) == targets[..., None]
    _, ids = jax.lax.top_k(jnp.where(hit, jnp.inf, log_probs), min(max(k, 2), log_probs.shape[-1]))
    return jnp.take_along_axis(log_probs, ids, axis=-1), ids.astype(jnp.int32)


def _top(log_probs: Array, weights: Array, k: int) -> TopK:
    kept, ids = jax.lax.top_k(log_probs, min(k, log_probs.shape[-1]))
    return TopK(ids.astype(jnp.int32), kept, weights)
