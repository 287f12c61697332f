"""Losses on predictions, as `(sum, count)` pairs in nats.

Everything is computed in f32 from logits of any dtype. A target's log-probability is picked by comparison with an
iota, not by a gather: the compiler fuses it into the softmax and it shards along the vocabulary for free.

At the vocabularies of language models the logits, their probabilities and the tangents of both dominate memory. Where
the model says how to apply its head (`Model.head`), losses are sums over chunks of places, each of which makes its
logits and forgets them: a gradient or a curvature product recomputes them in its backward pass, which costs no
product that it would not have made, since the value of the loss is not asked for there.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxunlearn.accumulate import sum_over
from jaxunlearn.packed import refuse_packed
from jaxunlearn.sharding.regions import auto
from jaxunlearn.types import Batch, Model, Params, Places, Predictions, TopK


def log_probs(predictions: Predictions) -> Float[Array, "B P V"]:
    """`log p(v)` at every place, nats, at least f32."""
    logits = predictions.logits
    return jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), axis=-1)


def token_nll(predictions: Predictions) -> Float[Array, "B P"]:
    """`-log p(target)` at every place, nats, unweighted."""
    logits = predictions.logits.astype(jnp.promote_types(predictions.logits.dtype, jnp.float32))
    classes = jnp.arange(logits.shape[-1], dtype=predictions.targets.dtype)
    hit = classes == predictions.targets[..., None]
    return jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)


def example_nll(model: Model, params: Params, batch: Batch) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Per example: the sum of NLL over its loss tokens (nats) and their total weight.

    Raises:
        ValueError: for a `PackedBatch`, whose rows hold several examples.
    """
    refuse_packed(batch, "the loss of an example")
    return _row_nll(model, params, batch)


def _row_nll(model: Model, params: Params, batch: Batch) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    def sums(predictions: Predictions) -> tuple[Array, Array]:
        weights = predictions.weights
        return jnp.sum(weights * token_nll(predictions), axis=-1), jnp.sum(weights, axis=-1)

    return over_places(sums, model, params, batch)


def over_places(f: Callable[..., PyTree], model: Model, params: Params, batch: Batch, *others: PyTree) -> PyTree:
    """`f(predictions, *others)` where f sums over places, taken in chunks of at most `model.head_rows` rows.

    Args:
        f: maps predictions (and the same places of `others`) to sums over them; sums of chunks are added.
        model: chunks are taken where it has a `head`.
        others: pytrees with leaves [B, P, ...], one entry for each place.
    """
    if model.head is None or not hasattr(batch, "places"):
        return f(batch.predict(model, params), *others)

    def piece(places: Places, *rest: PyTree) -> PyTree:
        return f(Predictions(model.head(params, places.hidden), places.targets, places.weights), *rest)

    return in_chunks(piece, model.head_rows, batch.places(model, params), *others)


