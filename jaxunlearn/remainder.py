"""Steps too small for bfloat16 parameters.

A bfloat16 number has 8 significant bits: a step below 1/512 of a parameter is rounded away, and at the rates of
fine-tuning that is nearly every step. What rounding leaves of the float32 number x that a parameter p stands for is
therefore kept beside it, in 16 bits:

    bits(x) = 2^16 bits(p) + r,      p = x rounded to bfloat16 (ties away from zero),      -2^15 <= r < 2^15.

Together they are x exactly, for 2 bytes a parameter instead of the 4 of a float32 copy. Losses, gradients and curvature
are taken at p; steps are added to x.
"""

import jax
import jax.numpy as jnp
import optax
from jax.lax import bitcast_convert_type
from jaxtyping import Array, BFloat16, Float32, Int16

from jaxunlearn.tree import Tree


def start(params: Tree) -> Tree | None:
    """The remainder of parameters as they were loaded: zeros, laid out like them, and None for those of other types.

    None altogether where no parameter is bfloat16.
    """
    kept = jax.tree.map(lambda p: jnp.zeros_like(p, jnp.int16) if p.dtype == jnp.bfloat16 else None, params)
    return kept if jax.tree.leaves(kept) else None


def apply_updates(params: Tree, remainder: Tree | None, updates: Tree) -> tuple[Tree, Tree | None]:
    """`optax.apply_updates` that loses nothing of bfloat16 parameters.

    Args:
        params: parameters of any type.
        remainder: what `start` or the last call gave.
        updates: what is added, in f32.

    Returns:
        Parameters, each in its type, and what their rounding left.

    Example:
        >>> params = {"w": jnp.ones(1, jnp.bfloat16)}
        >>> rest = start(params)
        >>> for _ in range(5):
        ...     params, rest = apply_updates(params, rest, {"w": jnp.full(1, 1e-3)})
        >>> float(params["w"][0]), float(jnp.bfloat16(1) + jnp.bfloat16(1e-3))
        (1.0078125, 1.0)
    """
    if remainder is None:
        return optax.apply_updates(params, updates), None
    both = jax.tree.map(_add, params, remainder, updates)
    return tuple(jax.tree.map(lambda _, pair, part=part: pair[part], params, both) for part in (0, 1))


def _add(p: Array, r: Int16[Array, "..."] | None, update: Array) -> tuple[Array, Array | None]:
    if r is None:
        return (p + update).astype(p.dtype), None
    return _split(_join(p, r) + update.astype(jnp.float32))


def _join(p: BFloat16[Array, "..."], r: Int16[Array, "..."]) -> Float32[Array, "..."]:
    upper = bitcast_convert_type(p, jnp.uint16).astype(jnp.uint32) << 16
    return bitcast_convert_type(upper + r.astype(jnp.int32).astype(jnp.uint32), jnp.float32)


def _split(x: Float32[Array, "..."]) -> tuple[BFloat16[Array, "..."], Int16[Array, "..."]]:
    bits = bitcast_convert_type(x, jnp.uint32)
    upper = ((bits + 0x8000) >> 16).astype(jnp.uint16)
    return bitcast_convert_type(upper, jnp.bfloat16), bitcast_convert_type(bits.astype(jnp.uint16), jnp.int16)
