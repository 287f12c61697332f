r"""Neighbours of a text: copies with a few tokens exchanged (Mattern et al. 2023, arXiv 2305.18462).

A model that learned a text by heart likes it better than anything near it; one that merely finds it plausible likes
its neighbours as well. In each neighbour a share of the loss tokens, drawn at random, is replaced by a token drawn from
proposals for its place, never by itself:

* `model`: the k likeliest other tokens at that place given what precedes it, in proportion to their probability under
  the attacked model (the paper asks a masked language model, which sees both sides and is a second model to load);
* `unigram`: the tokens of a pool of texts in proportion to their counts, whatever the place.

Neighbours depend on the seed, on the index of the text and, with `model`, on the model; on nothing else.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxunlearn.data import Encoded
from jaxunlearn.evals.batching import per_example
from jaxunlearn.evals.score import score
from jaxunlearn.types import Batch, Model, Params

Source = Literal["model", "unigram"]
# For each loss token of a text: the ids proposed and their weights, [n, k] or, the same everywhere, [1, k].
Proposals = list[tuple[np.ndarray, np.ndarray]]


def neighbour_nll(
    model: Model,
    params: Params,
    encoded: Sequence[Encoded],
    *,
    source: Source = "model",
    pool: Sequence[Encoded] | None = None,
    count: int = 8,
    share: float = 0.15,
    keep: Collection[int] = (),
    top_k: int = 16,
    seed: int = 0,
    **options: Any,
) -> Float[np.ndarray, "N m"]:
    """Mean NLL (nats per token) of `count` neighbours of each text.

    Args:
        model, params: the attacked model.
        encoded: the texts.
        source: who proposes replacements.
        pool: texts whose loss tokens are counted for "unigram"; default the texts themselves.
        count: neighbours a text.
        share: of the loss tokens replaced, at least one.
        keep: ids never replaced nor proposed, such as the tokenizer's special ones.
        top_k: proposals a place, for "model".
        seed: of the choice.
        options: `batch_size`, `mesh`, `progress` of `score`.

    Errors:
        ValueError: count, share or top_k out of range, or nothing to propose.

    Example:
        >>> bigram = Model(logits=lambda params, tokens: params[tokens])
        >>> text = Encoded(np.array([0, 1], np.int32), np.array([0.0, 1.0], np.float32), None, "", None)
        >>> sure = jnp.log(jnp.array([[0.1, 0.9], [0.5, 0.5]]))
        >>> np.exp(-neighbour_nll(bigram, sure, [text], count=2, top_k=1)).round(2).tolist()
        [[0.1, 0.1]]
    """
    for name, value in (("count", count), ("top_k", top_k)):
        if value < 1:
            raise ValueError(f"{name}={value}: give at least 1")
    if not 0 < share <= 1:
        raise ValueError(f"share={share}: the share of tokens to replace, above 0 and at most 1")
    if source == "model":
        quiet = {name: value for name, value in options.items() if name != "progress"}
        proposals = model_proposals(model, params, encoded, top_k, **quiet)
    else:
        proposals = unigram_proposals(encoded, encoded if pool is None else pool)
    near = neighbours(encoded, proposals, count=count, share=share, keep=keep, seed=seed)
    return score(model, params, near, **options).nll.reshape(len(encoded), count)


def neighbours(
    encoded: Sequence[Encoded],
    proposals: Proposals,
    *,
    count: int,
    share: float,
    keep: Collection[int] = (),
    seed: int = 0,
) -> list[Encoded]:
    """`count` neighbours of the first text, then of the second, and so on; a text all to be kept is its own."""
    kept = np.array(sorted(keep), np.int64)
    near = []
    for number, (one, (ids, weights)) in enumerate(zip(encoded, proposals, strict=True)):
        rng = np.random.default_rng([seed, number])
        places = np.flatnonzero(one.loss_mask)
        places = places[places > 0]
        free = np.flatnonzero(~np.isin(one.tokens[places], kept))
        for _ in range(count):
            tokens = one.tokens.copy()
            for at in rng.permutation(free)[: max(1, round(share * len(places)))]:
                row = min(at, len(ids) - 1)
                allowed = (ids[row] != tokens[places[at]]) & ~np.isin(ids[row], kept)
                mass = np.where(allowed, weights[row], 0.0)
                if mass.sum() > 0:
                    tokens[places[at]] = rng.choice(ids[row], p=mass / mass.sum())
            near.append(one._replace(tokens=tokens))
    return near


def unigram_proposals(encoded: Sequence[Encoded], pool: Sequence[Encoded]) -> Proposals:
    """Every loss token of the pool, weighted by its count, at each place alike."""
    counts = Counter(int(token) for one in pool for token in one.tokens[1:][np.asarray(one.loss_mask)[1:] != 0])
    if len(counts) < 2:
        raise ValueError(f"the pool has {len(counts)} different tokens: a replacement needs two; give more texts")
    ids, weights = (np.array(column)[None] for column in zip(*sorted(counts.items()), strict=True))
    return [(ids, weights.astype(np.float64))] * len(encoded)


def model_proposals(model: Model, params: Params, encoded: Sequence[Encoded], top_k: int, **options: Any) -> Proposals:
    """At each loss token the `top_k` likeliest other tokens and their probabilities."""
    options = {"batch_size": 32} | options
    columns = per_example(partial(_likeliest_others, model, top_k, params), encoded, **options)
    return [(ids.astype(np.int64), np.exp(log_p)) for ids, log_p in zip(columns["ids"], columns["log_p"], strict=True)]


@partial(jax.jit, static_argnums=(0, 1))
def _likeliest_others(model: Model, top_k: int, params: Params, batch: Batch) -> dict[str, Array]:
    logits, targets, _ = batch.predict(model, params)
    log_p = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    others = jnp.where(jnp.arange(log_p.shape[-1]) == targets[..., None], -jnp.inf, log_p)
    values, ids = jax.lax.top_k(others, min(top_k, others.shape[-1] - 1))
    return {"ids": ids, "log_p": values}
