"""Trace and norm estimates: within their standard errors of the dense truth, with the variance that theory gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from krylov_cases import SPECTRA, diagonal_operator, on_mesh, operator_of, rotated, tree_of
from toys import labelled, mlp

from jaxunlearn import operators, tree
from jaxunlearn.curvature import Hessian
from jaxunlearn.solvers import squared_frobenius_norm, trace
from jaxunlearn.solvers.estimates import unknowns


@pytest.mark.parametrize("rank", [0, 8])
@pytest.mark.parametrize("name", ["spiked", "indefinite"])
def test_traces_lie_within_their_standard_errors(name, rank):
    """Coverage: of 50 independent estimates at most three lie two standard errors away, and their mean is the truth."""
    with jax.enable_x64(True):
        M, samples = rotated(SPECTRA[name]), 40
        A = operator_of(M)
        estimate = jax.jit(lambda keys: jax.lax.map(lambda k: trace(A, k, samples, rank=rank)[:2], keys))
        values, errors = (np.asarray(x) for x in estimate(jax.random.split(jax.random.key(0), 50)))
        exact = np.trace(M)
        assert np.all(np.abs(values - exact) < 4 * errors)
        assert np.sum(np.abs(values - exact) > 2 * errors) <= 6
        assert abs(np.mean(values) - exact) < 4 * np.sqrt(np.mean(errors**2) / 50)
        assert np.std(values) == pytest.approx(np.sqrt(np.mean(errors**2)), rel=0.4)


def test_the_standard_error_is_that_of_theory():
    """Random signs: the variance of one probe is twice the squared off-diagonal entries."""
    with jax.enable_x64(True):
        M, samples = rotated(SPECTRA["indefinite"]), 2000
        estimate = jax.jit(lambda k: trace(operator_of(M), k, samples)[:2])(jax.random.key(1))
        variance = 2 * (np.sum(M**2) - np.sum(np.diag(M) ** 2))
        assert float(estimate[1]) == pytest.approx(np.sqrt(variance / samples), rel=4 / np.sqrt(2 * samples))


def test_hutch_plus_plus_takes_the_outliers_out():
    """At equal products its error is a small part of Hutchinson's where few eigenvalues carry the trace."""
    with jax.enable_x64(True):
        A = operator_of(rotated(SPECTRA["spiked"]))
        plain = jax.jit(lambda k: trace(A, k, 36)[:2])(jax.random.key(0))
        deflated = jax.jit(lambda k: trace(A, k, 12, rank=12)[:2])(jax.random.key(0))
        assert float(deflated[1]) < 0.02 * float(plain[1])


def test_squared_frobenius_norms():
    with jax.enable_x64(True):
        M = rotated(SPECTRA["indefinite"])
        values, errors = (
            np.asarray(x)
            for x in jax.jit(
                lambda keys: jax.lax.map(lambda k: squared_frobenius_norm(operator_of(M), k, 64)[:2], keys)
            )(jax.random.split(jax.random.key(0), 20))
        )
        exact = np.sum(M**2)
        assert np.all(np.abs(values - exact) < 4 * errors)
        assert abs(np.mean(values) - exact) < 4 * np.sqrt(np.mean(errors**2) / 20)
        square = M @ M  # ||A u||^2 = u.A^2 u: its variance is that of a trace of A^2
        expected = np.sqrt(2 * (np.sum(square**2) - np.sum(np.diag(square) ** 2)) / 64)
        assert np.sqrt(np.mean(errors**2)) == pytest.approx(expected, rel=4 / np.sqrt(2 * 64 * 20))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_on_a_model(dtype):
    model, params = mlp(dtype=dtype)
    key = jax.random.key(0)
    value, error = jax.jit(lambda p: trace(Hessian()(model, p, labelled(16)), key, 32, rank=8)[:2])(params)
    wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    dense = jax.jit(lambda p: operators.to_dense(Hessian()(model, p, labelled(16))))(wide)
    exact = float(jnp.trace(dense))
    assert abs(float(value) - exact) < 4 * float(error) + (0.05 * abs(exact) if dtype == jnp.bfloat16 else 1e-4)


def test_random_signs():
    """Signs of mean 0, independent between leaves and keys, f32 for any parameter dtype."""
    like = {"a": jnp.zeros((64, 64), jnp.bfloat16), "b": jnp.zeros((64, 64))}
    u, v = (tree.rademacher_like(jax.random.key(s), like) for s in (0, 1))
    for leaf in jax.tree.leaves(u):
        assert leaf.dtype == jnp.float32
        assert set(np.unique(leaf)) == {-1.0, 1.0}
        assert abs(float(jnp.mean(leaf))) < 4 / 64
    for x, y in ((u["a"], u["b"]), (u["a"], v["a"])):
        assert abs(float(jnp.mean(x * y))) < 4 / 64
    with jax.enable_x64(True):
        assert tree.rademacher_like(jax.random.key(0), jnp.zeros(3, jnp.float64)).dtype == jnp.float64


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
def test_eight_devices_equal_one(explicit):
    put = on_mesh("both", explicit)
    scale = tree_of(jnp.asarray(np.geomspace(0.1, 10.0, 20), jnp.float32))
    program = jax.jit(
        lambda s: (
            tree.rademacher_like(jax.random.key(0), s),
            trace(diagonal_operator(s), jax.random.key(0), 3, rank=2)[:2],
            squared_frobenius_norm(diagonal_operator(s), jax.random.key(0), 3)[:2],
        )
    )
    one, many = program(scale), program(put(scale))
    np.testing.assert_allclose(jax.tree.leaves(many[1:]), jax.tree.leaves(one[1:]), rtol=1e-4, atol=1e-4)
    for x, y, like in zip(*(jax.tree.leaves(t) for t in (many[0], one[0], put(scale))), strict=True):
        np.testing.assert_array_equal(x, y)
        assert x.sharding.is_equivalent_to(like.sharding, like.ndim)


def test_more_unknowns_than_int32_holds():
    assert unknowns([jax.ShapeDtypeStruct((2**16, 2**16), jnp.float32)] * 2) == 2**33


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda A, key: trace(A, key, 1), "samples"),
        (lambda A, key: trace(A, key, rank=-1), "rank"),
        (lambda A, key: squared_frobenius_norm(A, key, 1), "samples"),
    ],
)
def test_settings_are_checked(make, word):
    with pytest.raises(ValueError, match=word):
        make(diagonal_operator(jnp.ones(3)), jax.random.key(0))
