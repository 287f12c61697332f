"""Choosing a token from logits: the likeliest, or a draw from `softmax(logits / temperature)`.

A draw may be restricted to the k likeliest tokens (Fan et al. 2018, "Hierarchical neural story generation") or to the
fewest likeliest that together have probability p (Holtzman et al. 2020, "The curious case of neural text
degeneration"), in this order where both are asked for.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxunlearn.types import Key


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_k: draw among the k likeliest tokens only (and those as likely as the last of them); None for all.
        top_p: draw among the fewest likeliest tokens that together have this probability only; None for all.

    Raises:
        ValueError: naming the argument, its value and what it may be.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self):
        if not self.temperature >= 0:
            raise ValueError(f"temperature={self.temperature}; use 0 for greedy text or a positive number")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k}; it must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}; give a probability above 0, up to 1")
        if self.temperature == 0 and (self.top_k is not None or self.top_p is not None):
            raise ValueError("top_k and top_p restrict sampling; give a temperature above 0 with them")

    @property
    def shape(self) -> "Sampling":
        """The same for all temperatures and probabilities that need one compiled program."""
        top_p = None if self.top_p is None else 1.0
        return replace(self, temperature=1.0 if self.temperature > 0 else 0.0, top_p=top_p)

    @property
    def numbers(self) -> np.ndarray:
        """Temperature and probability, what `shape` leaves open."""
        return np.asarray([self.temperature, 1.0 if self.top_p is None else self.top_p], np.float32)


def drawn(how: Sampling, logits: Float[Array, "B V"], numbers: Float[Array, " 2"], key: Key) -> Int[Array, " B"]:
    """One token a row; of `how` only what `shape` fixes is used."""
    if how.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / numbers[0]
    if how.top_k is not None or how.top_p is not None:
        logits = restricted(logits, how.top_k, numbers[1] if how.top_p is not None else None)
    return jax.random.categorical(key, logits).astype(jnp.int32)


def restricted(
    logits: Float[Array, "B V"], top_k: int | None = None, top_p: float | Float[Array, ""] | None = None
) -> Float[Array, "B V"]:
    """`logits`, minus infinity outside the `top_k` likeliest tokens, and outside those of the top `top_p`.

    A token stays when those likelier than it have less than `top_p` together, so the likeliest always does.

    Example:
        >>> restricted(jnp.log(jnp.array([[0.5, 0.3, 0.2]])), top_p=0.6).tolist()[0][2]
        -inf
    """
    ordered = jnp.sort(logits, axis=-1, descending=True)
    least = ordered[:, -1:] if top_k is None else ordered[:, min(top_k, logits.shape[-1]) - 1, None]
    if top_p is not None:
        probability = jax.nn.softmax(jnp.where(ordered < least, -jnp.inf, ordered), axis=-1)
        before = jnp.cumsum(probability, axis=-1) - probability
        least = jnp.min(jnp.where((before < top_p) & (ordered >= least), ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < least, -jnp.inf, logits)
