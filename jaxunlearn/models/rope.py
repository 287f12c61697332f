"""Rotary position embedding: a query or key at position t is turned by angles `t * f_i`, pair by pair.

The dot product of a turned query and a turned key depends on their distance only (Su et al. 2021, "RoFormer").
The frequencies are `f_i = theta^(-2i / width)`, where `width` is that of the head or of the part of it that is turned.
Three ways to stretch them to longer contexts are implemented:

* linear: every frequency divided by a factor (Chen et al. 2023, "Extending Context Window via Position Interpolation");
* llama3: only waves longer than the original context are divided, waves much shorter are kept, and those between are
  blended (the released configuration of Llama 3.1);
* longrope: a factor for each frequency, one set of them for sequences within the original context and one for longer
  ones, and cosine and sine scaled by `sqrt(1 + log(s) / log(original))` for a context s times the original one (Ding
  et al. 2024, "LongRoPE").

Pairs are coordinates `i` and `i + width / 2`, the layout of Hugging Face checkpoints.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxunlearn.models.config import DecoderConfig


def frequencies(config: DecoderConfig, *, long: bool = False) -> np.ndarray:
    """Angle per token of each pair of coordinates, radians, f32, shape [width / 2].

    `long` asks for those of sequences beyond the original context, which differ for "longrope" only.

    Example:
        >>> config = DecoderConfig(hidden_size=8, num_attention_heads=2)
        >>> frequencies(config).tolist()
        [1.0, 0.009999999776482582]
    """
    rope, width = config.rope, config.rotary_dim
    plain = np.float32(1.0) / np.float32(rope["rope_theta"]) ** (np.arange(0, width, 2, dtype=np.float32) / width)
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return plain
    if kind == "linear":
        return plain / np.float32(rope["factor"])
    if kind == "longrope":
        return plain / np.asarray(rope["long_factor" if long else "short_factor"], np.float32)
    turns = rope["original_max_position_embeddings"] * plain / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (plain * (keep + (1.0 - keep) / rope["factor"])).astype(np.float32)


def rotation(
    config: DecoderConfig, positions: Int[Array, "... T"], length: int | Int[Array, ""] = 0
) -> tuple[Array, Array] | None:
    """Cosine and sine of the angle of every position and pair, each f32 [..., T, 1, width / 2]; None for no rotation.

    `length` is that of the longest sequence, which decides between the frequencies of "longrope".
    """
    if config.rope_parameters is None:
        return None
    if not config.switch_lengths:
        turn = frequencies(config)
    elif isinstance(length, int):
        turn = frequencies(config, long=length > config.switch_lengths[0])
    else:
        long = length > config.switch_lengths[0]
        turn = jnp.where(long, frequencies(config, long=True), frequencies(config))
    angles = positions[..., None, None].astype(jnp.float32) * turn
    if (scale := _scale(config)) == 1.0:
        return jnp.cos(angles), jnp.sin(angles)
    return scale * jnp.cos(angles), scale * jnp.sin(angles)


def _scale(config: DecoderConfig) -> float:
    rope = config.rope
    if rope.get("rope_type") != "longrope":
        return 1.0
    if (given := rope.get("attention_factor")) is not None:
        return float(given)
    original = rope["original_max_position_embeddings"]
    factor = rope.get("factor") or config.max_position_embeddings / original
    return 1.0 if factor <= 1.0 else math.sqrt(1 + math.log(factor) / math.log(original))


def rotate(x: Float[Array, "B T H d"], cos: Array, sin: Array) -> Float[Array, "B T H d"]:
    """`x` with each pair of coordinates turned; computed in f32, returned in the dtype of `x`.

    Coordinates beyond twice the number of angles stay as they are.
    """
    width = 2 * cos.shape[-1]
    turned, rest = (x, []) if width == x.shape[-1] else (x[..., :width], [x[..., width:]])
    first, second = jnp.split(turned, 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin, *rest], axis=-1)
    return turned.astype(x.dtype)
