"""Device meshes with three axes: "data", "fsdp" and "tensor".

* data: the batch is split and the parameters are repeated;
* fsdp: the batch is split and the parameters are split too, gathered layer by layer as they are used
  (Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models");
* tensor: heads, hidden units and vocabulary are split (Shoeybi et al. 2019, "Megatron-LM").

`jax.make_mesh` gives Explicit axes unless told otherwise: there the sharding is part of an array's type. Auto axes,
where the compiler propagates shardings, are the default here because any user code runs on them.
"""

import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

AXES = ("data", "fsdp", "tensor")


def make_mesh(
    data: int = 1,
    fsdp: int = 1,
    tensor: int = 1,
    *,
    explicit: bool = False,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """A mesh of shape `(data, fsdp, tensor)`.

    Args:
        data: number of groups among which the batch, and only the batch, is split.
        fsdp: number of groups among which batch and parameters are split.
        tensor: number of devices that share one layer's heads, hidden units and vocabulary.
        explicit: whether shardings are part of array types (`jax.sharding.AxisType.Explicit`).
        devices: the devices to use, default all of `jax.devices()`.

    Raises:
        ValueError: when a size is below 1 or `data * fsdp * tensor` is not the number of devices.

    Example:
        >>> import jax
        >>> make_mesh(devices=jax.devices()[:1]).axis_names
        ('data', 'fsdp', 'tensor')
    """
    shape = (data, fsdp, tensor)
    for name, size in zip(AXES, shape, strict=True):
        if size < 1:
            raise ValueError(f"mesh axis {name!r} has size {size}; every axis needs at least 1")
    devices = jax.devices() if devices is None else list(devices)
    needed = data * fsdp * tensor
    if needed != len(devices):
        raise ValueError(
            f"mesh data={data} x fsdp={fsdp} x tensor={tensor} needs {needed} devices, but there are {len(devices)}; "
            f"choose sizes whose product is {len(devices)}, or pass devices=jax.devices()[:{needed}]"
        )
    kind = AxisType.Explicit if explicit else AxisType.Auto
    return jax.make_mesh(shape, AXES, axis_types=(kind,) * len(AXES), devices=devices)


def mesh_sizes(text: str, count: int) -> dict[str, int]:
    """`"data=2,fsdp=-1"` for `count` devices; an axis that is not named has size 1, one of size -1 takes the rest.

    Raises:
        ValueError: an unknown axis, a size that is no number, two axes that take the rest, or sizes whose product is
            not `count`.

    Example:
        >>> mesh_sizes("fsdp=-1,tensor=4", 16)
        {'data': 1, 'fsdp': 4, 'tensor': 4}
    """
    sizes = dict.fromkeys(AXES, 1)
    for part in filter(None, text.split(",")):
        name, _, value = part.strip().partition("=")
        if name not in AXES or not value.lstrip("-").isdigit() or (int(value) < 1 and int(value) != -1):
            raise ValueError(
                f"mesh {text!r}: {part.strip()!r} is not one of {', '.join(AXES)} with a size, as in fsdp=8"
            )
        sizes[name] = int(value)
    rest = [name for name, size in sizes.items() if size == -1]
    named = math.prod(size for size in sizes.values() if size != -1)
    if len(rest) > 1:
        raise ValueError(f"mesh {text!r}: only one axis can take the rest (-1)")
    if rest:
        sizes[rest[0]] = max(count // named, 1)
    if (made := math.prod(sizes.values())) != count:
        odd = next((name for name, size in sizes.items() if size > 1 and count % size), None)
        why = "" if odd is None else f"; {odd}={sizes[odd]} does not divide them"
        raise ValueError(
            f"mesh {text!r} needs {made} devices, but there are {count}{why}; choose sizes whose product is {count}, "
            "where -1 takes the rest"
        )
    return sizes


def is_explicit(mesh: Mesh | None) -> bool:
    """Whether arrays on `mesh` carry their sharding in their type."""
    return mesh is not None and AxisType.Explicit in mesh.axis_types
