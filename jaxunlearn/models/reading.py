"""Parameters from stored tensors: which rows of which tensor each part of a parameter wants, and where they go.

A parameter is layers stacked, transposed, or some rows of a fused tensor; a device holds a part of it. Of each tensor a
process reads what its own devices hold, once (`models.streaming`), and no process ever holds a whole model that is
split over several. Numbers that are not finite are found on the way.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from jaxunlearn.models.checkpoint_files import FLOATS, StoredTensor, listed
from jaxunlearn.models.layer_specs import Fused
from jaxunlearn.models.quantised import freezes, frozen, frozen_specs
from jaxunlearn.models.specs import ParamSpec
from jaxunlearn.models.streaming import STRIP, Wanted, aligned, stream
from jaxunlearn.sharding import largest, named_sharding

Bounds = tuple[tuple[int, int], ...]

READERS = 4  # threads; more of them wait for memory


def read_leaves(
    specs: tuple[ParamSpec, ...],
    tensors: Mapping[str, StoredTensor],
    mesh: Mesh | None,
    dtype: Any,
    source: Path,
    freeze_bits: int | None = None,
) -> list[Array]:
    """The parameters of `specs` from the tensors of a checkpoint, of which each process reads only its own parts.

    Raises:
        ValueError: naming all tensors that hold NaN or infinity.
    """
    flawed: set[str] = set()
    leaves: list[Array] = []
    for spec in specs:
        layers = [tensors[name] for name in spec.hf_names]
        if freeze_bits is None or not freezes(spec):
            leaves.append(_read_leaf(spec, layers, mesh, dtype, flawed))
            continue
        rows = frozen_specs(spec, freeze_bits)
        places = None if mesh is None else tuple(named_sharding(mesh, row.axes, row.shape) for row in rows)
        one = spec._replace(shape=(1, *spec.shape[1:]))
        leaves += frozen(spec, (_read_leaf(one, [each], mesh, dtype, flawed) for each in layers), freeze_bits, places)
    # Each process has seen its own parts: all stop if one of them must, or the others would wait for it.
    if largest(len(flawed)):
        number = f"{len(flawed)} tensor{'s' * (len(flawed) > 1)}"
        named = f"{number}: {listed(sorted(flawed))}" if flawed else "parts that another process has read"
        raise ValueError(
            f"the weights in {source} are not finite (NaN or infinity) in {named}; training has diverged or the files "
            "are damaged: use another checkpoint"
        )
    return leaves


def _read_leaf(spec: ParamSpec, tensors: list[StoredTensor], mesh: Mesh | None, dtype: Any, flawed: set[str]) -> Array:
    dtype = jax.dtypes.canonicalize_dtype(widest(tensors) if dtype is None else dtype)
    sharding = None if mesh is None else named_sharding(mesh, spec.axes, spec.shape)
    everything = (slice(None),) * len(spec.shape)
    asked = [everything] if sharding is None else sharding.addressable_devices_indices_map(spec.shape).values()
    # Devices that hold the same part share one array.
    parts = {index: aligned(tuple(b - a for a, b in index), dtype) for index in {_bounds(spec, one) for one in asked}}

    def read(piece: tuple[int, slice]) -> str | None:
        number, rows = piece
        wanted = [one for index, array in parts.items() for one in _wanted(spec, number, index, array)]
        return None if stream(tensors[number], _within(rows, wanted)) else tensors[number].name

    step = -(-spec.hf_shape[0] * len(tensors) // (READERS * STRIP)) * STRIP
    pieces = [
        (number, slice(first, first + step))
        for number in range(len(tensors))
        for first in range(0, spec.hf_shape[0], step)
    ]
    with ThreadPoolExecutor(READERS) as pool:
        flawed.update(filter(None, pool.map(read, pieces)))
    if sharding is None:
        return jax.device_put(parts[_bounds(spec, everything)])
    return jax.make_array_from_callback(spec.shape, sharding, lambda index: parts[_bounds(spec, index)])


def _bounds(spec: ParamSpec, index: tuple[slice, ...]) -> Bounds:
    return tuple(one.indices(size)[:2] for one, size in zip(index, spec.shape, strict=True))


def _wanted(spec: ParamSpec, layer: int, index: Bounds, array: np.ndarray) -> Iterator[Wanted]:
    """What a part of a parameter wants of the tensor of one layer, in the order in which that is stored."""
    if spec.stacked:
        (first, last), *index = index
        if not first <= layer < last:
            return
        array = array[layer - first]
    if spec.transposed:
        index, array = index[::-1], array.T
    rows, *rest = (slice(*one) for one in index)
    done = 0
    for run in [rows] if spec.fused is None else _runs(spec.fused, rows):
        size = run.stop - run.start
        yield Wanted(run, tuple(rest), array[done : done + size])
        done += size


def _within(rows: slice, wanted: list[Wanted]) -> list[Wanted]:
    """What of `wanted` lies in some rows of the stored tensor."""
    cut = []
    for one in wanted:
        first, last = max(rows.start, one.rows.start), min(rows.stop, one.rows.stop)
        if first < last:
            to = one.to[first - one.rows.start : last - one.rows.start]
            cut.append(one._replace(rows=slice(first, last), to=to))
    return cut


def read_layer(spec: ParamSpec, tensors: list[StoredTensor], layer: int) -> np.ndarray:
    """One matrix of a stacked parameter, whole, as `load` would have it in the widest dtype of its layers."""
    index = ((layer, layer + 1), *((0, size) for size in spec.shape[1:]))
    array = aligned((1, *spec.shape[1:]), widest(tensors))
    stream(tensors[layer], list(_wanted(spec, layer, index, array)))
    return array[0]


def widest(tensors: list[StoredTensor]) -> Any:
    """The element type that a parameter made of `tensors` has."""
    return jnp.result_type(*(jnp.dtype(FLOATS[tensor.dtype]) for tensor in tensors))


def _runs(fused: Fused, index: slice) -> list[slice]:
    """The rows of a fused tensor that are the rows `index` of one of its parts."""
    size = fused.stop - fused.start
    low, high, _ = index.indices(fused.groups * size)
    runs = []
    for group in range(low // size, -(-high // size)):
        first = group * fused.width + fused.start - group * size
        runs.append(slice(first + max(low, group * size), first + min(high, (group + 1) * size)))
    return runs
