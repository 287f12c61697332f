"""What the original model says, computed once: the only trace of it that unlearning keeps.

Everything is per example, in the order of the batch it was computed from, so a run stores it for the whole data set
and slices rows into each `UnlearnBatch`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxunlearn import losses
from jaxunlearn.types import Batch, Model, Params, TokenBatch, TopK


def forget_nll(model: Model, params: Params, batch: Batch) -> Float[Array, " B"]:
    """Sequence NLL of each example: the sum over its loss tokens, nats."""
    return losses.example_nll(model, params, batch)[0]


def top(model: Model, params: Params, batch: Batch, k: int = 64) -> TopK:
    """The `k` likeliest classes at every loss token; all of them when the vocabulary is smaller."""
    predictions = batch.predict(model, params)
    return _top(losses.log_probs(predictions), (predictions.weights > 0).astype(jnp.float32), k)


def counterfactual_top(
    model: Model,
    params: Params,
    tokens: Int[Array, "B K T"],
    places: Int[Array, "B K P"],
    k: int = 64,
) -> TopK:
    """`q`: the mean over K substitutes of the original model's distribution at aligned places.

    Args:
        model: the model before unlearning.
        params: its parameters.
        tokens: each forget example under K substitutions of its entity, right-padded.
        places: index in each substituted sequence of the token that corresponds to the example's p-th loss token;
            0 where none does. The mean is over the substitutes that have one; a place without any gets weight 0.
        k: classes kept per place.

    Returns:
        Sparse `q`, one row per example, one place per loss token.
    """

    def one(args: tuple[Array, Array]) -> tuple[Array, Array]:
        tok, place = args
        batch = TokenBatch(tok, jnp.ones(tok.shape, jnp.float32), place)
        probs = jnp.exp(losses.log_probs(batch.predict(model, params)))
        found = (place > 0).astype(probs.dtype)
        n = jnp.sum(found, axis=0)
        mean = jnp.sum(found[..., None] * probs, axis=0) / jnp.maximum(n, 1.0)[:, None]
        kept, ids = jax.lax.top_k(mean, min(k, mean.shape[-1]))
        return (jnp.log(jnp.maximum(kept, 1e-30)), ids.astype(jnp.int32)), (n > 0).astype(jnp.float32)

    (log_probs, ids), weights = jax.lax.map(one, (tokens, places))
    return TopK(ids, log_probs, weights)


def _top(log_probs: Array, weights: Array, k: int) -> TopK:
    kept, ids = jax.lax.top_k(log_probs, min(k, log_probs.shape[-1]))
    return TopK(ids.astype(jnp.int32), kept, weights)
