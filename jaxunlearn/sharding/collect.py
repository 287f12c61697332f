"""Between the devices of all processes and the host of each.

A process sees the parts of an array that its own devices hold. A scalar, or any array that every device holds whole,
can be read anywhere; the rest is collected by an exchange in which all processes take part. Every process must
therefore come to the same calls in the same order: what they decide by, such as a flaw in a file that only one of them
reads, they first agree on.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, PyTree

Value = TypeVar("Value")
TEXT = 400


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


def of_first(value: int) -> int:
    """The value that the first process gives; on one process the value itself.

    What is decided by a look at the disk is decided so: another machine may see a file a moment later.

    Example:
        >>> of_first(3)
        3
    """
    return largest(value if jax.process_index() == 0 else np.iinfo(np.int32).min)


def together(do: Callable[[], Value]) -> Value:
    """`do()`, which all processes can do or none has done: an error of one is one of all.

    A process that went on alone would wait for the others in the next exchange. `do` must not exchange anything itself.

    Raises:
        Exception: what `do` raises; on processes where it did not, a RuntimeError that tells it.

    Example:
        >>> together(lambda: 3)
        3
    """
    error: Exception | None = None
    try:
        value = do()
    except Exception as found:
        error = found
    if not largest(int(error is not None)):
        return value
    told = _told("" if error is None else str(error) or type(error).__name__)
    if error is not None:
        raise error
    raise RuntimeError("; ".join(told))


def _told(text: str) -> list[str]:
    """What the processes have to say, each line of it with its process, on all of them."""
    if jax.process_count() == 1:
        return [text]
    from jax.experimental.multihost_utils import process_allgather

    lines = process_allgather(np.frombuffer(text.encode()[:TEXT].ljust(TEXT, b"\0"), np.uint8))
    texts = [line.tobytes().rstrip(b"\0").decode(errors="replace") for line in lines]
    return [f"process {number}: {text}" for number, text in enumerate(texts) if text]


def _everywhere(x: Any) -> Any:
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return x
    from jax.experimental.multihost_utils import process_allgather

    return process_allgather(x, tiled=True)
