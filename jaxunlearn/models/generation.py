"""Text generation with a cache of keys and values, in one compiled loop.

Prompts of a batch are padded on the left, so that all end in the same column and every step adds one column. The
prompts go through the model once and fill the cache; each step then costs one token. Padded slots are masked, and
positions count from the first real token, so the padding changes nothing.
"""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxunlearn.models.contrast import generates
from jaxunlearn.models.functional import Decoder
from jaxunlearn.models.sampling import Sampling, drawn
from jaxunlearn.models.stop_strings import NONE, before_stop, found, stop_table, token_pieces
from jaxunlearn.sharding import DEFAULT_RULES, on_host
from jaxunlearn.types import Key, Model, Params

PROMPT_BUCKET = 32


def generate(
    model: Model,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Iterable[int] = (),
    stop_strings: Sequence[str] = (),
    tokenizer: Any = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    key: Key | None = None,
    batch_size: int | None = None,
) -> list[list[int]]:
    """Continue each prompt, greedily or by sampling from `softmax(logits / temperature)`.

    Args:
        model: a model of `models.load` or `models.init`, or one that `models.whp`, `offset`, `uld` or `memfree` made
            of such.
        params: its parameters.
        prompts: token ids, each prompt at least one token.
        max_new_tokens: most tokens to add to a prompt.
        stop_ids: ids that end a continuation; they are not part of it.
        stop_strings: texts that end a continuation; neither they nor a token that reaches into one are part of it.
            Only what is written is searched, not the prompt (`models.stop_strings`).
        tokenizer: anything hashable with a `decode(ids)`, needed for `stop_strings`.
        temperature: 0 takes the likeliest token.
        top_k: sample among the k likeliest tokens only (and those as likely as the last of them).
        top_p: sample among the fewest likeliest tokens that together have this probability only.
        key: random key, needed when `temperature` is above 0.
        batch_size: prompts per compiled call; default all at once.

    Returns:
        The continuations, in the order of the prompts, without prompt, padding and stop token.

    Raises:
        ValueError: naming the prompt, when it is empty, holds an id outside the vocabulary or does not leave room
            for `max_new_tokens` in the context; or when an argument is out of range.

    Example:
        >>> from jaxunlearn.models import DecoderConfig, init
        >>> config = DecoderConfig(vocab_size=32, hidden_size=16, num_attention_heads=4, num_hidden_layers=1,
        ...                        intermediate_size=24)
        >>> model, params = init(config, jax.random.key(0))
        >>> [len(tokens) for tokens in generate(model, params, [[1, 2], [3]], max_new_tokens=4)]
        [4, 4]
    """
    asked = [[int(token) for token in prompt] for prompt in prompts]
    how = Sampling(temperature, top_k, top_p)
    decoder = _check(model, asked, max_new_tokens, how, key, batch_size)
    table = _table(stop_strings, tokenizer, decoder.config.vocab_size)
    stops = jnp.asarray(sorted(set(stop_ids)) or [-1], jnp.int32)
    key = jax.random.key(0) if key is None else key
    batch_size = min(batch_size or len(asked), len(asked)) if asked else 1
    # Rows that the devices cannot share out evenly would be written by all of them.
    rows = rows_for(decoder, batch_size)
    texts: list[list[int]] = []
    for start in range(0, len(asked), batch_size):
        batch = asked[start : start + batch_size]
        write = partial(_written, decoder, params, batch, rows, max_new_tokens, stops)
        written = write(table, how, jax.random.fold_in(key, start))
        if table is not NONE:
            cut = [before_stop(text, stop_strings, tokenizer) for text in written]
            if any(len(a) == len(b) and found(table, a) for a, b in zip(written, cut, strict=True)):
                # A text was ended by a string that it does not have once it is decoded.
                written = write(NONE, how, jax.random.fold_in(key, start))
                cut = [before_stop(text, stop_strings, tokenizer) for text in written]
            written = cut
        texts.extend(written)
    return texts


def _table(stop_strings: Sequence[str], tokenizer: Any, vocabulary: int) -> Int[np.ndarray, "S V"]:
    if not stop_strings:
        return NONE
    if isinstance(stop_strings, str) or not all(stop_strings):
        raise ValueError(f"stop_strings={stop_strings!r}: give a tuple of texts, none of them empty")
    if tokenizer is None:
        raise ValueError("stop_strings are looked for in text; pass tokenizer=models.load_tokenizer(folder)")
    return stop_table(stop_strings, token_pieces(tokenizer, vocabulary))


