"""Rotary position embedding: a query or key at position t is turned by angles `t * f_i`, pair by pair.

The dot product of a turned query and a turned key depends on their distance only (Su et al. 2021, "RoFormer").
The frequencies are `f_i = theta^(-2i / head_dim)`. Two ways to stretch them to longer contexts are implemented:

* linear: every frequency divided by a factor (Chen et al. 2023, "Extending Context Window via Position Interpolation");
* llama3: only waves longer than the original context are divided, waves much shorter are kept, and those between are
  blended (the released configuration of Llama 3.1).

Pairs are coordinates `i` and `i + head_dim / 2`, the layout of Hugging Face checkpoints.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxunlearn.models.config import DecoderConfig


def frequencies(config: DecoderConfig) -> np.ndarray:
    """Angle per token of each pair of coordinates, radians, f32, shape [head_dim / 2].

    Example:
        >>> config = DecoderConfig(hidden_size=8, num_attention_heads=2)
        >>> frequencies(config).tolist()
        [1.0, 0.009999999776482582]
    """
    rope, width = config.rope, config.head_dim
    plain = np.float32(1.0) / np.float32(rope["rope_theta"]) ** (np.arange(0, width, 2, dtype=np.float32) / width)
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return plain
    if kind == "linear":
        return plain / np.float32(rope["factor"])
    turns = rope["original_max_position_embeddings"] * plain / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (plain * (keep + (1.0 - keep) / rope["factor"])).astype(np.float32)


def rotation(config: DecoderConfig, positions: Int[Array, "... T"]) -> tuple[Array, Array]:
    """Cosine and sine of the angle of every position and pair, each f32 [..., T, 1, head_dim / 2]."""
    angles = positions[..., None, None].astype(jnp.float32) * frequencies(config)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "B T H d"], cos: Array, sin: Array) -> Float[Array, "B T H d"]:
    """`x` with each pair of coordinates turned; computed in f32, returned in the dtype of `x`."""
    first, second = jnp.split(x, 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
