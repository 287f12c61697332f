"""Logical axis rules: the model names its dimensions, a table says which mesh axes split them.

A spec such as `("vocab", "embed")` says what each dimension of an array *is*; `Rules` says where each kind of
dimension goes. Layout is thus data that can be changed without touching the model. A mesh axis that does not divide
a dimension is dropped, so a batch of one is replicated instead of being an error.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array


class Whole(NamedTuple):
    """A dimension made of pieces that are never cut: heads of attention, each `size` entries wide."""

    name: str
    size: int


LogicalAxes = tuple[str | Whole | None, ...]


@dataclass(frozen=True)
class Rules:
    """Which mesh axes split each kind of dimension (an empty tuple: none).

    Attributes:
        batch: examples.
        length: token positions.
        layers: the leading axis of stacked layers.
        vocab: vocabulary entries, in the embedding table and in the head.
        embed: the residual stream, as a dimension of parameters.
        heads: query heads times head width.
        kv_heads: key or value heads times head width; where the heads do not divide, every device has all of them.
        mlp: hidden units of the feed-forward network.
    """

    batch: tuple[str, ...] = ("data", "fsdp")
    length: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    vocab: tuple[str, ...] = ("tensor",)
    embed: tuple[str, ...] = ("fsdp",)
    heads: tuple[str, ...] = ("tensor",)
    kv_heads: tuple[str, ...] = ("tensor",)
    mlp: tuple[str, ...] = ("tensor",)

    def mesh_axes(self, logical: str | Whole | None) -> tuple[str, ...]:
        """The mesh axes of one logical axis; `None` is never split."""
        if logical is None:
            return ()
        if isinstance(logical, Whole):
            logical = logical.name
        try:
            return getattr(self, logical)
        except AttributeError:
            known = ", ".join(self.__dataclass_fields__)
            raise ValueError(f"unknown logical axis {logical!r}; the rules know {known}") from None


DEFAULT_RULES = Rules()


def partition_spec(
    mesh: Mesh | AbstractMesh, logical_axes: LogicalAxes, shape: tuple[int, ...], rules: Rules = DEFAULT_RULES
) -> PartitionSpec:
    """The mesh axes that split each dimension of an array of `shape`.

    Mesh axes are taken in the order of the rule while their product divides the dimension (of a `Whole` one, the number
    of its pieces); one mesh axis splits at most one dimension, the first that claims it.

    Raises:
        ValueError: when `logical_axes` and `shape` differ in length, or a logical axis is unknown.

    Example:
        >>> from jaxunlearn.sharding import make_mesh
        >>> tuple(partition_spec(make_mesh(devices=jax.devices()[:1]), ("batch", None), (8, 3)))
        (('data', 'fsdp'), None)
    """
    if len(logical_axes) != len(shape):
        raise ValueError(f"{len(logical_axes)} logical axes {logical_axes} for an array of shape {shape}")
    used: set[str] = set()
    entries = []
    for logical, size in zip(logical_axes, shape, strict=True):
        chosen: list[str] = []
        ways = logical.size if isinstance(logical, Whole) else 1
        for axis in rules.mesh_axes(logical):
            if axis in mesh.shape and axis not in used and size % (ways * mesh.shape[axis]) == 0:
                chosen.append(axis)
                ways *= mesh.shape[axis]
        used.update(chosen)
        entries.append(None if not chosen else chosen[0] if len(chosen) == 1 else tuple(chosen))
    return PartitionSpec(*entries)


def check_axes(mesh: Mesh, parameters: Iterable[tuple[LogicalAxes, tuple[int, ...]]], rules: Rules = DEFAULT_RULES):
    """Refuse a mesh with an axis that splits neither batch nor any parameter: its devices would all do the same.

    Args:
        mesh: the mesh.
        parameters: logical axes and shape of every parameter.
        rules: the table.

    Raises:
        ValueError: naming the axis, its size, what it could have split, and a size that does.

    Example:
        >>> from jaxunlearn.sharding import make_mesh
        >>> check_axes(make_mesh(devices=jax.devices()[:1]), [(("vocab", "embed"), (51, 64))])
    """
    parameters = list(parameters)
    split = [_axes_in(partition_spec(mesh, *one, rules)) for one in parameters]
    for axis, size in mesh.shape.items():
        meant = {
            f"{logical.name if isinstance(logical, Whole) else logical} {n}": _pieces(logical, n)
            for axes, shape in parameters
            for logical, n in zip(axes, shape, strict=True)
            if logical not in (None, "layers") and axis in rules.mesh_axes(logical)
        }
        if size == 1 or axis in rules.batch or not meant or any(axis in one for one in split):
            continue
        # The largest size below that divides something and leaves devices to the other axes.
        fits = max(n for n in range(1, size + 1) if size % n == 0 and any(pieces % n == 0 for pieces in meant.values()))
        raise ValueError(
            f"mesh axis {axis!r} has size {size}, which divides no dimension of this model that it could split "
            f"({', '.join(meant)}), so its {size} devices would all hold and do the same; give {axis}={fits} and the "
            "other devices to another axis"
        )


def _pieces(logical: str | Whole, size: int) -> int:
    return size // logical.size if isinstance(logical, Whole) else size


def _axes_in(spec: PartitionSpec) -> set[str]:
    return {name for entry in spec if entry is not None for name in (entry if isinstance(entry, tuple) else (entry,))}


def named_sharding(
    mesh: Mesh | AbstractMesh, logical_axes: LogicalAxes, shape: tuple[int, ...], rules: Rules = DEFAULT_RULES
) -> NamedSharding:
    """The sharding on `mesh` of an array whose dimensions are `logical_axes`; see `partition_spec`."""
    return NamedSharding(mesh, partition_spec(mesh, logical_axes, shape, rules))


def constrain(
    x: Array, logical_axes: LogicalAxes, mesh: Mesh | AbstractMesh | None, rules: Rules = DEFAULT_RULES
) -> Array:
    """`x`, laid out by its logical axes; `x` itself when `mesh` is None or inside `jax.shard_map`.

    On Auto axes this is a constraint for the compiler; on Explicit axes it reshards, since there the layout is part
    of the type.
    """
    if mesh is None:
        return x
    spec = partition_spec(mesh, logical_axes, x.shape, rules)
    context = jax.sharding.get_abstract_mesh()
    if context.empty:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
    if AxisType.Manual in context.axis_types:
        return x
    if AxisType.Explicit in context.axis_types:
        return jax.sharding.reshard(x, spec)
    return jax.lax.with_sharding_constraint(x, spec)
