"""Trees of arrays as checkpoints hold them: by name, random keys as their bits, laid out as somebody wants them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import Array, PyTree

from jaxunlearn.solvers.state_file import digest


def named(tree: PyTree) -> dict[str, Any]:
    """Leaves by path, random keys as their bits; empty ones hold nothing to save.

    Example:
        >>> sorted(named({"w": jnp.ones(2), "opt": (jnp.int32(3), jnp.zeros((0, 2)))}))
        ['opt.0', 'w']
    """
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if leaf.size:
            found[jax.tree_util.keystr(path, simple=True, separator=".") or "value"] = _bits(leaf)
    return found


def unnamed(like: PyTree, arrays: dict[str, Array]) -> PyTree:
    """The tree `like` with the arrays in the places of its leaves."""
    leaves, default = [], _default_layout(like)
    for path, leaf in jax.tree_util.tree_leaves_with_path(like):
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "value"
        if not leaf.size:
            leaves.append(jax.device_put(np.zeros(leaf.shape, leaf.dtype), _shape(leaf, default).sharding))
        elif _is_key(leaf):
            leaves.append(jax.random.wrap_key_data(arrays[name], impl=jax.random.key_impl(leaf)))
        else:
            leaves.append(arrays[name])
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def shapes_of(like: PyTree) -> dict[str, jax.ShapeDtypeStruct]:
    """What to read by name: shapes and types, each with the layout of its leaf, or on all devices where it has none."""
    default = _default_layout(like)
    return {name: _shape(leaf, default) for name, leaf in named(jax.tree.map(_abstract, like)).items()}


def digest_of(arrays: dict[str, Any]) -> str:
    """A hash of every bit, by `solvers.state_file.digest`: the same on any mesh, and nothing is gathered.

    Example:
        >>> digest_of({"a": jnp.int32(2**24)}) == digest_of({"a": jnp.int32(2**24 + 1)})  # equal as f32
        False
    """
    return digest(_words({name: jnp.asarray(leaf) for name, leaf in arrays.items()})) if arrays else ""


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _bits(leaf: Any) -> Any:
    if not _is_key(leaf):
        return leaf
    return jax.eval_shape(jax.random.key_data, leaf) if isinstance(leaf, jax.ShapeDtypeStruct) else _key_data(leaf)


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """Of an array whose memory was given up, too."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))


_key_data = jax.jit(jax.random.key_data)


def _default_layout(tree: PyTree) -> jax.sharding.Sharding:
    """On all devices of the mesh that some leaf lives on, or on the first device."""
    for leaf in jax.tree.leaves(tree):
        layout = getattr(leaf, "sharding", None)
        if isinstance(layout, NamedSharding):
            return NamedSharding(layout.mesh, PartitionSpec())
    return SingleDeviceSharding(jax.local_devices()[0])


def _shape(leaf: Any, default: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    """Beside arrays on a mesh, one on a single device is on all: arrays of two meshes go into no program together."""
    layout = getattr(leaf, "sharding", None)
    if isinstance(layout, NamedSharding):
        concrete = isinstance(layout.mesh, jax.sharding.Mesh)
    else:
        concrete = isinstance(layout, SingleDeviceSharding) and isinstance(default, SingleDeviceSharding)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout if concrete else default)


@jax.jit
def _words(arrays: dict[str, Array]) -> dict[str, Array]:
    """Every leaf as f32 without the loss of a bit: `digest` looks at f32."""

    def leaf(a: Array) -> Array:
        whole = jnp.issubdtype(a.dtype, jnp.integer) and a.dtype.itemsize == 4
        return jax.lax.bitcast_convert_type(a, jnp.float32) if whole else a

    return jax.tree.map(leaf, arrays)
