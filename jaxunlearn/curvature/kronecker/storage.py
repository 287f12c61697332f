"""Factors and eigendecompositions on disk, so that curvature taken once serves later runs.

A folder of safetensors files (https://huggingface.co/docs/safetensors): raw arrays that any tool reads and nothing that
could be executed. Every header holds the same description: settings, the table of parameters and blocks, which array
is in which file, and the mean eigenvalue of each block, a tenth of which is the usual damping. The folder is written
under a temporary name and renamed at the end, so it is either complete or absent, and nothing that exists is
overwritten.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array

from jaxunlearn.curvature.kronecker import layout
from jaxunlearn.curvature.kronecker.eigen import KroneckerEigen, mean_eigenvalue
from jaxunlearn.curvature.kronecker.factors import KroneckerFactors
from jaxunlearn.curvature.kronecker.operator import differences
from jaxunlearn.curvature.kronecker.paths import paths_of
from jaxunlearn.curvature.kronecker.recipes import EKFAC, KFAC
from jaxunlearn.curvature.kronecker.settings import Settings
from jaxunlearn.curvature.kronecker.table import Row, Table, Term
from jaxunlearn.files import new_folder, refuse_folder
from jaxunlearn.types import Params

RECIPES = {cls.__name__: cls for cls in (Settings, KFAC, EKFAC)}
KEY = "jaxunlearn.kronecker"


def save(folder: str | Path, state: KroneckerFactors | KroneckerEigen, *, max_shard_size: int = 5 * 2**30) -> Path:
    """Write factors, second moments or an eigendecomposition.

    Args:
        folder: the folder to make; it must not exist, or be empty.
        state: what to write; leaves may be spread over devices and hosts, and are collected file by file.
        max_shard_size: largest size of one file, bytes (a single array may exceed it).

    Raises:
        ValueError: when the folder holds something already.
    """
    refuse_folder(folder)
    shards = list(_shards(_arrays(state), max_shard_size))
    names = [f"kronecker-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    about = {
        "kind": type(state).__name__,
        "settings": {"recipe": type(state.settings).__name__} | asdict(state.settings),
        "table": [row._asdict() | {"terms": [term._asdict() for term in row.terms]} for row in state.table.rows],
        "files": {key: name for name, shard in zip(names, shards, strict=True) for key in shard},
        "mean_eigenvalues": _means(state),
    }
    with new_folder(folder) as out:
        for name, shard in zip(names, shards, strict=True):
            _write(None if out is None else out / name, shard, about)
    return Path(folder)


def load(folder: str | Path, params: Params) -> KroneckerFactors | KroneckerEigen:
    """What `save` wrote, laid out on the mesh of `params`; each process reads only its own parts.

    Args:
        folder: the folder.
        params: the parameters it belongs to, at hand.

    Raises:
        ValueError: when a file is missing or unreadable; or one list of all differences from `params`.
    """
    path = Path(folder)
    about = _description(path)
    table = Table(tuple(_row(row) for row in about["table"]))
    missing = [
        f"{key}: {file} is missing" for key, file in about["files"].items() if not (path / Path(file).name).is_file()
    ]
    if problems := missing + differences(table, params):
        raise ValueError(f"{path} does not fit:\n- " + "\n- ".join(problems))
    settings = dict(about["settings"])
    settings = RECIPES[settings.pop("recipe")](**settings)
    leaves = dict(paths_of(params))
    nested: dict[str, Any] = {}
    for key, file in about["files"].items():
        group, *keys = json.loads(key)
        array = _read(path / Path(file).name, key, group, keys, table, leaves)
        node = nested.setdefault(group, {})
        for k in keys[:-1]:
            node = node.setdefault(k, {})
        if keys:
            node[keys[-1]] = array
        else:
            nested[group] = array
    if about["kind"] == KroneckerEigen.__name__:
        return KroneckerEigen(settings, table, nested.get("vectors", {}), nested.get("values", {}))
    return KroneckerFactors(settings, table, nested.get("sums", {}), nested["count"])


def _arrays(state: KroneckerFactors | KroneckerEigen) -> dict[str, Array]:
    """Every array under a name that says where it belongs: a JSON list of keys."""
    groups = ("sums", "count") if isinstance(state, KroneckerFactors) else ("vectors", "values")
    found = {}
    for group in groups:
        for where, leaf in jax.tree_util.tree_flatten_with_path(getattr(state, group))[0]:
            found[json.dumps([group, *(entry.key for entry in where)])] = leaf
    return found


def _shards(arrays: dict[str, Array], limit: int) -> Iterator[dict[str, Array]]:
    shard: dict[str, Array] = {}
    size = 0
    for key, array in arrays.items():
        if shard and size + array.nbytes > limit:
            yield shard
            shard, size = {}, 0
        shard[key] = array
        size += array.nbytes
    yield shard


def _write(file: Path | None, shard: dict[str, Array], about: dict) -> None:
    from safetensors.numpy import save_file

    # Every process takes part in collecting an array that is spread over several.
    host = {key: np.ascontiguousarray(_host(array)).reshape(array.shape) for key, array in shard.items()}
    if file is not None:
        save_file(host, file, metadata={KEY: json.dumps(about)})


def _host(x: Array) -> np.ndarray:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        from jax.experimental.multihost_utils import process_allgather

        x = process_allgather(x, tiled=True)
    return np.asarray(x)


def _means(state: KroneckerFactors | KroneckerEigen) -> dict[str, float]:
    if isinstance(state, KroneckerEigen):
        return {path: float(jnp.mean(values)) for path, values in state.values.items()}
    means = {}
    for path, uses in state.sums.items():
        row = state.table[path]
        if any("S" in kept for kept in uses.values()):
            means[path] = float(jnp.mean(state.squares(row)))
        else:
            terms = (mean_eigenvalue(left, row) * mean_eigenvalue(right, row) for left, right in state.sides(row))
            means[path] = float(jnp.mean(sum(terms)))
    return means


def _description(folder: Path) -> dict:
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("kronecker-*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no kronecker-*.safetensors; point to a folder that kronecker.save wrote")
    try:
        with safe_open(files[0], framework="numpy") as tensors:
            return json.loads((tensors.metadata() or {})[KEY])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{files[0]} is no readable file of kronecker.save ({error!r}); write it again") from None


def _row(saved: dict) -> Row:
    terms = tuple(
        Term(**term | {"inputs": tuple(term["inputs"]), "grads": tuple(term["grads"])}) for term in saved["terms"]
    )
    return Row(**saved | {"shape": tuple(saved["shape"]), "terms": terms})


def _read(file: Path, key: str, group: str, keys: list[str], table: Table, leaves: dict[str, Any]) -> Array:
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as tensors:
        part = tensors.get_slice(key)
        if not keys:
            return jnp.asarray(part[...])
        row, place = table[keys[0]], getattr(leaves[keys[0]], "sharding", None)
        if not isinstance(place, NamedSharding):
            return jnp.asarray(part[...])
        shape = tuple(part.get_shape())
        term = next((term for term in row.terms if term.use == keys[1]), None) if group == "sums" else None
        name = {"sums": keys[-1], "vectors": "Q", "values": "S"}[group]
        target = NamedSharding(place.mesh, layout.spec(place, row, term, name, shape))
        return jax.make_array_from_callback(shape, target, lambda index: part[index])
