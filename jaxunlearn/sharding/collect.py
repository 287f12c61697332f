"""Between the devices of all processes and the host of each.

A process sees the parts of an array that its own devices hold. A scalar, or any array that every device holds whole,
can be read anywhere; the rest is collected by an exchange in which all processes take part. Every process must
therefore come to the same calls in the same order: what they decide by, such as a flaw in a file that only one of them
reads, they first agree on.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, PyTree


def on_host(tree: PyTree) -> PyTree:
    """`tree` with every array whole, as NumPy arrays; the same on every process.

    Example:
        >>> on_host({"a": jax.numpy.ones(2), "b": 3.0})
        {'a': array([1., 1.], dtype=float32), 'b': array(3.)}
    """
    # Copies of what lies here are started together, before the first of them is waited for.
    return jax.tree.map(np.asarray, jax.device_get(jax.tree.map(_everywhere, tree)))


def put(x: Array | np.ndarray, layout: Sharding) -> Array:
    """`x`, which every process has whole, in a layout that may span processes; each takes what its devices hold."""
    if layout.is_fully_addressable or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return jax.device_put(x, layout)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(put(jax.random.key_data(x), layout), impl=jax.random.key_impl(x))
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, layout, lambda index: host[index])


def largest(value: int) -> int:
    """The largest of the values that the processes give; on one process the value itself.

    Example:
        >>> largest(3)
        3
    """
    if jax.process_count() == 1:
        return value
    from jax.experimental.multihost_utils import process_allgather

    return int(np.max(process_allgather(np.int32(value))))


def _everywhere(x: Any) -> Any:
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return x
    from jax.experimental.multihost_utils import process_allgather

    return process_allgather(x, tiled=True)
