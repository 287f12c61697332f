"""Sums of outer products of per-example gradients, `F = (1/n) sum_i g_i g_i^T`: what both Fishers are made of.

With `l(theta)` the vector of per-example values and `G = dl/dtheta` its Jacobian (m x d), `F = G^T G / n`. The rows
can be stored, which makes a product two passes over m gradients; or recomputed, when they do not fit: `G v` is a jvp of
`l`, `G^T c` a vjp, together a gradient and a half, and nothing of size m x d exists. The dual form needs `K = G G^T`
(m x m) once; recomputed, it is built from pairs of blocks of rows, so that two blocks are the most that is in memory.

Everything here takes `values(params, batch) -> ([B] values, count)` with the counts of batches adding up to `n`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from jaxunlearn import tree
from jaxunlearn.accumulate import accumulate, chunks_of, sum_over
from jaxunlearn.curvature.forward_mode import jvp
from jaxunlearn.curvature.low_rank import LowRankOperator, dual_form, stored_factor
from jaxunlearn.operators import Factor
from jaxunlearn.sharding.regions import explicit_mesh, replicate, split_rows, take_rows
from jaxunlearn.solvers.block import gram
from jaxunlearn.types import Params, examples_in

Values = Callable[[Params, PyTree], tuple[Array, Array]]


def outer_product(
    values: Values, params: Params, batch: PyTree, v: PyTree, *, microbatch: int | None = None
) -> tuple[PyTree, Array]:
    """`(sum_i g_i <g_i, v>, count)`, f32: the product before it is divided by the count."""
    tangent = tree.cast_like(v, params)

    def product(chunk: PyTree) -> tuple[PyTree, Array]:
        _, pullback, count = jax.vjp(lambda p: values(p, chunk), params, has_aux=True)
        _, projected = jvp(lambda p: values(p, chunk)[0], params, tangent)
        return tree.to_vector(pullback(projected)[0]), count

    total, count = accumulate(product, batch, microbatch)
    return tree.shard_like(total, params), count


def recomputed_factor(values: Values, params: Params, batch: PyTree, *, microbatch: int | None = None) -> Factor:
    """`S = G^T / sqrt(n)` without any stored gradient; its dual vectors have one entry an example."""
    chunks, m = chunks_of(batch, microbatch), examples_in(batch)
    count = sum_over(lambda chunk: values(params, chunk)[1], chunks)
    root = jnp.sqrt(jnp.where(count > 0, count, 1.0))

    def transpose(v: PyTree) -> Array:
        tangent = tree.cast_like(v, params)

        def push(chunk: PyTree) -> Array:
            return replicate(jvp(lambda p: values(p, chunk)[0], params, tangent)[1])

        return jax.lax.map(push, chunks).reshape(m) / root

    def forward(c: Array) -> PyTree:
        def pull(pair: tuple[PyTree, Array]) -> PyTree:
            out, pullback = jax.vjp(lambda p: values(p, pair[0])[0], params)
            return tree.to_vector(pullback(_typed_like(pair[1].astype(out.dtype), out))[0])

        parts = (c / root).reshape(jax.tree.leaves(chunks)[0].shape[:2])
        return tree.shard_like(sum_over(pull, (chunks, parts)), params)

    return Factor(forward, transpose, params)


def gradients(values: Values, params: Params, batch: PyTree, *, at_once: int = 1) -> tuple[PyTree, Array]:
    """`(rows, count)`: the gradient of every example, leaves [m, *shape] in f32 laid out like the parameters behind.

    Rows are taken `at_once` at a time, each seen whole by every device, so any number of shards may hold them.
    """
    examples = split_rows(replicate(batch), examples_in(batch))

    def row(example: PyTree) -> tuple[PyTree, Array]:
        def value(p: Params) -> tuple[Array, Array]:
            entries, count = values(p, example)
            return jnp.sum(entries), count

        grad, count = jax.grad(value, has_aux=True)(params)
        return tree.shard_like(tree.to_vector(grad), params), replicate(count)

    rows, counts = jax.lax.map(row, examples, batch_size=None if at_once == 1 else at_once)
    return rows, jnp.sum(counts)


def stored_form(values: Values, params: Params, batch: PyTree, *, at_once: int = 1) -> LowRankOperator:
    """The dual form from stored rows: m times the parameters in f32."""
    rows, count = gradients(values, params, batch, at_once=at_once)
    count = jnp.where(count > 0, count, 1.0)
    return dual_form(stored_factor(rows, count, params), gram(rows, rows) / count, rows=rows)


def recomputed_form(
    values: Values, params: Params, batch: PyTree, *, microbatch: int | None = None, block: int = 8
) -> LowRankOperator:
    """The dual form with nothing stored: `2 block` times the parameters in f32 while K is built, then nothing.

    K takes about `m^2 / (2 block)` gradients, once; under `jit` only where a power or a span share is asked for.
    """
    factor = recomputed_factor(values, params, batch, microbatch=microbatch)
    K, count = _gram_in_blocks(values, params, batch, min(block, examples_in(batch)))
    return dual_form(factor, K / jnp.where(count > 0, count, 1.0))


def _gram_in_blocks(values: Values, params: Params, batch: PyTree, block: int) -> tuple[Array, Array]:
    m = examples_in(batch)
    k = -(-m // block)
    # The last block is filled up with copies of the last row, which are cut off again.
    blocks = split_rows(take_rows(replicate(batch), np.minimum(np.arange(k * block), m - 1)), k)

    def rows(i: Array) -> PyTree:
        return gradients(values, params, jax.tree.map(lambda x: x[i], blocks))[0]

    dtype = jax.tree.leaves(jax.eval_shape(rows, 0))[0].dtype

    def against_later(i: Array, K: Array) -> Array:
        first = rows(i)

        def pair(j: Array, K: Array) -> Array:
            return jax.lax.dynamic_update_slice(K, gram(first, rows(j)).astype(dtype), (i * block, j * block))

        return jax.lax.fori_loop(i, k, pair, K)

    start = _replicated_beside(params, jnp.zeros((k * block, k * block), dtype))
    K = jax.lax.fori_loop(0, k, against_later, start)[:m, :m]
    upper = jnp.triu(K)
    count = sum_over(lambda chunk: values(params, chunk)[1], chunks_of(batch, None))
    return upper + jnp.triu(K, 1).T, count


def _replicated_beside(params: Params, x: Array) -> Array:
    """A fresh array typed as replicated over the explicit mesh of `params`, if they live on one."""
    mesh = explicit_mesh(params)
    return x if mesh is None else jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec()))


def _typed_like(c: Array, like: Array) -> Array:
    """A replicated vector with the sharding that is part of the type of `like` on an explicit mesh."""
    return c if explicit_mesh(like) is None else jax.sharding.reshard(c, jax.typeof(like).sharding)
