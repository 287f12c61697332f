"""MemFree decoding: never write an n-gram of the forget set.

Before each token the last n - 1 are looked up; where they begin an n-gram of the set, the token that would complete it
is refused. No text of n tokens in a row is then copied, whatever the model has memorised, and nothing else changes. It
is a filter on verbatim text only: a paraphrase passes.

The set is kept exactly (the paper's Bloom filter errs now and then), as one array beside the parameters of the model.

Reference: Ippolito et al., "Preventing generation of verbatim memorization in language models gives a false sense of
privacy", INLG 2023.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxunlearn.models.contrast import DROPPED, as_source, logits_at
from jaxunlearn.sharding.regions import auto
from jaxunlearn.types import Model, Params

NOTHING = -1  # no token has this id, so no n-gram matches across it


def ngrams(sequences: Iterable[Sequence[int]], n: int = 10) -> np.ndarray:
    """All different n-grams of token sequences, int32 [G, n]: the `ngrams` of `memfree`.

    Raises:
        ValueError: for n below 2, or when no sequence has n tokens.

    Example:
        >>> ngrams([[5, 6, 7], [5, 6], [6, 7]], n=2).tolist()
        [[5, 6], [6, 7]]
    """
    if n < 2:
        raise ValueError(f"ngrams(n={n}): an n-gram to complete has at least 2 tokens")
    windows = [np.lib.stride_tricks.sliding_window_view(np.asarray(s, np.int32), n) for s in sequences if len(s) >= n]
    if not windows:
        raise ValueError(f"no sequence has {n} tokens; choose a smaller n")
    return np.unique(np.concatenate(windows), axis=0)


class MemFreeCache(NamedTuple):
    """The model's own cache, and the last tokens.

    Attributes:
        inner: of the model.
        recent: the last n - 1 tokens of each row, -1 where there are none, shape [B, n - 1].
        length: number of slots filled.
        padding: slots to ignore at the left of each row, shape [B].
    """

    inner: Any
    recent: Int[Array, "B c"]
    length: Int[Array, ""]
    padding: Int[Array, " B"]


@dataclass(frozen=True)
class MemFree:
    """A model under the filter, with the functions of a decoder; parameters `(params, ngrams)`.

    Attributes:
        parts: the model, alone.
    """

    parts: tuple[Model]

    @property
    def config(self) -> Any:
        """Of the model, which must be a decoder."""
        return self.parts[0].source.config

    def logits(self, params: tuple[Params, Array], tokens: Int[Array, "B T"]) -> Float[Array, "B T V"]:
        """Logits with refused tokens at -1000."""
        inner, grams = params
        places = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
        return _filtered(self.parts[0].logits(inner, tokens), tokens, places, grams)

    def logits_at(
        self, params: tuple[Params, Array], tokens: Int[Array, "B T"], positions: Int[Array, "B P"]
    ) -> Float[Array, "B P V"]:
        """The same at `positions` only."""
        inner, grams = params
        return _filtered(logits_at(self.parts[0], inner, tokens, positions), tokens, positions, grams)

    def run(self, function: Callable, params: tuple[Params, Array], *batch: Array, out_axes: tuple) -> Array:
        """`function(module, *batch)`, module that of the model under the filter; see `Decoder.run`."""
        return self.parts[0].source.run(
            lambda module, *data: function(_Module(module, data[-1]), *data[:-1]),
            params[0], *batch, jnp.asarray(params[1]), out_axes=out_axes,
        )  # fmt: skip


class _Module:
    """What generation asks of a module, with every token checked."""

    def __init__(self, module: Any, grams: Int[Array, "G n"]):
        self.module, self.grams = module, grams

    def empty_cache(self, padding: Int[Array, " B"], slots: int) -> MemFreeCache:
        recent = jnp.full((padding.shape[0], self.grams.shape[1] - 1), NOTHING, jnp.int32)
        return MemFreeCache(self.module.empty_cache(padding, slots), recent, jnp.int32(0), padding)

    def extend(self, tokens: Int[Array, "B T"], cache: MemFreeCache) -> tuple[Float[Array, "B V"], MemFreeCache]:
        logits, inner = self.module.extend(tokens, cache.inner)
        slots = cache.length + jnp.arange(tokens.shape[1])
        real = jnp.where(slots >= cache.padding[:, None], tokens, NOTHING).astype(jnp.int32)
        recent = jnp.concatenate([cache.recent, real], axis=1)[:, -cache.recent.shape[1] :]
        logits = refuse(logits[:, None], recent[:, None], self.grams)[:, 0]
        return logits, MemFreeCache(inner, recent, cache.length + tokens.shape[1], cache.padding)


def _filtered(logits: Array, tokens: Array, positions: Array, grams: Array) -> Float[Array, "B P V"]:
    def look_up(logits: Array, tokens: Array, positions: Array, grams: Array) -> Array:
        return refuse(logits, contexts(tokens, positions, grams.shape[1]), grams)

    return auto(look_up, logits, *map(jnp.asarray, (tokens, positions, grams)), like=logits)


def contexts(tokens: Int[Array, "B T"], positions: Int[Array, "B P"], n: int) -> Int[Array, "B P n-1"]:
    """The n - 1 tokens up to and with each position, -1 before the first."""
    index = positions[..., None] + jnp.arange(2 - n, 1)
    rows = jnp.arange(tokens.shape[0])[:, None, None]
    return jnp.where(index >= 0, tokens[rows, jnp.maximum(index, 0)], NOTHING)


def refuse(
    logits: Float[Array, "B P V"], context: Int[Array, "B P n-1"], grams: Int[Array, "G n"]
) -> Float[Array, "B P V"]:
    """`logits` with -1000 for every token that completes an n-gram after its context.

    Places are taken one after the other: at each, B times G comparisons.
    """
    first, last = grams[:, :-1], grams[:, -1]

    def at_place(place: tuple[Array, Array]) -> Array:
        z, before = place
        begun: Bool[Array, "B G"] = jnp.all(before[:, None] == first, axis=-1)
        refused = jnp.zeros(z.shape, bool).at[:, last].max(begun)
        return jnp.where(refused, DROPPED, z)

    places = jnp.moveaxis(logits, 1, 0), jnp.moveaxis(context, 1, 0)
    return jnp.moveaxis(jax.lax.map(at_place, places), 0, 1)


def memfree(model: Model) -> Model:
    """The model with MemFree decoding; its parameters are `(params, ngrams)`, `ngrams` an int32 array [G, n].

    Example:
        >>> model = Model(logits=lambda z, tokens: z[tokens])
        >>> grams = jnp.asarray(ngrams([[0, 1, 1]], n=2))
        >>> memfree(model).logits((jnp.zeros((2, 2)), grams), jnp.array([[0, 1]])).tolist()  # refuses 01 and 11
        [[[0.0, -1000.0], [0.0, -1000.0]]]
    """
    return as_source(MemFree((model,)))
