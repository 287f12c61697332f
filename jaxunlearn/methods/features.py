"""Frozen features of a language model, for a head that can forget with a certificate.

The guarantee of a certified head is about the head: what the features themselves learnt of an example stays in them.
So they must come from a model that never trained on the data that may have to go.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxunlearn.packed import refuse_packed
from jaxunlearn.types import Model, Params, TokenBatch


class HeadExamples(NamedTuple):
    """What a head is trained on.

    Attributes:
        features: rows of length at most `radius`.
        labels: 0 or 1 (logistic), class ids (softmax).
        kept: whether an example is still there; removal clears it and keeps every shape.
        radius: an upper bound on the lengths of the rows.
        norm: an upper bound on the spectral norm of the features, kept or not.
    """

    features: Float[Array, "n d"]
    labels: Int[Array, " n"]
    kept: Bool[Array, " n"]
    radius: Float[Array, ""]
    norm: Float[Array, ""]


def head_examples(features: Float[Array, "n d"], labels: Int[Array, " n"], *, normalize: bool = True) -> HeadExamples:
    """Examples with the bounds that certificates need.

    Args:
        features: one row an example, for example from `head_features`.
        labels: classes.
        normalize: scale every row to length 1, so that `radius` is 1.

    Raises:
        ValueError: when there is not one label a row.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"features {list(features.shape)} and labels {list(labels.shape)}: give [n, d] features and n labels"
        )
    lengths = jnp.linalg.norm(features, axis=1, keepdims=True)
    if normalize:
        features = features / jnp.where(lengths > 0, lengths, 1.0)
        lengths = jnp.ones((), features.dtype)
    # Twice the error of an eigensolver, so that the norm stays an upper bound.
    slack = 1 + 2 * min(features.shape) * jnp.finfo(features.dtype).eps
    gram = features @ features.T if features.shape[0] < features.shape[1] else features.T @ features
    norm = slack * jnp.sqrt(jnp.linalg.eigvalsh(gram)[-1])
    return HeadExamples(features, labels, jnp.ones(labels.shape, bool), slack * jnp.max(lengths), norm)


def head_features(
    model: Model, params: Params, batch: TokenBatch, *, pool: Literal["last", "mean"] = "last"
) -> Float[Array, "B D"]:
    """Frozen features of a language model: its normalised last hidden state, at one place or averaged.

    Args:
        model: with a `hidden` function.
        params: its parameters, which a certified head must never train: what they learnt is not removed.
        batch: sequences; the loss mask says which tokens count.
        pool: "last", at the last token that carries loss; or "mean", over the tokens that carry loss, by weight.

    Raises:
        ValueError: for a model without hidden states, an unknown `pool`, or a `PackedBatch`.

    Example:
        >>> model = Model(logits=None, hidden=lambda p, tokens: p[tokens])
        >>> batch = TokenBatch(jnp.array([[0, 1, 2, 0]]), jnp.array([[0.0, 1.0, 1.0, 0.0]]))
        >>> table = jnp.array([[9.0], [2.0], [4.0]])
        >>> head_features(model, table, batch).tolist(), head_features(model, table, batch, pool="mean").tolist()
        ([[4.0]], [[3.0]])
    """
    if model.hidden is None:
        raise ValueError("head_features() needs a model with hidden states; models.load gives one")
    if pool not in ("last", "mean"):
        raise ValueError(f"head_features(pool={pool!r}): choose 'last' or 'mean'")
    refuse_packed(batch, "a feature vector")
    hidden = model.hidden(params, batch.tokens).astype(jnp.float32)
    weights = batch.loss_mask.astype(jnp.float32)
    if pool == "last":
        places = jnp.arange(weights.shape[1])
        last = jnp.max(jnp.where(weights > 0, places, 0), axis=1, keepdims=True)
        weights = (places == last).astype(jnp.float32)
    total = jnp.sum(weights, axis=1, keepdims=True)
    return jnp.sum(weights[..., None] * hidden, axis=1) / jnp.where(total > 0, total, 1.0)
