"""Block vectors: k solver vectors stacked along a leading axis, every leaf `[k, *shape]`.

The algebra that Krylov bases and sketches need, written so that a leaf sharded on any axis stays where it is:

    project   V w      [k]      multiply and sum: one all-reduce of k numbers
    expand    V^T c    tree     contracts the leading axis, which is never sharded: no communication
    gram      V W^T    [k, m]   contracts one axis of a leaf at a time, never a flattened leaf

An `einsum` over all axes of a leaf would flatten it, which gathers it whole onto every device.
"""

from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxunlearn import tree
from jaxunlearn.sharding.regions import auto

Block: TypeAlias = PyTree[Float[Array, "k ..."]]


def zeros(k: int, like: PyTree) -> Block:
    """`k` zero rows, each laid out like the solver vector `like`."""

    def leaf(a: Array) -> Array:
        # A product with `a` carries its layout to the rows, which a constant would not have on an Auto mesh.
        return jnp.where(jnp.zeros((k,) + (1,) * a.ndim, bool), a[None], jnp.zeros((), a.dtype))

    return jax.tree.map(leaf, tree.to_vector(like))


def put(V: Block, i: Int[Array, ""], v: PyTree) -> Block:
    """`V` with row `i` replaced by `v`."""
    return jax.tree.map(lambda a, b: jax.lax.dynamic_update_index_in_dim(a, b.astype(a.dtype), i, 0), V, v)


def project(V: Block, w: PyTree) -> Float[Array, " k"]:
    """The inner products `V w` of every row with `w`.

    Example:
        >>> project({"a": jnp.array([[1.0, 0.0], [1.0, 1.0]])}, {"a": jnp.array([2.0, 3.0])}).tolist()
        [2.0, 5.0]
    """
    parts = jax.tree.map(lambda a, b: jnp.sum(a * b[None], axis=tuple(range(1, a.ndim))), V, w)
    return jax.tree.reduce(jnp.add, parts)


def expand(V: Block, c: Float[Array, " k"], like: PyTree) -> PyTree:
    """The combination `V^T c = sum_i c_i V_i`, laid out as `like`.

    A loop over the rows, each read once: XLA's contraction of a leading axis takes copies of the whole block when the
    block is the state of an outer loop, as a Krylov basis is.
    """

    def leaf(a: Array) -> Array:
        def add(i: Array, total: Array) -> Array:
            return total + c[i].astype(a.dtype) * jax.lax.dynamic_index_in_dim(a, i, 0, keepdims=False)

        return jax.lax.fori_loop(1, a.shape[0], add, c[0].astype(a.dtype) * a[0])

    return tree.shard_like(jax.tree.map(leaf, V), like)


def mix(V: Block, C: Float[Array, "k m"]) -> Block:
    """`C^T V`: m combinations of the k rows."""
    return jax.tree.map(lambda a: jnp.tensordot(C.T.astype(a.dtype), a, axes=1, precision="highest"), V)


def gram(V: Block, W: Block) -> Float[Array, "k m"]:
    """All inner products `V W^T` between the rows of two blocks."""

    def leaf(a: Array, b: Array) -> Array:
        if a.ndim == 1:
            return a[:, None] * b[None, :]
        batch = tuple(range(1, a.ndim - 1))
        last = a.ndim - 1
        products = jax.lax.dot_general(a, b, (((last,), (last,)), (batch, batch)), precision="highest")
        return jnp.sum(products, axis=tuple(range(len(batch))))

    return auto(lambda v, w: jax.tree.reduce(jnp.add, jax.tree.map(leaf, v, w)), V, W)


def orthonormalise(V: Block) -> Block:
    """Orthonormal rows with the span of the rows of `V`, as far as rounding tells; the other rows are zero.

    Told apart are directions above `2 sqrt(k eps)` of the largest, less than a hundredth in f32. The Gram matrix
    `V V^T = U S U^T` gives the rows `S^(-1/2) U^T V`. Forming it squares the condition number, so what it leaves is
    orthonormal only roughly, and the same step once more makes it so to rounding (as Cholesky QR does: Yamamoto,
    Nakatsukasa, Yanagisawa and Fukaya, ETNA 2015). A Gram-Schmidt over rows resolves more, in k passes over the block.
    """
    return _whiten(_whiten(V))


def _whiten(V: Block) -> Block:
    values, vectors = jnp.linalg.eigh(gram(V, V))
    cut = 4 * values.shape[0] * jnp.finfo(values.dtype).eps * jnp.max(values)
    keep = (values > cut) & (values > 0)
    return mix(V, vectors * jnp.where(keep, jnp.where(keep, values, 1.0) ** -0.5, 0.0))
