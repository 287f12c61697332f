r"""A long document as a row of features: what the document-level audit looks at (Meeus et al. 2024, "Did the neurons
read your book?", USENIX Security, arXiv 2310.15007).

*Windows.* A document longer than the context is read in windows of C = 128 tokens, each beginning 127 tokens after the
one before, so that every token but the first is predicted once, from what precedes it in its window. With a shorter
stride windows overlap more, and a token counts in the first window that predicts it.

*Normalisation.* A rare word is unlikely under any model. With q the true token's probability, m the largest one and a
norm g (the token's frequency in a pool, or its probability under a general model), a token's value is

    none   -log q          ratio   -log(q / g)          max   -log((1 - (m - q)) / g).

*Features* over a document's values: mean, min, max, standard deviation, count and nine percentiles (`aggregate`), or
the density in 1000 bins between the extremes of the documents the auditor learns from (`histogram`).
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxunlearn.data import Encoded
from jaxunlearn.evals.batching import per_example
from jaxunlearn.types import Batch, Model, Params

Normalisation = Literal["none", "ratio", "max"]
Features = Literal["aggregate", "histogram"]
PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
NAMES = ("mean", "min", "max", "std", "count", *(f"percentile_{p}" for p in PERCENTILES))


class Tokens(NamedTuple):
    """What a model says about each counted token of one document.

    Attributes:
        ids: the tokens.
        log_probs: log-probability of the true token, nats.
        largest: log-probability of the likeliest one, nats.
    """

    ids: Int[np.ndarray, " n"]
    log_probs: Float[np.ndarray, " n"]
    largest: Float[np.ndarray, " n"]


def windows(document: Encoded, *, context: int = 128, stride: int = 127) -> list[Encoded]:
    """The document cut into windows whose loss tokens are those of the document, each once.

    Errors:
        ValueError: a context below 2, or a stride that is not from 1 to `context - 1`.

    Example:
        >>> one = Encoded(np.arange(7), np.r_[0.0, np.ones(6)], None, "", None)
        >>> [w.tokens[w.loss_mask == 1].tolist() for w in windows(one, context=4, stride=3)]
        [[1, 2, 3], [4, 5, 6]]
    """
    if context < 2 or not 1 <= stride <= context - 1:
        raise ValueError(f"context={context}, stride={stride}: give a context of at least 2 and a stride below it")
    cut, counted = [], 1
    for start in range(0, max(len(document.tokens) - 1, 1), stride):
        mask = np.asarray(document.loss_mask[start : start + context], np.float32).copy()
        mask[: counted - start] = 0.0
        counted = start + len(mask)
        if mask.any():
            cut.append(document._replace(tokens=document.tokens[start : start + context], loss_mask=mask))
        if counted == len(document.tokens):
            break
    return cut


def read_documents(
    model: Model, params: Params, documents: Sequence[Encoded], *, context: int = 128, stride: int = 127, **options: Any
) -> list[Tokens]:
    """What the model says about every loss token of every document, in one pass over all windows.

    Args:
        model, params: the model asked.
        documents: encoded, of any length.
        context, stride: of the windows, tokens; at most the model's context.
        options: `batch_size`, `mesh`, `progress` of `score`.

    Errors:
        ValueError: windows out of range, a document without loss tokens, or outputs that are not finite.

    Example:
        >>> bigram = Model(logits=lambda params, tokens: params[tokens])
        >>> one = Encoded(np.array([0, 1, 1], np.int32), np.array([0.0, 1.0, 1.0], np.float32), None, "", None)
        >>> [found] = read_documents(bigram, jnp.log(jnp.array([[0.2, 0.8], [0.6, 0.4]])), [one], context=2, stride=1)
        >>> found.ids.tolist(), np.exp(found.log_probs).round(1).tolist(), np.exp(found.largest).round(1).tolist()
        ([1, 1], [0.8, 0.4], [0.8, 0.6])
    """
    cut = [windows(one, context=context, stride=stride) for one in documents]
    if [] in cut:
        raise ValueError(f"document {cut.index([])} has no loss token, so there is nothing to audit; leave it out")
    pieces = [piece for one in cut for piece in one]
    columns = per_example(partial(_true_and_largest, model, params), pieces, **({"batch_size": 32} | options))
    found, at = [], 0
    for number, one in enumerate(cut):
        parts = slice(at, at + len(one))
        at += len(one)
        log_probs, largest = (np.concatenate(columns[name][parts]) for name in ("log_probs", "largest"))
        if not np.all(np.isfinite(log_probs)):
            raise ValueError(f"document {number} has tokens of probability 0 or NaN under the model: nothing to audit")
        ids = np.concatenate([piece.tokens[piece.loss_mask != 0] for piece in one])
        found.append(Tokens(ids, log_probs, largest))
    return found


@partial(jax.jit, static_argnums=0)
def _true_and_largest(model: Model, params: Params, batch: Batch) -> dict[str, Array]:
    logits, targets, _ = batch.predict(model, params)
    log_p = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    true = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    return {"log_probs": true, "largest": jnp.max(log_p, axis=-1)}


def log_frequencies(documents: Sequence[Tokens], pool: Sequence[Tokens]) -> list[Float[np.ndarray, " n"]]:
    """Log of each token's share of the pool's tokens, one that is not there counted as half the rarest, nats.

    Example:
        >>> pool = [Tokens(np.array([5, 5, 5, 6]), None, None)]
        >>> np.exp(log_frequencies([Tokens(np.array([5, 6, 7]), None, None)], pool)[0]).round(3).tolist()
        [0.75, 0.25, 0.125]
    """
    counts = Counter(token for one in pool for token in one.ids.tolist())
    total, rarest = sum(counts.values()), min(counts.values())
    return [np.log([counts.get(token, rarest / 2) / total for token in one.ids.tolist()]) for one in documents]


def normalised(
    documents: Sequence[Tokens],
    normalisation: Normalisation = "ratio",
    log_norms: Sequence[Float[np.ndarray, " n"]] | None = None,
) -> list[Float[np.ndarray, " n"]]:
    """The value of each token.

    Args:
        documents: from `read_documents`.
        normalisation: "none", "ratio" or "max".
        log_norms: log g of each token: `log_frequencies`, or the `log_probs` that `read_documents` gives of a general
            model; not for "none".

    Example:
        >>> one = Tokens(np.array([5]), np.log([0.2]), np.log([0.5]))
        >>> [round(float(normalised([one], n, [np.log([0.1])])[0][0]), 4) for n in ("none", "ratio", "max")]
        [1.6094, -0.6931, -1.9459]
    """
    if normalisation not in ("none", "ratio", "max"):
        raise ValueError(f"normalisation {normalisation!r}: choose none, ratio or max")
    if normalisation == "none":
        return [-one.log_probs for one in documents]
    if log_norms is None:
        raise ValueError(f"normalisation {normalisation!r} needs log_norms: token frequencies or a general model")
    if normalisation == "ratio":
        return [norm - one.log_probs for one, norm in zip(documents, log_norms, strict=True)]
    gaps = [np.exp(one.largest) - np.exp(one.log_probs) for one in documents]
    return [norm - np.log1p(-gap) for gap, norm in zip(gaps, log_norms, strict=True)]


def aggregate_features(values: Sequence[Float[np.ndarray, " n"]]) -> Float[np.ndarray, "N 14"]:
    """Mean, min, max, standard deviation, count and nine percentiles of each document: the columns of `NAMES`."""
    return np.array([[r.mean(), r.min(), r.max(), r.std(), len(r), *np.percentile(r, PERCENTILES)] for r in values])


def histogram_features(
    values: Sequence[Float[np.ndarray, " n"]], learned_from: Sequence[Float[np.ndarray, " n"]], bins: int = 1000
) -> Float[np.ndarray, "N bins"]:
    """Each document's density over bins between the extremes of `learned_from`; what lies outside is left out.

    Example:
        >>> histogram_features([np.array([0.0, 0.1, 2.0])], [np.array([0.0, 2.0])], bins=2).round(3).tolist()
        [[0.667, 0.333]]
    """
    edges = np.histogram_bin_edges(np.concatenate(learned_from), bins)
    inside = [np.histogram(row, edges)[0] for row in values]
    return np.array([count / (max(count.sum(), 1) * np.diff(edges)) for count in inside])
