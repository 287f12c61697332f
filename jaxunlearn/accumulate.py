"""Exact accumulation over microbatches: time for memory, the result unchanged up to summation order."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxunlearn import tree
from jaxunlearn.sharding.regions import split_rows
from jaxunlearn.types import examples_in


def accumulate(f: Callable[[PyTree], PyTree], batch: PyTree, microbatch: int | None) -> PyTree:
    """`sum_i f(batch_i)` over microbatches of `microbatch` examples, by `lax.scan`.

    Raises:
        ValueError: when the number of examples is not a multiple of `microbatch`.

    Example:
        >>> import jax.numpy as jnp
        >>> float(accumulate(lambda x: jnp.sum(x), jnp.arange(6.0), microbatch=2))
        15.0
    """
    if microbatch is None or microbatch >= examples_in(batch):
        return f(batch)
    return sum_over(f, chunks_of(batch, microbatch))


def chunks_of(batch: PyTree, microbatch: int | None) -> PyTree:
    """Leaves [n, ...] as [n / microbatch, microbatch, ...]; one chunk for `None`.

    Raises:
        ValueError: when the number of examples is not a multiple of `microbatch`.
    """
    n = examples_in(batch)
    size = n if microbatch is None else min(microbatch, n)
    if n % size:
        raise ValueError(
            f"a batch of {n} examples does not divide into microbatches of {size}; choose a divisor of {n}"
        )
    return split_rows(batch, n // size)


def sum_over(f: Callable[[PyTree], PyTree], chunks: PyTree) -> PyTree:
    """`sum_i f(chunks[i])` along the leading axis, by `lax.scan`."""
    shapes = jax.eval_shape(f, jax.tree.map(lambda x: x[0], chunks))
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype, device=_sharding(s)), shapes)
    total, _ = jax.lax.scan(lambda carry, chunk: (tree.add(carry, f(chunk)), None), zero, chunks)
    return total


def _sharding(shape: jax.ShapeDtypeStruct):
    sharding = getattr(shape, "sharding", None)
    return sharding if sharding is not None and not sharding.mesh.empty else None