def in_chunks(f: Callable[..., PyTree], rows: int | None, *places: PyTree) -> PyTree:
    """`f(*places)` as a sum over chunks of places of at most `rows` rows, each rematerialised in a backward pass.

    Args:
        f: sums over the second axis of its arguments; must give nothing for places whose entries are all 0.
        rows: most rows (axis 0 times axis 1) of a chunk, and at least one place; `None` takes all at once.
        places: pytrees with leaves [B, P, ...]; P is padded with zeros to a multiple of the chunk.
    """
    B, P = jax.tree.leaves(places)[0].shape[:2]
    size = P if rows is None else max(1, min(P, rows // B))
    number = math.ceil(P / size)
    if number == 1:
        return f(*places)
    size = math.ceil(P / number)

    def split(x: Array) -> Array:
        padded = jnp.pad(x, ((0, 0), (0, number * size - P), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(padded.reshape(B, number, size, *x.shape[2:]), 1, 0)

    return sum_over(jax.checkpoint(lambda chunk: f(*chunk), prevent_cse=False), jax.tree.map(split, places))


def nll(model: Model, params: Params, batch: Batch) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Negative log-likelihood: `(sum over loss tokens, number of loss tokens)`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxunlearn.types import LabelledBatch
        >>> model = Model(logits=lambda params, x: x @ params)
        >>> total, count = nll(model, jnp.zeros((3, 2)), LabelledBatch(jnp.ones((4, 3)), jnp.zeros(4, jnp.int32)))
        >>> round(float(total / count), 4), float(count)
        (0.6931, 4.0)
    """
    sums, counts = _row_nll(model, params, batch)
    return jnp.sum(sums), jnp.sum(counts)


def kl_between(
    p_logits: Float[Array, "B P V"], q_logits: Float[Array, "B P V"], weights: Float[Array, "B P"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`KL(p || q)` summed over weighted places, and the total weight."""
    p = jax.nn.log_softmax(p_logits.astype(jnp.float32), axis=-1)
    q = jax.nn.log_softmax(q_logits.astype(jnp.float32), axis=-1)
    return jnp.sum(weights * jnp.sum(jnp.exp(p) * (p - q), axis=-1)), jnp.sum(weights)


def kl_from_top(top: TopK, predictions: Predictions) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`KL(q || p)` for a stored sparse `q`, the classes outside its top k lumped into one bucket.

    Lumping can only lower a KL divergence, so this bounds the full one from below, and equals it at k = V. Places
    that q does not define (`top.weights` 0) carry no loss.

    Returns:
        The sum over weighted places (nats) and the total weight.
    """
    logq, logp, q_rest, p_rest = _lumped(top, predictions)
    total = jnp.sum(jnp.where(logq > -jnp.inf, jnp.exp(logq) * (logq - logp), 0.0), axis=-1)
    if p_rest is not None:
        total = total + jnp.where(q_rest > 0, q_rest * (jnp.log(jnp.maximum(q_rest, 1e-30)) - p_rest), 0.0)
    weights = predictions.weights * top.weights
    return jnp.sum(weights * total), jnp.sum(weights)


def reverse_kl_from_top(top: TopK, predictions: Predictions) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`KL(p || q)` for a stored sparse `q`, lumped and weighted as in `kl_from_top`.

    It is infinite where p gives mass to what q excludes. The mass of q outside its top k is known to the precision of
    f32 only, and is taken as 1e-7 at least; a stored class counts with what is stored.

    Returns:
        The sum over weighted places (nats) and the total weight.
    """
    logq, logp, q_rest, p_rest = _lumped(top, predictions)
    kept = logq > -jnp.inf
    total = jnp.sum(jnp.where(kept, jnp.exp(logp) * (logp - jnp.where(kept, logq, 0.0)), 0.0), axis=-1)
    if p_rest is not None:
        total = total + jnp.exp(p_rest) * (p_rest - jnp.log(jnp.maximum(q_rest, 1e-7)))
    weights = predictions.weights * top.weights
    return jnp.sum(weights * total), jnp.sum(weights)


def _lumped(top: TopK, predictions: Predictions) -> tuple[Array, Array, Array | None, Array | None]:
    """`log q` (-inf where it is not stored) and `log p` over all classes; beside them, where some are not stored, the
    mass of q outside its top k and the logarithm of that of p."""
    logp = log_probs(predictions)
    logq = auto(partial(_spread, logp.shape[-1]), top.ids, top.log_probs.astype(logp.dtype), like=logp)
    if top.ids.shape[-1] >= logp.shape[-1]:
        return logq, logp, None, None
    p_rest = jax.nn.logsumexp(jnp.where(logq > -jnp.inf, -jnp.inf, logp), axis=-1)
    return logq, logp, jnp.maximum(-jnp.expm1(jax.nn.logsumexp(top.log_probs, axis=-1)), 0.0), p_rest


def _spread(classes: int, ids: Int[Array, "B P K"], log_probs: Float[Array, "B P K"]) -> Float[Array, "B P V"]:
    """Sparse log-probabilities over all classes, -inf where there is none: data, which no derivative goes through."""
    row, place = (jnp.arange(size)[:, None] for size in ids.shape[:2])
    empty = jnp.full((*ids.shape[:2], classes), -jnp.inf, log_probs.dtype)
    return empty.at[row[:, None], place, ids].set(log_probs)
