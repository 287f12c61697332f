"""Factors and eigendecompositions on disk, so that curvature taken once serves later runs.

A folder of arrays (`array_folder`) whose description holds the settings, the table of parameters and blocks, which
array is in which file, and the mean eigenvalue of each block, a tenth of which is the usual damping.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array

from jaxunlearn.curvature import array_folder
from jaxunlearn.curvature.kronecker import layout
from jaxunlearn.curvature.kronecker.eigen import KroneckerEigen, mean_eigenvalue
from jaxunlearn.curvature.kronecker.factors import KroneckerFactors
from jaxunlearn.curvature.kronecker.operator import differences
from jaxunlearn.curvature.kronecker.paths import paths_of
from jaxunlearn.curvature.kronecker.recipes import EKFAC, KFAC
from jaxunlearn.curvature.kronecker.settings import Settings
from jaxunlearn.curvature.kronecker.table import Row, Table, Term
from jaxunlearn.types import Params

RECIPES = {cls.__name__: cls for cls in (Settings, KFAC, EKFAC)}
FORMAT = array_folder.Format("kronecker", "jaxunlearn.kronecker", "kronecker.save")


def save(
    folder: str | Path,
    state: KroneckerFactors | KroneckerEigen,
    *,
    max_shard_size: int = 5 * 2**30,
    beside: Mapping[str, str] | None = None,
) -> Path:
    """Write factors, second moments or an eigendecomposition.

    Args:
        folder: the folder to make; it must not exist, or be empty.
        state: what to write; leaves may be spread over devices and hosts, and are collected file by file.
        max_shard_size: largest size of one file, bytes (a single array may exceed it).
        beside: texts by file name, written into the same folder.

    Raises:
        ValueError: when the folder holds something already.
    """
    about = {
        "kind": type(state).__name__,
        "settings": {"recipe": type(state.settings).__name__} | asdict(state.settings),
        "table": [row._asdict() | {"terms": [term._asdict() for term in row.terms]} for row in state.table.rows],
        "mean_eigenvalues": _means(state),
    }
    return array_folder.write(folder, FORMAT, _arrays(state), about, max_shard_size, beside)


def load(folder: str | Path, params: Params) -> KroneckerFactors | KroneckerEigen:
    """What `save` wrote, laid out on the mesh of `params`; each process reads only its own parts.

    Args:
        folder: the folder.
        params: the parameters it belongs to, at hand.

    Raises:
        ValueError: when a file is missing or unreadable; or one list of all differences from `params`.
    """
    about = array_folder.description(folder, FORMAT)
    table = Table(tuple(_row(row) for row in about["table"]))
    if problems := array_folder.missing(folder, about) + differences(table, params):
        raise ValueError(f"{folder} does not fit:\n- " + "\n- ".join(problems))
    fields = dict(about["settings"])
    settings = RECIPES[fields.pop("recipe")](**fields)
    leaves = dict(paths_of(params))
    nested: dict[str, Any] = {}
    for key in about["files"]:
        group, *keys = json.loads(key)
        array = _read(array_folder.place_of(folder, about, key), key, group, keys, table, leaves)
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
