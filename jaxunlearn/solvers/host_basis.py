"""A Krylov basis in the memory of the hosts, for when `4 k` bytes a parameter do not fit on the devices.

Each vector is copied to the host as it is found, shard by shard: a process keeps what its own devices hold, so k
vectors take `4 k` bytes a parameter spread over all hosts, and no leaf is ever gathered. To orthogonalise a new vector
the basis streams back through the devices, a few rows at a time, twice: `2 j` vectors of traffic in step j. That is
little beside a product that streams a data set, which is the case this is for.

Only a loop on the host can do this: `solve_with_host_basis` for the solvers of `krylov` with `basis="host"`. Its state
grows by one vector a step and nothing in it is overwritten, so any state that was kept can be gone on from.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from jaxunlearn import tree
from jaxunlearn.operators import LinearOperator
from jaxunlearn.sharding import put
from jaxunlearn.solvers import block
from jaxunlearn.solvers.protocol import RUNNING
from jaxunlearn.solvers.status import SolveInfo


class HostBasis(NamedTuple):
    """Rows of a basis as NumPy arrays: in place of each leaf a dictionary from a shard's place to its data.

    Attributes:
        rows: one tree a vector.
        at_once: rows on the devices at a time.
    """

    rows: tuple[PyTree, ...] = ()
    at_once: int = 8


def solve_with_host_basis(
    solver: Any,
    A: LinearOperator,
    b: PyTree,
    x0: PyTree | None = None,
    *,
    state: Any = None,
    callback: Callable[[Any], object] | None = None,
) -> tuple[PyTree, SolveInfo]:
    """`solver(A, b, x0)` with the Krylov basis in host memory, driven from the host.

    Args:
        solver: `Lanczos`, `CubicRegularized` or `TrustRegionLanczos` with `basis="host"`.
        A: the operator; its product need not be traceable.
        b: right-hand side.
        x0: warm start, where the solver takes one.
        state: a state to go on from; its arrays may have been through `jax.device_get` and any file format.
        callback: called with the state after every step, for progress, to store it, or to interrupt by raising.

    Raises:
        ValueError: when the solver keeps its basis on the devices.

    Example:
        >>> from jaxunlearn.solvers.matrix_power import Lanczos
        >>> A = LinearOperator(lambda v: jnp.array([1.0, 2.0]) * v, like=jnp.zeros(2))
        >>> x, info = solve_with_host_basis(Lanczos(steps=2, basis="host"), A, jnp.ones(2))
        >>> x.round(4).tolist()
        [1.0, 0.5]
    """
    if getattr(solver, "basis", "device") != "host":
        raise ValueError(f'{solver} keeps no basis on the host: give it basis="host", or use solve_on_host')
    b = tree.to_vector(jax.tree.map(jnp.asarray, b))
    if state is None:
        x0 = None if x0 is None else tree.to_vector(jax.tree.map(jnp.asarray, x0))
        state = solver.init(b, x0, None if x0 is None else _product(A, x0))
    else:
        vector, carried = (_placed(x, b) for x in (state.vector, state.carried))
        small = state._replace(basis=None, vector=None, carried=None)
        state = jax.tree.map(jnp.asarray, small)._replace(basis=state.basis, vector=vector, carried=carried)
    while int(state.status) == RUNNING:
        state = solver.update(state, _product(A, solver.direction(state)))
        if callback is not None:
            callback(state)
    return solver.result(state)


def append(basis: HostBasis, v: PyTree) -> HostBasis:
    """The basis with one more row."""
    return basis._replace(rows=(*basis.rows, jax.tree.map(_offload, v)))


def orthogonalise(basis: HostBasis, w: PyTree) -> tuple[PyTree, Float[Array, ""]]:
    """What is left of w beside all rows, by two passes over them, and its coefficient along the last row.

    Example:
        >>> basis = append(HostBasis(), jnp.array([1.0, 0.0]))
        >>> w, c = orthogonalise(basis, jnp.array([3.0, 2.0]))
        >>> w.tolist(), float(c)
        ([0.0, 2.0], 3.0)
    """
    last = (len(basis.rows) - 1) % basis.at_once
    total = 0.0
    for _ in range(2):
        for V in _blocks(basis, w):
            w, c = _remove(V, w, last)
        total = total + c
    return w, total


def project(basis: HostBasis, v: PyTree) -> Float[Array, " j"]:
    """The inner products of every row with v."""
    parts = [_project(V, v) for V in _blocks(basis, v)]
    return jnp.concatenate(parts)[: len(basis.rows)]


def expand(basis: HostBasis, c: Float[Array, " k"], like: PyTree) -> PyTree:
    """`sum_i c_i q_i` over the rows there are, laid out as `like`."""
    out = tree.zeros_like(like)
    padded = jnp.append(c[: len(basis.rows)], jnp.zeros(basis.at_once, c.dtype))
    for number, V in enumerate(_blocks(basis, like)):
        start = number * basis.at_once
        out = _accumulate(out, V, padded[start : start + basis.at_once], like)
    return out


_project = jax.jit(block.project)


@jax.jit
def _remove(V: PyTree, w: PyTree, i: int) -> tuple[PyTree, Array]:
    c = block.project(V, w)
    return tree.sub(w, block.expand(V, c, w)), c[i]


@jax.jit
def _accumulate(out: PyTree, V: PyTree, c: Array, like: PyTree) -> PyTree:
    return tree.shard_like(tree.add(out, block.expand(V, c, like)), like)


def _blocks(basis: HostBasis, like: PyTree):
    """The rows on the devices, `at_once` of them at a time; the last block is filled up with zero rows."""
    for start in range(0, len(basis.rows), basis.at_once):
        rows = basis.rows[start : start + basis.at_once]
        yield jax.tree.map(lambda a, *pieces: _upload(pieces, a, basis.at_once), like, *rows)


def _product(A: LinearOperator, v: PyTree) -> PyTree:
    return tree.to_vector(jax.tree.map(jnp.asarray, A(v)))


def _placed(x: PyTree | None, like: PyTree) -> PyTree | None:
    return None if x is None else jax.tree.map(lambda a, b: put(a, b.sharding), x, like)


def _offload(a: Array) -> dict[str, np.ndarray]:
    return {_place(shard.index, a.shape): np.array(shard.data) for shard in a.addressable_shards}


def _upload(pieces: tuple[dict[str, np.ndarray], ...], like: Array, rows: int) -> Array:
    def shard(index: tuple[slice, ...]) -> np.ndarray:
        place = _place(index[1:], like.shape)
        out = np.zeros((rows, *pieces[0][place].shape), like.dtype)
        for i, piece in enumerate(pieces):
            out[i] = piece[place]
        return out

    layout = like.sharding
    if isinstance(layout, NamedSharding):
        layout = NamedSharding(layout.mesh, PartitionSpec(None, *layout.spec))
    return jax.make_array_from_callback((rows, *like.shape), layout, shard)


def _place(index: tuple[slice, ...], shape: tuple[int, ...]) -> str:
    """Where a shard lies, as `start:stop` an axis: text, so that any checkpoint format can store it as a key."""
    return ",".join("{}:{}".format(*s.indices(n)[:2]) for s, n in zip(index, shape, strict=True))