def rows_for(decoder: Decoder, prompts: int) -> int:
    """Rows of a batch of so many prompts: as many on every group of devices that a batch is spread over."""
    mesh = getattr(decoder, "mesh", None)
    ways = 1 if mesh is None else math.prod(mesh.shape.get(axis, 1) for axis in DEFAULT_RULES.batch)
    return -(-prompts // ways) * ways


def _written(
    decoder: Decoder,
    params: Params,
    batch: list[list[int]],
    rows: int,
    new: int,
    stops: Array,
    table: Int[np.ndarray, "S V"],
    how: Sampling,
    key: Key,
) -> list[list[int]]:
    """The continuations of one batch.

    Where rotary frequencies change with the length of the longest sequence, what was computed by the old ones is
    worth nothing beyond that length: the text is taken up anew from there.
    """
    longest = max(map(len, batch))
    first = min([new, *(length + 1 - longest for length in decoder.config.switch_lengths if length >= longest)])
    # The last batch keeps the shape of the others, so it does not compile again; rows without a prompt are done.
    tokens, padding = _left_padded(batch + [[]] * (rows - len(batch)))
    out, lengths = continue_batch(decoder, first, how.shape, params, tokens, padding, stops, how.numbers, key, table)
    texts = [
        row[:length].tolist()
        for row, length in zip(*(rows[: len(batch)] for rows in on_host((out, lengths))), strict=True)
    ]
    going = [i for i, text in enumerate(texts) if len(text) == first]
    if first < new and going:
        so_far = [batch[i] + texts[i] for i in going]
        rest = _written(decoder, params, so_far, rows, new - first, stops, table, how, jax.random.fold_in(key, 1))
        for i, more in zip(going, rest, strict=True):
            texts[i] += more
    return texts


def _check(
    model: Model,
    prompts: list[list[int]],
    max_new_tokens: int,
    how: Sampling,
    key: Key | None,
    batch_size: int | None,
) -> Decoder:
    decoder = model.source
    if not generates(decoder):
        raise ValueError(
            "generate() needs a decoder made by models.load or models.init, or a combination of such decoders"
        )
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}; ask for at least 1")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size}; it must be at least 1")
    if how.temperature > 0 and key is None:
        raise ValueError("sampling (temperature above 0) needs key=jax.random.key(seed)")
    vocabulary, context = decoder.config.vocab_size, decoder.config.max_position_embeddings
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {number} is empty; begin it with the model's first token (bos_token_id)")
        if outside := [token for token in prompt if not 0 <= token < vocabulary]:
            raise ValueError(f"prompt {number} holds id {outside[0]}, outside the vocabulary of {vocabulary}")
        if len(prompt) + max_new_tokens > context:
            raise ValueError(
                f"prompt {number} has {len(prompt)} tokens; with max_new_tokens={max_new_tokens} it passes the context "
                f"of {context}; shorten the prompt or ask for fewer tokens"
            )
    return decoder


def _left_padded(prompts: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    longest = max(map(len, prompts))
    # Rounding the width up lets prompts of similar length share a compilation.
    width = -(-longest // PROMPT_BUCKET) * PROMPT_BUCKET
    tokens = np.zeros((len(prompts), width), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[width - len(prompt) :] = prompt
    return tokens, np.asarray([width - len(prompt) for prompt in prompts], np.int32)


@partial(jax.jit, static_argnums=(0, 1, 2))
def continue_batch(
    decoder: Decoder,
    max_new_tokens: int,
    how: Sampling,
    params: Params,
    tokens: Int[Array, "B T"],
    padding: Int[Array, " B"],
    stops: Int[Array, " I"],
    sampled: Float[Array, " 2"],
    key: Key,
    table: Int[np.ndarray, "S V"] = NONE,
) -> tuple[Int[Array, "B N"], Int[Array, " B"]]:
    """New tokens of each row and how many they are: the program that `generate` runs for every batch."""

    def continuation(
        module: Any, tokens: Array, padding: Array, stops: Array, table: Array, sampled: Array, data: Array
    ) -> Array:
        key = jax.random.wrap_key_data(data)

        def choose(logits: Float[Array, "B V"], step: Array) -> Int[Array, " B"]:
            return drawn(how, logits, sampled, jax.random.fold_in(key, step))

        def unfinished(state: tuple) -> Array:
            step, done = state[0], state[-1]
            return (step < max_new_tokens) & ~jnp.all(done)

        def add_token(state: tuple) -> tuple:
            step, logits, out, cache, place, done = state
            token = choose(logits, step)
            done = done | jnp.any(token[:, None] == stops, axis=1)
            out = out.at[:, step].set(jnp.where(done, -1, token))
            if len(table) > 1:
                # Unlike a stop id, the token that completes a string is written: it may begin before the string.
                place = table[place, token]
                done = done | (place == len(table) - 1)
            logits, cache = module.extend(token[:, None], cache)
            return step + 1, logits, out, cache, place, done

        B, T = tokens.shape
        logits, cache = module.extend(tokens, module.empty_cache(padding, T + max_new_tokens))
        out = jnp.full((B, max_new_tokens), -1, jnp.int32)
        state = (jnp.zeros((), jnp.int32), logits, out, cache, jnp.zeros_like(padding), padding == T)
        return jax.lax.while_loop(unfinished, add_token, state)[2]

    data = jax.random.key_data(key)
    batch = (tokens, padding, stops, table, sampled, data)
    out = decoder.run(continuation, params, *batch, out_axes=("batch", None))
    return out, jnp.sum(out >= 0, axis=1)
