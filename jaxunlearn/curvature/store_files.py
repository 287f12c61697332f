"""Stored curvature of any form in a folder: Kronecker factors, or the rows of a low-rank matrix.

`save` writes what `Stored` reads and `load` brings it back onto the mesh of the parameters, whichever form it is; a
method's `factors` option names such a folder. Rows take m times the size of the parameters in f32, where m is the
number of gradients or Ritz vectors.
"""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxunlearn.curvature import array_folder, kronecker
from jaxunlearn.curvature.kronecker import KroneckerEigen, KroneckerFactors
from jaxunlearn.curvature.kronecker.paths import map_paths, paths_of
from jaxunlearn.curvature.kronecker.storage import FORMAT as KRONECKER
from jaxunlearn.curvature.stored import StoredRows
from jaxunlearn.types import Params

ROWS = array_folder.Format("rows", "jaxunlearn.rows", "curvature.save")
Store = KroneckerEigen | KroneckerFactors | StoredRows


def save(
    folder: str | Path,
    store: Store,
    *,
    max_shard_size: int = 5 * 2**30,
    beside: Mapping[str, str] | None = None,
) -> Path:
    """Write stored curvature.

    Args:
        folder: the folder to make; it must not exist, or be empty.
        store: what `eigendecompose`, `kronecker_factors`, `store_rows` or `store_krylov` gave.
        max_shard_size: largest size of one file, bytes (a single array may exceed it).
        beside: texts by file name, written into the same folder.

    Raises:
        ValueError: when the folder holds something already.

    Example:
        >>> import tempfile
        >>> store = StoredRows({"w": jnp.eye(2)}, jnp.eye(2), jnp.ones(2))
        >>> with tempfile.TemporaryDirectory() as home:
        ...     back = load(save(f"{home}/curvature", store), {"w": jnp.zeros(2)})
        >>> back.rows["w"].tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    if not isinstance(store, StoredRows):
        return kronecker.save(folder, store, max_shard_size=max_shard_size, beside=beside)
    arrays = {f"rows/{path}": leaf for path, leaf in paths_of(store.rows)}
    arrays |= {"vectors": store.vectors, "values": store.values}
    about = {"shapes": {path: list(leaf.shape[1:]) for path, leaf in paths_of(store.rows)}}
    return array_folder.write(folder, ROWS, arrays, about, max_shard_size, beside)


def load(folder: str | Path, params: Params) -> Store:
    """What `save` wrote, laid out on the mesh of `params`; each process reads only its own parts.

    Raises:
        ValueError: when there is no stored curvature in the folder, a file is missing or unreadable; or one list of
            all differences from `params`.
    """
    if array_folder.holds(folder, KRONECKER):
        return kronecker.load(folder, params)
    if not array_folder.holds(folder, ROWS):
        raise ValueError(
            f"{folder} holds no stored curvature (kronecker-*.safetensors or rows-*.safetensors); "
            "`jaxunlearn curvature` and curvature.save write such a folder"
        )
    about = array_folder.description(folder, ROWS)
    stored, here = about["shapes"], {path: list(leaf.shape) for path, leaf in paths_of(params)}
    problems = array_folder.missing(folder, about)
    problems += [f"{path}: stored, but not a parameter" for path in stored.keys() - here.keys()]
    problems += [f"{path}: a parameter, but not stored" for path in here.keys() - stored.keys()]
    both = sorted(stored.keys() & here.keys())
    problems += [f"{path}: stored for {stored[path]}, is {here[path]}" for path in both if stored[path] != here[path]]
    if problems:
        raise ValueError(f"{folder} does not fit:\n- " + "\n- ".join(problems))
    rows = map_paths(lambda path, leaf: _read(folder, about, f"rows/{path}", leaf), params)
    return StoredRows(rows, _read(folder, about, "vectors", None), _read(folder, about, "values", None))


def _read(folder: str | Path, about: dict, key: str, leaf: Array | None) -> Array:
    """An array whole, or as rows each spread like `leaf`."""
    from safetensors import safe_open

    with safe_open(array_folder.place_of(folder, about, key), framework="numpy") as tensors:
        part = tensors.get_slice(key)
        place = getattr(leaf, "sharding", None)
        if not isinstance(place, NamedSharding):
            return jnp.asarray(part[...])
        target = NamedSharding(place.mesh, PartitionSpec(None, *place.spec))
        return jax.make_array_from_callback(tuple(part.get_shape()), target, lambda index: part[index])
