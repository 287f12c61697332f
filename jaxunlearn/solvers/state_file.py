"""Solver states on disk: one safetensors file, written whole or not at all, read back only into its own problem.

The file is written under a temporary name beside its place and renamed, so a run that is killed while saving leaves the
state before. Nothing in it is executed on loading (no pickle). It carries a fingerprint of the problem: the solver's
settings, a digest of b and whatever else the caller names, such as the damping. A state of another problem would be
continued without complaint and end in a wrong answer, so a difference is an error.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxunlearn import tree
from jaxunlearn.files import new_file
from jaxunlearn.sharding import on_host, put
from jaxunlearn.sharding.regions import auto

State = TypeVar("State", bound=PyTree)

FORMAT = "jaxunlearn solver state"


def fingerprint(solver: Any, b: PyTree, **settings: Any) -> dict[str, str]:
    """What a state must have in common with the solve that continues it.

    Args:
        solver: its type and settings; functions among them (a preconditioner) count by name only.
        b: right-hand side, of which a digest is taken; it does not depend on the layout over devices.
        **settings: whatever else defines the operator, for example `damping=0.1` or `checkpoint="..."`.

    Example:
        >>> from jaxunlearn.solvers import CG
        >>> fingerprint(CG(max_steps=5), jnp.ones(3), damping=0.1)
        {'solver': 'CG(max_steps=5, rtol=0.001, progress=0.0005, preconditioner=None)', 'b': '...', 'damping': '0.1'}
    """
    fields = ", ".join(f"{f.name}={_describe(getattr(solver, f.name))}" for f in dataclasses.fields(solver))
    named = {name: _describe(value) for name, value in settings.items()}
    return {"solver": f"{type(solver).__name__}({fields})", "b": digest(b), **named}


def digest(x: PyTree) -> str:
    """A hash of every bit of a tree, by sums of integers: the same on one device and on many, and nothing is gathered.

    It tells apart vectors that differ by accident, not by an adversary's design.
    """
    sums = np.asarray(_digest(tree.to_vector(x)))
    return "".join(f"{int(word):08x}" for word in sums)


def save_state(path: str | Path, state: PyTree, problem: Mapping[str, str] | None = None) -> None:
    """Write a solver state. On several processes all call it, and the first one writes.

    Args:
        path: the file, which replaces one of the name.
        state: a pytree of arrays.
        problem: the `fingerprint` to compare on loading.
    """
    from safetensors.numpy import save_file

    arrays = {name: np.asarray(on_host(leaf), order="C") for name, leaf in _named(state)}
    if jax.process_index() != 0:
        return
    metadata = {"format": FORMAT, "state": type(state).__name__}
    metadata |= {f"problem.{name}": value for name, value in (problem or {}).items()}
    with new_file(path, replace=True) as temporary:
        save_file(arrays, temporary, metadata)


def load_state(path: str | Path, like: State, problem: Mapping[str, str] | None = None) -> State:
    """Read a solver state, every array laid out over the devices as in `like`; each process reads only its part.

    Args:
        path: a file that `save_state` wrote.
        like: a state of the same problem, for example `initial_state(solver, b)`, or its shapes with shardings.
        problem: the `fingerprint` of the problem at hand.

    Raises:
        ValueError: when the file is not a solver state, or one of another problem; it says what differs.

    Example:
        >>> import tempfile
        >>> from jaxunlearn.solvers import CG
        >>> state = CG().init(jnp.ones(3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_state(f"{folder}/state.safetensors", state, {"damping": "0.1"})
        ...     again = load_state(f"{folder}/state.safetensors", state, {"damping": "0.1"})
        ...     load_state(f"{folder}/state.safetensors", state, {"damping": "1.0"})
        Traceback (most recent call last):
        ValueError: .../state.safetensors holds a solve of another problem: damping is 0.1 there and 1.0 here; ...
    """
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise ValueError(f"{path} is not a solver state: {error}; delete it to start anew") from error
    with file:
        _check(path, file, like, problem or {})
        leaves = [_read(file, name, leaf) for name, leaf in _named(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


@jax.jit
def _digest(x: PyTree) -> Array:
    def leaf(a: Array) -> Array:
        bits = jax.lax.bitcast_convert_type(a, jnp.uint32)
        place = jnp.zeros(bits.shape, jnp.uint32)
        for axis, size in enumerate(bits.shape):
            place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        # Odd factors and a shift spread a change of any bit; sums of integers do not depend on their order.
        words = []
        for factor in (2654435761, 2246822519):
            h = (bits ^ (place * jnp.uint32(3266489917))) * jnp.uint32(factor)
            words.append(jnp.sum((h ^ (h >> 15)) * jnp.uint32(668265263), dtype=jnp.uint32))
        return jnp.stack(words)

    total = jnp.zeros(2, jnp.uint32)
    for a in jax.tree.leaves(x):
        total = total * jnp.uint32(31) + auto(leaf, a)
    return total


def _check(path: str | Path, file: Any, like: PyTree, problem: Mapping[str, str]) -> None:
    metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is not a solver state; delete it to start anew")
    stored = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 -- a safetensors file is no mapping
    differences = []
    if metadata["state"] != type(like).__name__:
        differences.append(f"it is a {metadata['state']}, not a {type(like).__name__}")
    names = dict.fromkeys([key[8:] for key in metadata if key.startswith("problem.")]) | dict.fromkeys(problem)
    for name in names:
        there, here = metadata.get(f"problem.{name}", "not given"), problem.get(name, "not given")
        if there != here:
            differences.append(f"{name} is {there} there and {here} here")
    expected = {name: list(leaf.shape) for name, leaf in _named(like)}
    for name in dict.fromkeys([*expected, *sorted(stored)]):
        there = stored[name].get_shape() if name in stored else "missing"
        if there != expected.get(name, "missing"):
            differences.append(f"{name} is {there} there and {expected.get(name, 'missing')} here")
    if differences:
        raise ValueError(
            f"{path} holds a solve of another problem: {'; '.join(differences)}; delete it to start anew, or restore "
            "what was changed"
        )


def _read(file: Any, name: str, like: Any) -> Array:
    if not like.shape:
        value = np.asarray(file.get_tensor(name), like.dtype)
        return jnp.asarray(value) if like.sharding is None else put(value, like.sharding)
    stored = file.get_slice(name)
    if like.sharding is None:
        return jnp.asarray(stored[:], like.dtype)
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: np.asarray(stored[index], like.dtype))


def _named(state: PyTree) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)]


def _describe(value: Any) -> str:
    if isinstance(value, jax.Array | np.ndarray) and value.ndim == 0:
        return repr(value.item())
    if callable(value):
        return getattr(value, "__qualname__", type(value).__qualname__)
    return repr(value)
