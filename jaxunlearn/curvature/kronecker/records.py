"""Second moments of a matrix in several uses, such as an embedding table that is the head as well.

The gradient of an example is the sum over the uses, and the square of a sum is not the sum of the squares. So the taps
of such a matrix record the inputs and the gradients of the outputs of each use, and the squares are taken here.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxunlearn.curvature.kronecker.layout import wide
from jaxunlearn.curvature.kronecker.table import Row
from jaxunlearn.sharding.regions import auto

Records = dict[str, dict[str, Array]]


def squares_of_sum(row: Row, records: Records, vectors: dict[str, Array], like: Array) -> Array:
    """`sum_b (Q_left^T u_b Q_right)^2`, u_b the gradient of example b over all uses, [*stack, m, n].

    Args:
        row: the matrix and its uses.
        records: by use, "X" [*stack, B, ..., i] and "Y" [*stack, B, ..., o].
        vectors: "left" [*stack, m, m] and "right" [*stack, n, n], each absent for the standard basis.
        like: the parameter.
    """

    def squares(records: Records, vectors: dict[str, Array]) -> Array:
        gradients = sum(_gradients(use, *_by_example(use, kept), row, vectors) for use, kept in records.items())
        if "left" in vectors:
            gradients = jnp.einsum("vw,bvd->bwd", vectors["left"], gradients)
        return jnp.sum(gradients**2, axis=0)

    for _ in range(row.stacked):
        squares = jax.vmap(squares)
    return auto(squares, records, vectors, like=like)


def _by_example(use: str, kept: dict[str, Array]) -> tuple[Array, Array]:
    x, y = wide(kept["X"]), wide(kept["Y"])
    B = y.shape[0]
    return (x.reshape(B, -1) if use == "lookup" else x.reshape(B, -1, x.shape[-1])), y.reshape(B, -1, y.shape[-1])


def _gradients(use: str, x: Array, y: Array, row: Row, vectors: dict[str, Array]) -> Array:
    """Each example's gradient through one use, [B, m, n], its columns turned into the basis."""
    columns = x if use == "transposed" else y
    if "right" in vectors:
        columns = columns @ vectors["right"]
    if use == "transposed":
        return jnp.einsum("bto,bti->boi", y, columns)
    if use == "matmul":
        return jnp.einsum("bti,bto->bio", x, columns)
    # Ids were recorded as floats: cotangents have no integers.
    ids = x.astype(jnp.int32)
    zeros = jnp.zeros((x.shape[0], *row.shape[row.stacked :]), columns.dtype)
    return zeros.at[jnp.arange(x.shape[0])[:, None], ids].add(columns)
