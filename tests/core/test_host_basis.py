"""Lanczos driven from the host: resumed bitwise, and with its basis in host memory."""

import pickle
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from krylov_cases import (
    SPECTRA,
    diagonal_operator,
    on_mesh,
    operator_of,
    right_hand_side,
    rotated,
    tree_of,
)
from toys import flat

from jaxunlearn import solvers
from jaxunlearn.operators import LinearOperator
from jaxunlearn.solvers import Lanczos, Status


def test_on_the_host_as_inside_jit_and_resumed_bitwise():
    A = operator_of(jnp.asarray(rotated(SPECTRA["spiked"]), jnp.float32))
    b = tree_of(jnp.asarray(right_hand_side(), jnp.float32))
    solver = Lanczos(9)
    inside, _ = jax.jit(lambda v: solver(A, v))(b)
    states = []
    whole, info = solvers.solve_on_host(solver, A, b, callback=lambda s: states.append(jax.tree.map(jnp.copy, s)))
    resumed, _ = solvers.solve_on_host(solver, A, b, state=states[3])
    np.testing.assert_allclose(flat(whole), flat(inside), rtol=1e-3, atol=1e-5)
    assert int(info.steps) == 9
    np.testing.assert_array_equal(flat(whole), flat(resumed))


@cache
def twenty_unknowns():
    """The solve of the next test with its basis on the device."""
    scale, b = (tree_of(jnp.asarray(x, jnp.float32)) for x in (np.geomspace(0.1, 10.0, 20), right_hand_side(20)))
    return jax.jit(lambda b: Lanczos(11)(diagonal_operator(scale), b))(b)


@pytest.mark.parametrize("place", ["alone", "auto", "explicit"])
def test_a_basis_on_the_host(place):
    """It gives what the basis on the devices gives, goes on from a pickled state bitwise, and keeps shards apart."""
    put = (lambda t: t) if place == "alone" else on_mesh("both", place == "explicit")
    scale = put(tree_of(jnp.asarray(np.geomspace(0.1, 10.0, 20), jnp.float32)))
    b = put(tree_of(jnp.asarray(right_hand_side(20), jnp.float32)))
    A = diagonal_operator(scale)
    expected, other = twenty_unknowns()
    states, solver = [], Lanczos(11, basis="host")
    x, info = solvers.solve_with_host_basis(solver, A, b, callback=states.append)
    np.testing.assert_allclose(flat(jax.device_get(x)), flat(expected), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(info.alphas, other.alphas, rtol=1e-3)
    for leaf, like in zip(jax.tree.leaves(x), jax.tree.leaves(b), strict=True):
        assert leaf.sharding.is_equivalent_to(like.sharding, like.ndim)
    stored = pickle.loads(pickle.dumps(jax.device_get(states[4])))
    again, _ = solvers.solve_with_host_basis(solver, A, b, state=stored)
    np.testing.assert_array_equal(flat(jax.device_get(again)), flat(jax.device_get(x)))
    row = states[-1].basis.rows[0]["b"]
    assert all(isinstance(piece, np.ndarray) for piece in row.values())
    assert len(row) == (1 if place == "alone" else 4)
    assert {piece.shape for piece in row.values()} == {b["b"].sharding.shard_shape(b["b"].shape)}


def test_a_basis_on_the_host_survives_a_product_that_is_not_finite():
    calls = iter([1.0, 1.0, np.nan])
    A = LinearOperator(lambda v: next(calls) * np.arange(1.0, 7.0, dtype=np.float32) * np.asarray(v), jnp.zeros(6))
    x, info = solvers.solve_with_host_basis(Lanczos(5, basis="host"), A, jnp.ones(6))
    assert (Status(int(info.status)), int(info.steps)) == (Status.NON_FINITE, 3)
    assert bool(jnp.all(jnp.isfinite(x)))
