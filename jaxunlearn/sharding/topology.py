"""Accelerators one does not have: their devices, to compile for, and what the maker says they can do.

The compiler of TPUs runs on any machine with the package `libtpu` (extra `tpu`) and needs no TPU: it compiles for the
devices of a described topology. `"cpu:8"` stands for eight devices of this machine.

Sizes and speeds are those of Google's system architecture pages (cloud.google.com/tpu/docs/v5e, v5p, v6e), per chip.
A figure for the interconnect counts both directions; what one chip can send is half of it.
"""

import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

GIB = 2**30


class Chip(NamedTuple):
    """What one device has.

    Attributes:
        name: as in a topology.
        memory: bytes.
        flops: peak of bfloat16 matrix products, FLOPs/s; None where unknown.
        bandwidth: of the memory, bytes/s.
        interconnect: what a chip can send to others, bytes/s.
        axes: dimensions of the network.
    """

    name: str
    memory: int | None
    flops: float | None
    bandwidth: float | None
    interconnect: float | None
    axes: int = 1


CHIPS = {
    "v5e": Chip("v5e", 16 * GIB, 197e12, 819e9, 200e9, 2),
    "v5p": Chip("v5p", 95 * GIB, 459e12, 2765e9, 600e9, 3),
    "v6e": Chip("v6e", 32 * GIB, 918e12, 1600e9, 400e9, 2),
    "cpu": Chip("cpu", None, None, None, None),
}
# What libtpu asks its environment for on a machine without TPUs.
_TYPES = {"v5e": "v5litepod-{chips}", "v5p": "v5p-{cores}", "v6e": "v6e-{chips}"}


class Topology(NamedTuple):
    """Chips of one kind in a grid."""

    chip: Chip
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"


def parse_topology(text: str) -> Topology:
    """`"v5e:16x16"` as a topology.

    Raises:
        ValueError: an unknown chip, a shape that is no grid of the chip's network.

    Example:
        >>> parse_topology("v5e:16x16").chips, str(parse_topology("v5p:4x4x8"))
        (256, 'v5p:4x4x8')
    """
    name, _, grid = text.partition(":")
    if name not in CHIPS:
        raise ValueError(f"topology {text!r}: no chip {name!r}; known: {', '.join(CHIPS)}, as in v5e:16x16 or cpu:8")
    try:
        shape = tuple(int(size) for size in grid.split("x"))
    except ValueError:
        shape = ()
    if len(shape) != CHIPS[name].axes or any(size < 1 for size in shape):
        example = {1: "8", 2: "4x4", 3: "4x4x4"}[CHIPS[name].axes]
        raise ValueError(f"topology {text!r}: a grid of {name} has {CHIPS[name].axes} sizes, as in {name}:{example}")
    return Topology(CHIPS[name], shape)


def smaller(topology: Topology) -> list[Topology]:
    """Grids of the same chip with fewer of them, the smallest first: one size halved at a time.

    Example:
        >>> [str(one) for one in smaller(parse_topology("v5e:4x4"))]
        ['v5e:1x1', 'v5e:2x2', 'v5e:2x4']
    """
    found, shape = [], list(topology.shape)
    while max(shape) > 1:
        largest = max(range(len(shape)), key=lambda axis: (shape[axis], -axis))
        shape[largest] //= 2
        found.append(Topology(topology.chip, tuple(shape)))
    grids = [one for one in found if 1 not in one.shape or set(one.shape) == {1}]
    return sorted(grids, key=lambda one: one.chips)


def devices_of(topology: Topology) -> Sequence[Any]:
    """Devices to compile for. None of them can run anything, those of this machine apart.

    Raises:
        ValueError: when the compiler for TPUs is not installed, there is no such topology, or this machine has fewer
            devices than asked for.
    """
    import jax

    if topology.chip.name == "cpu":
        here = jax.devices("cpu")
        if len(here) < topology.chips:
            raise ValueError(
                f"{topology}: JAX sees {len(here)} CPU devices; start with "
                f"XLA_FLAGS=--xla_force_host_platform_device_count={topology.chips}"
            )
        return here[: topology.chips]
    from jax.experimental import topologies

    kind = _TYPES[topology.chip.name].format(chips=topology.chips, cores=2 * topology.chips)
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": kind,
    }.items():
        os.environ.setdefault(name, value)
    # A host is taken to have more chips than one unless told.
    alone = {"chips_per_host_bounds": (1, 1, 1)} if topology.chips == 1 else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=str(topology), **alone).devices
    except Exception as error:  # the plugin raises whatever its C layer reports
        if "lockfile" in str(error):
            raise ValueError(
                f"{topology}: another process of this machine has loaded the TPU compiler; wait until it has ended, or "
                "set ALLOW_MULTIPLE_LIBTPU_LOAD=1"
            ) from error
        raise ValueError(
            f"{topology}: the TPU compiler cannot describe it ({error}). It comes with the extra `tpu` "
            "(pip install 'jaxunlearn[tpu]'); shapes are listed at cloud.google.com/tpu/docs"
        ) from error
