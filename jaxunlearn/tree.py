"""Parameter pytrees as vectors, safe on any mesh.

Inner products are `sum(f32(x) * f32(y))` leaf by leaf. Flattening a leaf (`jnp.vdot`, `ravel_pytree`, most einsums)
would gather every sharded leaf onto every device and is an error on explicit meshes; an elementwise product followed
by a full sum needs one scalar all-reduce. Solver vectors are f32 whatever the parameters are.
"""

import operator
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.experimental.shard_alike import shard_alike
from jax.sharding import AxisType
from jaxtyping import Array, Float, PyTree

Tree: TypeAlias = PyTree[Array]


def vdot(x: Tree, y: Tree) -> Float[Array, ""]:
    """Inner product `<x, y>` in f32.

    Example:
        >>> import jax.numpy as jnp
        >>> float(vdot({"a": jnp.ones(3), "b": jnp.ones((2, 2))}, {"a": jnp.ones(3), "b": 2 * jnp.ones((2, 2))}))
        11.0
    """
    parts = jax.tree.map(lambda a, b: jnp.sum(_wide(a) * _wide(b)), x, y)
    return jax.tree.reduce(operator.add, parts, jnp.zeros((), jnp.float32))


def norm(x: Tree) -> Float[Array, ""]:
    """Euclidean norm `sqrt(<x, x>)` in f32."""
    return jnp.sqrt(vdot(x, x))


def add(x: Tree, y: Tree) -> Tree:
    """`x + y`."""
    return jax.tree.map(operator.add, x, y)


def sub(x: Tree, y: Tree) -> Tree:
    """`x - y`."""
    return jax.tree.map(operator.sub, x, y)


def scale(c: Float[Array, ""] | float, x: Tree) -> Tree:
    """`c x`, in the dtype of `x`."""
    return jax.tree.map(lambda a: (c * a).astype(a.dtype), x)


def axpy(c: Float[Array, ""] | float, x: Tree, y: Tree) -> Tree:
    """`c x + y`, in the dtype of `y`."""
    return jax.tree.map(lambda a, b: (c * a + b).astype(b.dtype), x, y)


def where(condition: Array, x: Tree, y: Tree) -> Tree:
    """`x` where the scalar `condition` holds, else `y`."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), x, y)


def to_vector(x: Tree) -> Tree:
    """A solver vector: every leaf in f32 (float64 is kept, for oracles)."""
    return jax.tree.map(_wide, x)


def cast_like(x: Tree, like: Tree) -> Tree:
    """`x` with the dtypes of `like`: what a tangent must have before it meets the parameters."""
    return jax.tree.map(lambda a, b: a.astype(b.dtype), x, like)


def zeros_like(x: Tree) -> Tree:
    """The zero solver vector of the structure of `x`, sharded like it."""
    return jax.tree.map(lambda a: jnp.zeros_like(a, dtype=_wide_dtype(a)), x)


def shard_like(x: Tree, like: Tree) -> Tree:
    """`x` laid out as `like`, a tree of the same shapes. Without it XLA may return a product replicated.

    On explicit meshes layouts are part of the types and nothing is done.
    """
    leaves, structure = jax.tree.flatten(x)
    likes = jax.tree.leaves(like)
    seen: dict[tuple[int, ...], int] = {}
    out = []
    for a, b in zip(leaves, likes, strict=True):
        number = seen[b.shape] = seen.get(b.shape, -1) + 1
        out.append(_tie(a, b, number) if _is_auto(b) else a)
    return jax.tree.unflatten(structure, out)


def normal_like(key: Array, x: Tree) -> Tree:
    """Independent standard normal entries with the structure and the sharding of `x`, f32."""
    leaves, structure = jax.tree.flatten(x)
    keys = jax.random.split(key, len(leaves))
    noise = [_normal(k, leaf) for k, leaf in zip(keys, leaves, strict=True)]
    return shard_like(jax.tree.unflatten(structure, noise), x)


def rademacher_like(key: Array, x: Tree) -> Tree:
    """Independent random signs, +1 or -1, with the structure and the sharding of `x`, f32.

    Of all probes with independent entries of mean 0 and variance 1 they give Hutchinson's trace estimator its smallest
    variance, because `u_i^2 = 1` leaves no noise from the diagonal.

    Example:
        >>> import jax
        >>> u = rademacher_like(jax.random.key(0), {"a": jnp.zeros(3), "b": jnp.zeros((2, 2), jnp.bfloat16)})
        >>> float(vdot(u, u)), u["b"].dtype.name
        (7.0, 'float32')
    """
    leaves, structure = jax.tree.flatten(x)
    keys = jax.random.split(key, len(leaves))
    signs = [_rademacher(k, leaf) for k, leaf in zip(keys, leaves, strict=True)]
    return shard_like(jax.tree.unflatten(structure, signs), x)


def all_finite(x: Tree) -> Array:
    """True when no entry is NaN or infinite."""
    return jax.tree.reduce(operator.and_, jax.tree.map(lambda a: jnp.all(jnp.isfinite(a)), x), jnp.array(True))


def _tie(a: Array, b: Array, number: int) -> Array:
    """`a` in the layout of `b`, the `number`-th leaf of its shape.

    JAX 0.10 lowers `shard_alike` once per shape, so that all leaves of one shape would share one layout. Leading axes
    of length 1, as many as `number`, keep the groups of different leaves apart.
    """
    rank = (1,) * number + b.shape
    return shard_alike(a.reshape(rank), b.reshape(rank))[0].reshape(b.shape)


def _normal(key: Array, leaf: Array) -> Array:
    if _is_auto(leaf):
        return jax.random.normal(key, leaf.shape, _wide_dtype(leaf))
    return jax.random.normal(key, leaf.shape, _wide_dtype(leaf), out_sharding=jax.typeof(leaf).sharding)


def _rademacher(key: Array, leaf: Array) -> Array:
    place = None if _is_auto(leaf) else jax.typeof(leaf).sharding
    return jax.random.rademacher(key, leaf.shape, _wide_dtype(leaf), out_sharding=place)


def _is_auto(leaf: Array) -> bool:
    """Explicit meshes carry the sharding in the type, where `shard_alike` is neither needed nor allowed."""
    return AxisType.Explicit not in jax.typeof(leaf).sharding.mesh.axis_types


def _wide_dtype(a: Array) -> jnp.dtype:
    return jnp.promote_types(a.dtype, jnp.float32)


def _wide(a: Array) -> Array:
    return a.astype(_wide_dtype(a))
