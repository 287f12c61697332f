"""Where factors live on a mesh.

A parameter [m, n] is split over some mesh axes along its rows and over others along its columns. Its factors are split
over the same axes (`taps.axes_of_sum`), wherever they divide, and second moments are laid out like the parameter. The
layouts of parameters are known outside of `jax.jit` and, on Explicit axes, inside; where a program is traced with Auto
axes the model lays out its dummies itself, as the decoder does, or the compiler decides.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from jaxunlearn.curvature.kronecker.paths import paths_of
from jaxunlearn.curvature.kronecker.table import Row, Table, Term
from jaxunlearn.sharding import put
from jaxunlearn.sharding.regions import explicit_mesh
from jaxunlearn.taps import axes_of_sum
from jaxunlearn.types import Params

Places = tuple[tuple[str, NamedSharding], ...]


def concrete(params: Params) -> Places:
    """Shardings of parameters that are at hand and split over a mesh with Auto axes."""
    found = []
    for path, leaf in paths_of(params):
        place = None if isinstance(leaf, jax.core.Tracer) else getattr(leaf, "sharding", None)
        if isinstance(place, NamedSharding) and place.mesh.size > 1 and AxisType.Explicit not in place.mesh.axis_types:
            found.append((path, place))
    return tuple(found)


def zeros(leaf: Array, row: Row, term: Term, name: str, shape: tuple[int, ...]) -> Array:
    """The dummy of one sum, stacked like the parameter, in f32 (or float64), placed on its mesh if that is explicit."""
    full = (*row.shape[: row.stacked], *shape)
    place = jax.typeof(leaf).sharding
    device = None
    if AxisType.Explicit in place.mesh.axis_types:
        device = NamedSharding(place.mesh, spec(place, row, term, name, full))
    return jnp.zeros(full, jnp.promote_types(leaf.dtype, jnp.float32), device=device)


def constrain(sums: dict, table: Table, places: dict[str, NamedSharding]) -> dict:
    """Sums laid out on the Auto mesh of the parameters in `places`."""

    def lay_out(where: tuple, x: Array) -> Array:
        path, use, name = (entry.key for entry in where)
        term = next((term for term in table[path].terms if term.use == use), None)
        return _at_place(x, places.get(path), table[path], term, name)

    return jax.tree_util.tree_map_with_path(lay_out, sums)


def constrain_eigen(arrays: dict, table: Table, places: dict[str, NamedSharding]) -> dict:
    """Eigenvectors by path and side, or eigenvalues by path, laid out likewise."""

    def lay_out(where: tuple, x: Array) -> Array:
        path = where[0].key
        return _at_place(x, places.get(path), table[path], None, "Q" if len(where) == 2 else "S")

    return jax.tree_util.tree_map_with_path(lay_out, arrays)


def _at_place(x: Array, place: NamedSharding | None, row: Row, term: Term | None, name: str) -> Array:
    if place is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(place.mesh, spec(place, row, term, name, x.shape)))


def spec(place: NamedSharding, row: Row, term: Term | None, name: str, shape: tuple[int, ...]) -> PartitionSpec:
    """The mesh axes of one sum, or of eigenvectors "Q", of shape `shape`, from those of its parameter."""
    axes = tuple(place.spec) + (None,) * (len(row.shape) - len(place.spec))
    # A diagonal from per-example gradients has no use; it is laid out like its parameter, as is any other sum "S".
    wanted = axes if name in ("S", "Q") else axes_of_sum(axes, term.use, name, len(shape))
    fitted = [a if n % _ways(place.mesh, a) == 0 else None for a, n in zip(wanted, shape, strict=True)]
    return PartitionSpec(*fitted)


def row_ids(batch: PyTree) -> Array:
    """0, 1, ... for the examples of a batch, spread over the devices like its rows."""
    leaf = jax.tree.leaves(batch)[0]
    ids = jnp.arange(leaf.shape[0], dtype=jnp.uint32)
    mesh = explicit_mesh(leaf)
    if mesh is None:
        return ids
    rows = tuple(jax.typeof(leaf).sharding.spec)[:1]
    return jax.sharding.reshard(ids, NamedSharding(mesh, PartitionSpec(*rows)))


def wide(x: Array) -> Array:
    """`x` in f32, or in float64 if it is."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def put_like(x: PyTree, like: PyTree) -> PyTree:
    """Host arrays on the devices of the arrays of `like`, which have the same shapes."""
    return jax.tree.map(lambda a, b: put(jnp.asarray(a, wide(b).dtype), b.sharding), x, like)


def _ways(mesh: Any, axes: Any) -> int:
    ways = 1
    for axis in axes if isinstance(axes, tuple) else (axes,):
        ways *= 1 if axis is None else mesh.shape[axis]
    return ways
