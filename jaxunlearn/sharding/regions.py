"""Regions of a program whose layout the compiler decides, on meshes of either kind.

On a mesh with Auto axes XLA lays out every intermediate; on one with Explicit axes layouts are part of the types and
operations whose result layout is ambiguous are errors. `auto` runs a function in Auto mode under both, which is the
one place where the library tells them apart.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from jaxunlearn.sharding.collect import put


def explicit_mesh(*trees: PyTree):
    """The explicit mesh that some leaf of `trees` lives on, or `None`."""
    for leaf in jax.tree.leaves(trees):
        mesh = getattr(jax.typeof(leaf).sharding, "mesh", None)
        if mesh is not None and AxisType.Explicit in mesh.axis_types:
            return mesh
    return None


def auto(f: Callable[..., PyTree], *args: PyTree, like: PyTree | None = None) -> PyTree:
    """`f(*args)`, computed in Auto mode if the arguments live on an explicit mesh.

    Args:
        f: a function of array pytrees.
        *args: its arguments.
        like: layouts of the result: a pytree of arrays, or of their shapes with shardings, that is a prefix of it;
            `None` replicates it.
    """
    mesh = explicit_mesh(args)
    if mesh is None:
        return f(*args)
    replicated = NamedSharding(mesh, PartitionSpec())
    out = replicated if like is None else jax.tree.map(lambda x: _layout(x, replicated), like)
    return jax.sharding.auto_axes(f, out_sharding=out)(*args)


def replicate_rest(state: PyTree, params: PyTree) -> PyTree:
    """`state` with all that is not laid out over the mesh of `params` on every device of it: scalars, records.

    A jitted step leaves it there; a state whose arrays moved between the first step and the second would compile the
    step twice. Nothing is done for traced values or without a mesh.
    """
    leaf = jax.tree.leaves(params)[0]
    layout = None if isinstance(leaf, jax.core.Tracer) else getattr(leaf, "sharding", None)
    if not isinstance(layout, NamedSharding) or layout.mesh.size == 1:
        return state
    everywhere = NamedSharding(layout.mesh, PartitionSpec())
    return jax.tree.map(lambda x: x if isinstance(x.sharding, NamedSharding) else put(x, everywhere), state)


def replicate(x: PyTree) -> PyTree:
    """`x` whole on every device of an explicit mesh; on Auto meshes the compiler moves what is needed."""
    mesh = explicit_mesh(x)
    if mesh is None:
        return x
    return jax.tree.map(lambda a: jax.sharding.reshard(a, NamedSharding(mesh, PartitionSpec())), x)


def split_rows(batch: PyTree, parts: int) -> PyTree:
    """Leaves [n, ...] as [parts, n / parts, ...], the rows of one part kept spread over the devices as before."""

    def split(a: jax.Array) -> jax.Array:
        shape = (parts, a.shape[0] // parts, *a.shape[1:])
        mesh = explicit_mesh(a)
        if mesh is None:
            return jnp.reshape(a, shape)
        spec = jax.typeof(a).sharding.spec
        rows = spec[0] if len(spec) and _divides(mesh, spec[0], shape[1]) else None
        whole = jax.sharding.reshard(a, NamedSharding(mesh, PartitionSpec(None, *spec[1:])))
        return jax.sharding.reshard(
            jnp.reshape(whole, shape), NamedSharding(mesh, PartitionSpec(None, rows, *spec[1:]))
        )

    return jax.tree.map(split, batch)


def take_rows(batch: PyTree, index: Sequence[int] | np.ndarray) -> PyTree:
    """Rows `index` of leaves [n, ...], in that order and spread over the devices as before where their number allows.

    Example:
        >>> take_rows(jnp.arange(4) * 10, [0, 1, 0]).tolist()
        [0, 10, 0]
    """
    index = np.asarray(index)

    def take(a: jax.Array) -> jax.Array:
        mesh = explicit_mesh(a)
        if mesh is None:
            return a[index]
        spec = jax.typeof(a).sharding.spec
        rows = spec[0] if len(spec) and _divides(mesh, spec[0], len(index)) else None
        return jax.sharding.reshard(replicate(a)[index], NamedSharding(mesh, PartitionSpec(rows, *spec[1:])))

    return jax.tree.map(take, batch)


def _divides(mesh, axes, size: int) -> bool:
    names = axes if isinstance(axes, tuple) else (axes,)
    shards = 1
    for name in names:
        shards *= 1 if name is None else mesh.shape[name]
    return size % shards == 0


def _layout(x: jax.Array | jax.ShapeDtypeStruct, default: NamedSharding) -> NamedSharding:
    sharding = x.sharding if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x).sharding
    return default if sharding is None or sharding.mesh.empty else sharding
