"""Where arrays live: device meshes, logical axis rules, batch placement, several processes.

Example:
    >>> import jax
    >>> from jaxunlearn import sharding
    >>> mesh = sharding.make_mesh(devices=jax.devices()[:1])
    >>> tuple(sharding.partition_spec(mesh, ("vocab", "embed"), (512, 64)))
    ('tensor', 'fsdp')
"""

from jaxunlearn.sharding.collect import largest, of_first, on_host, put, together
from jaxunlearn.sharding.mesh import AXES, is_explicit, make_mesh, mesh_sizes
from jaxunlearn.sharding.rows import shard_batch, shard_rows
from jaxunlearn.sharding.rules import (
    DEFAULT_RULES,
    LogicalAxes,
    Rules,
    Whole,
    check_axes,
    constrain,
    named_sharding,
    partition_spec,
)

__all__ = [
    "AXES",
    "DEFAULT_RULES",
    "LogicalAxes",
    "Rules",
    "Whole",
    "check_axes",
    "constrain",
    "is_explicit",
    "largest",
    "make_mesh",
    "mesh_sizes",
    "named_sharding",
    "of_first",
    "on_host",
    "partition_spec",
    "put",
    "shard_batch",
    "shard_rows",
    "together",
]
