"""Fused attention on TPUs: the Pallas kernel "splash attention" that comes with JAX, for passes of first order only.

The kernel skips tiles that a mask leaves empty and knows grouped queries, windows, soft caps and packed rows. It works
on whole tiles of 128 tokens, so that rows are padded at their end, which no real token sees. XLA cannot split a kernel
over devices: each runs it on its own examples and heads (`jax.shard_map`).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh
from jaxtyping import Array, Float, Int

from jaxunlearn.sharding import partition_spec

TILE = 128
BLOCKS = (512, 256, 128)  # tokens that the kernel takes at a time, the most that divide a row
INTERPRET = False  # tests run the kernel on CPUs, as a program of plain operations


def splash_attention(
    q: Float[Array, "B T H d"],
    k: Float[Array, "B T K d"],
    v: Float[Array, "B T K d"],
    *,
    scale: float,
    softcap: float | None = None,
    window: int | None = None,
    segments: Int[Array, "B T"] | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "B T H d"]:
    """As `attention.causal_attention`, by the kernel; `mesh` has the devices that examples and heads are split over."""
    T = q.shape[1]
    length = -(-T // TILE) * TILE
    q = q * jnp.asarray(scale, q.dtype)
    q, k, v = (jnp.pad(x, ((0, 0), (0, length - T), (0, 0), (0, 0))) for x in (q, k, v))
    rows = () if segments is None else (jnp.pad(segments, ((0, 0), (0, length - T)), mode="edge"),)
    run = partial(_on_one_device, softcap=softcap, window=window)
    context = jax.sharding.get_abstract_mesh()
    if mesh is None or AxisType.Manual in context.axis_types:
        return run(q, k, v, *rows)[:, :T]
    heads = partition_spec(mesh, ("batch", None, "heads", None), q.shape)
    if heads != partition_spec(mesh, ("batch", None, "kv_heads", None), k.shape):
        k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
    batch = partition_spec(mesh, ("batch", None), (q.shape[0], length))
    split = jax.shard_map(
        run,
        mesh=mesh if context.empty else None,
        in_specs=(heads, heads, heads, batch)[: 3 + len(rows)],
        out_specs=heads,
        check_vma=False,
    )
    return split(q, k, v, *rows)[:, :T]


def _on_one_device(
    q: Array, k: Array, v: Array, segments: Array | None = None, *, softcap: float | None, window: int | None
) -> Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    T, H = q.shape[1:3]
    mask = splash.CausalMask((T, T)) if window is None else splash.LocalMask((T, T), (window - 1, 0), 0)
    block = next(size for size in BLOCKS if T % size == 0)
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * H),
        block_sizes=splash.BlockSizes(
            block_q=block,
            block_kv=block,
            block_kv_compute=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_kv_dkv_compute=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=softcap,
        interpret=INTERPRET,
    )

    def one(q: Array, k: Array, v: Array, own: Array | None = None) -> Array:
        return kernel(q, k, v, segment_ids=None if own is None else splash.SegmentIds(own, own))

    parts = [x.transpose(0, 2, 1, 3) for x in (q, k, v)] + ([] if segments is None else [segments])
    return jax.vmap(one)(*parts).transpose(0, 2, 1, 3).astype(q.dtype)
