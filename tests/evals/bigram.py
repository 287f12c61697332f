"""A model small enough to check by hand: the next token's logits are one row of a table."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.data import Encoded
from jaxunlearn.types import Model

VOCAB = 11


def _logits(params: jax.Array, tokens: jax.Array) -> jax.Array:
    return params[tokens]


MODEL = Model(logits=_logits)


def table(seed: int = 0, *, scale: float = 2.0) -> jax.Array:
    return scale * jax.random.normal(jax.random.key(seed), (VOCAB, VOCAB), jnp.float32)


def example(tokens: list[int], prompt: int = 1, record: Any = None) -> Encoded:
    mask = np.ones(len(tokens), np.float32)
    mask[:prompt] = 0
    return Encoded(np.array(tokens, np.int32), mask, np.zeros((len(tokens), 2), np.int32), "", record)


def examples(count: int = 23, seed: int = 0) -> list[Encoded]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 40, count)
    return [example(rng.integers(0, VOCAB, n).tolist(), prompt=int(rng.integers(1, n))) for n in lengths]
