"""Causal grouped-query attention, in two exact forms that can be differentiated any number of times, and a fused one.

Fused kernels have no forward-mode derivative, so they cannot take part in a Hessian-vector product: `fused_attention`
is for passes of first order. The plain form holds all [T, T] scores, which a second derivative multiplies. The
blockwise form never holds more than one [block, block] tile: for each block of queries it walks the blocks of keys up
to the diagonal, keeping a running sum of `exp(score - m)` and of the values weighted by it, where `m` is the largest
score so far (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"; Rabe and Staats 2021,
"Self-attention Does Not Need O(n^2) Memory").

Scores may be bounded by a tanh (Gemma 2: Riviere et al. 2024) and keys limited to a window behind the query (Beltagy et
al. 2020, "Longformer"; Jiang et al. 2023, "Mistral 7B"), or to the query's own record where several share a row; tiles
in which no query sees a key are skipped.

In both forms the quotient of the two sums is the same for every `m`, so no derivative of any order flows through
`m`, and it is taken out of differentiation. Tiles are recomputed in the backward pass instead of stored.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxunlearn.models.fused_attention import fused_attention

Implementation = Literal["auto", "xla", "blockwise", "fused"]
IMPLEMENTATIONS = ("auto", "xla", "blockwise", "fused")
BLOCKWISE_ABOVE = 512
MASKED = -1e30


def causal_attention(
    q: Float[Array, "B T H d"],
    k: Float[Array, "B T K d"],
    v: Float[Array, "B T K d"],
    implementation: Implementation = "auto",
    block: int = 256,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    window: int | Int[Array, ""] | None = None,
    segments: Int[Array, "B T"] | None = None,
    mesh: Any = None,
) -> Float[Array, "B T H d"]:
    """`softmax(scale q k^T) v` over the keys at or before each query; head h reads key-value head `h K // H`.

    Scores and softmax are in f32. "auto" is blockwise above 512 tokens.

    Args:
        q, k, v: queries, keys and values.
        implementation: "auto", "xla", "blockwise", or "fused", which has first derivatives only.
        block: tokens of a tile.
        scale: factor on the scores; default `d ** -0.5`.
        softcap: c of `c tanh(score / c)`, which bounds scores; None for none.
        window: how many keys a query sees, its own included; None for all. It may be an array.
        segments: a number for each token; a query sees keys of its own number only. None for one record a row.
        mesh: devices that a fused kernel is split over; XLA splits the other forms by itself. None for one device.

    Example:
        >>> import jax
        >>> q = jax.random.normal(jax.random.key(0), (1, 6, 4, 8))
        >>> k = v = q[:, :, :2]
        >>> plain, tiled = causal_attention(q, k, v, "xla"), causal_attention(q, k, v, "blockwise", block=4)
        >>> bool(jnp.allclose(plain, tiled, atol=1e-5))
        True
    """
    T = q.shape[1]
    if isinstance(window, int) and window >= T:
        window = None
    if implementation == "fused":
        return fused_attention(q, k, v, scale=scale, softcap=softcap, window=window, segments=segments, mesh=mesh)
    if implementation == "blockwise" or (implementation == "auto" and T > BLOCKWISE_ABOVE):
        return _blockwise(q, k, v, min(block, T), scale, softcap, window, segments)
    mask = jnp.tril(jnp.ones((T, T), bool))
    if window is not None:
        places = jnp.arange(T)
        mask = mask & in_window(places[:, None], places, window)
    if segments is not None:
        mask = mask & (segments[:, :, None] == segments[:, None, :])
    return masked_attention(q, k, v, mask, scale=scale, softcap=softcap)


def in_window(query: Int[Array, "..."], key: Int[Array, "..."], window: int | Int[Array, ""]) -> Bool[Array, "..."]:
    """Whether a key is one of the last `window` up to the query."""
    return key > query - window


def masked_attention(
    q: Float[Array, "B T H d"],
    k: Float[Array, "B S K d"],
    v: Float[Array, "B S K d"],
    mask: Bool[Array, "... T S"],
    *,
    scale: float | None = None,
    softcap: float | None = None,
) -> Float[Array, "B T H d"]:
    """Attention where `mask` allows it, [T, S] or [B, T, S]; a query that may see nothing gets a finite average."""
    B, T, H, d = q.shape
    S, K = k.shape[1:3]
    G = H // K
    wide = jnp.promote_types(q.dtype, jnp.float32)
    # One matrix of queries for each key-value head: both products and their derivatives then leave the scores in
    # place, where any other order of axes has XLA transpose them.
    q = q.reshape(B, T, K, G, d).transpose(0, 2, 3, 1, 4).reshape(B, K, G * T, d)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    bias = jnp.where(mask[:, None, None] if mask.ndim == 3 else mask, 0.0, MASKED).astype(wide)
    scores = _capped(_product("bktd,bksd->bkts", q, k) * _scale(scale, d), softcap).reshape(B, K, G, T, S) + bias
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))).reshape(B, K, G * T, S)
    # Normalised last: dividing [T, d] instead of [T, S] also spares derivatives their sums over all scores.
    out = _product("bkts,bksd->bktd", weights.astype(v.dtype), v) / weights.sum(axis=-1, keepdims=True)
    return out.astype(q.dtype).reshape(B, K, G, T, d).transpose(0, 3, 1, 2, 4).reshape(B, T, H, d)


def _blockwise(
    q: Array,
    k: Array,
    v: Array,
    block: int,
    scale: float | None,
    softcap: float | None,
    window: int | Array | None,
    segments: Array | None,
) -> Array:
    B, T, H, d = q.shape
    K = k.shape[2]
    G, n = H // K, -(-T // block)
    # Keys past the end come after every real query, so the causal mask already hides them.
    q, k, v = (jnp.pad(x, ((0, 0), (0, n * block - T), (0, 0), (0, 0))) for x in (q, k, v))
    q_blocks = q.reshape(B, n, block, K, G, d).transpose(1, 0, 3, 4, 2, 5)
    k_blocks = k.reshape(B, n, block, K, d).transpose(1, 0, 3, 2, 4)
    v_blocks = v.reshape(B, n, block, K, d).transpose(1, 0, 3, 2, 4)
    wide = jnp.promote_types(q.dtype, jnp.float32)
    offsets = jnp.arange(block)
    number = jnp.arange(n)
    needed = number <= number[:, None]
    if window is not None:
        needed = needed & in_window(number[:, None] * block, (number + 1) * block - 1, window)
    records = None
    if segments is not None:
        records = jnp.pad(segments, ((0, 0), (0, n * block - T)), mode="edge").reshape(B, n, block).transpose(1, 0, 2)
        low, high = records.min(axis=-1), records.max(axis=-1)
        needed = needed & jnp.any((low[:, None] <= high) & (low <= high[:, None]), axis=-1)

    def against_all_keys(_, query):
        i, q_i, own, needed_i = query

        def against_block(sums, key):
            j, k_j, v_j, others, needed_ij = key

            def include(sums):
                numerator, denominator, m = sums
                scores = _capped(_product("bkgtd,bksd->bkgts", q_i, k_j) * _scale(scale, d), softcap)
                seen, at = j * block + offsets, (i * block + offsets)[:, None]
                visible = seen <= at
                if window is not None:
                    visible = visible & in_window(at, seen, window)
                if segments is not None:
                    visible = (visible & (own[:, :, None] == others[:, None, :]))[:, None, None]
                scores = jnp.where(visible, scores, MASKED)
                m_next = jax.lax.stop_gradient(jnp.maximum(m, scores.max(axis=-1)))
                weights = jnp.exp(scores - m_next[..., None])
                shrink = jnp.exp(m - m_next)
                numerator = numerator * shrink[..., None] + _product("bkgts,bksd->bkgtd", weights.astype(v.dtype), v_j)
                return numerator, denominator * shrink + weights.sum(axis=-1), m_next

            return jax.lax.cond(needed_ij, include, lambda sums: sums, sums), None

        zero = jnp.zeros_like(q_i, wide)
        start = (zero, zero[..., 0], zero[..., 0] + MASKED)
        step = jax.checkpoint(against_block, prevent_cse=False)
        keys = (number, k_blocks, v_blocks, records, needed_i)
        (numerator, denominator, _), _ = jax.lax.scan(step, start, keys)
        return None, (numerator / denominator[..., None]).astype(q.dtype)

    queries = (number, q_blocks, records, needed)
    _, out = jax.lax.scan(jax.checkpoint(against_all_keys, prevent_cse=False), None, queries)
    return out.transpose(1, 0, 4, 2, 3, 5).reshape(B, n * block, H, d)[:, :T]


def _scale(scale: float | None, d: int) -> float:
    return d**-0.5 if scale is None else scale


def _capped(scores: Array, softcap: float | None) -> Array:
    return scores if softcap is None else softcap * jnp.tanh(scores / softcap)


def _product(equation: str, a: Array, b: Array) -> Array:
    """Einsum accumulated and returned in f32 (float64 for float64 inputs)."""
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))
