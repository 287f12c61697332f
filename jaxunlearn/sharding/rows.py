"""Batches over the devices of a mesh: their rows are split, and each process needs those of its own devices only.

Every process knows the order and the shape of all batches, which are a function of the seed and of the lengths of the
records. So it can make the part of a batch that its devices hold without the rest, and nothing is sent: what a batch
costs a host does not grow with the number of hosts.
"""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, PyTree

from jaxunlearn.sharding.rules import DEFAULT_RULES, Rules, named_sharding


def shard_rows(
    make: Callable[[Int[np.ndarray, " n"]], PyTree], count: int, mesh: Mesh | None, rules: Rules = DEFAULT_RULES
) -> PyTree:
    """A batch of `count` rows, split over the batch axes of `mesh`, of which each process makes those it holds.

    Args:
        make: from numbers of rows, ascending, to host arrays of these rows (any pytree, leading axis = rows); of other
            rows it gives the same shapes but for their number.
        count: rows in all.
        mesh: where they go; `None` for all on the default device.
        rules: which mesh axes split a batch.

    Example:
        >>> shard_rows(lambda rows: {"square": rows**2}, 4, None)["square"].tolist()
        [0, 1, 4, 9]
    """
    if mesh is None:
        return jax.tree.map(jax.numpy.asarray, make(np.arange(count)))
    layout = named_sharding(mesh, ("batch",), (count,), rules)
    parts = [np.arange(count)[index] for index in layout.addressable_devices_indices_map((count,)).values()]
    own = np.unique(np.concatenate(parts))

    def place(leaf: np.ndarray) -> Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            rows = np.arange(count)[index[0]]
            start = int(np.searchsorted(own, rows[0])) if len(rows) else 0
            return leaf[start : start + len(rows)][(slice(None), *index[1:])]

        shape = (count, *leaf.shape[1:])
        target = named_sharding(mesh, ("batch", *(None,) * (leaf.ndim - 1)), shape, rules)
        return jax.make_array_from_callback(shape, target, part)

    return jax.tree.map(lambda leaf: place(np.asarray(leaf)), make(own))


def shard_batch(batch: PyTree, mesh: Mesh | None, rules: Rules = DEFAULT_RULES) -> PyTree:
    """A host batch (any pytree, leading axis = examples) as arrays split over the batch axes of `mesh`.

    With several processes every process passes the same batch and takes only the rows of its own devices from it;
    `shard_rows` spares it the others. `mesh=None` puts the batch on the default device.

    Example:
        >>> from jaxunlearn.sharding import make_mesh
        >>> shard_batch({"tokens": np.zeros((4, 3), np.int32)}, make_mesh(devices=jax.devices()[:1]))["tokens"].shape
        (4, 3)
    """

    def place(leaf: Array | np.ndarray) -> Array:
        host = np.asarray(leaf)
        if mesh is None:
            return jax.numpy.asarray(host)
        axes = ("batch", *(None,) * (host.ndim - 1)) if host.ndim else ()
        target = named_sharding(mesh, axes, host.shape, rules)
        return jax.make_array_from_callback(host.shape, target, lambda index: host[index])

    return jax.tree.map(place, batch)
