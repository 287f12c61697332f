"""Symmetric matrices with the spectra that matter, acting on a two-leaf tree, alone and on eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxunlearn.operators import LinearOperator
from jaxunlearn.sharding import make_mesh
from jaxunlearn.solvers.lanczos import init, tridiagonalization, update

N = 40
K = 25
SPECTRA = {
    "geometric": np.geomspace(1e-3, 1e3, N),
    "clustered": np.concatenate([1.0 + 1e-9 * np.arange(N - 4), [5.0, 5.0 + 1e-9, 50.0, 500.0]]),
    "spiked": np.concatenate([np.linspace(0.5, 1.0, N - 5), np.geomspace(10, 1e3, 5)]),
    "indefinite": np.concatenate([-np.geomspace(1e-2, 3.0, N // 2), np.geomspace(1e-2, 10.0, N - N // 2)]),
}


def rotated(eigenvalues, seed=0):
    """A matrix with these eigenvalues and random eigenvectors, float64."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(len(eigenvalues),) * 2))
    M = (q * eigenvalues) @ q.T
    return (M + M.T) / 2


def tree_of(vector):
    """A vector as a tree of a [4] and a [2, n] leaf."""
    return {"a": vector[:4], "b": vector[4:].reshape(2, -1)}


def vector_of(t):
    return jnp.concatenate([t["a"], t["b"].reshape(-1)])


def rows_of(t):
    """A block of trees as a matrix, one row each."""
    return np.concatenate([np.asarray(t["a"]), np.asarray(t["b"]).reshape(t["b"].shape[0], -1)], axis=1)


def operator_of(matrix, psd=False):
    matrix = jnp.asarray(matrix)
    like = tree_of(jnp.zeros(matrix.shape[0], matrix.dtype))
    return LinearOperator(lambda v: tree_of(matrix @ vector_of(v)), like, psd)


def right_hand_side(n=N, seed=1):
    return np.random.default_rng(seed).normal(size=n)


def runs(matrix, b, k=K):
    """States of a Lanczos run after 0, 1, ... steps; programs are shared by all problems of one size and k."""
    states = [_start(jnp.asarray(b), k)]
    while int(states[-1].status) == -1:
        states.append(_step(jnp.asarray(matrix), states[-1]))
    return states


def run(matrix, b, k=K):
    return tridiagonalization(runs(matrix, b, k)[-1])


def finish(solver, state):
    """`solver.result(state)`, compiled once a solver."""
    return _finish(solver, state)


_start = jax.jit(lambda b, k: init(tree_of(b), k), static_argnums=1)
_step = jax.jit(lambda matrix, state: update(state, operator_of(matrix)(state.vector)))
_finish = jax.jit(lambda solver, state: solver.result(state), static_argnums=0)

LAYOUTS = {
    "rows": (PartitionSpec("fsdp"), PartitionSpec("fsdp")),
    "columns": (PartitionSpec(), PartitionSpec(None, ("data", "tensor"))),
    "both": (PartitionSpec("tensor"), PartitionSpec("fsdp", "tensor")),
}


def on_mesh(layout, explicit):
    """`put(tree)`: leaves [4], [2, 8] and blocks of them, in a layout on 2 x 2 x 2 devices."""
    mesh = make_mesh(2, 2, 2, explicit=explicit)
    a, b = LAYOUTS[layout]

    def put(t):
        return {
            "a": jax.device_put(t["a"], NamedSharding(mesh, a)),
            "b": jax.device_put(t["b"], NamedSharding(mesh, b)),
        }

    return put


def diagonal_operator(scale, psd=True):
    """`diag(scale)`, scale a tree: a product without communication, on any mesh."""
    return LinearOperator(lambda v: jax.tree.map(lambda s, x: s * x, scale, v), scale, psd)
