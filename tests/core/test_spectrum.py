"""Stochastic Lanczos quadrature: exact rules, dense traces within standard errors, densities, log-determinants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from krylov_cases import SPECTRA, N, diagonal_operator, on_mesh, operator_of, rotated, tree_of
from toys import labelled, mlp

from jaxunlearn import operators
from jaxunlearn.curvature import GaussNewton
from jaxunlearn.solvers import Spectrum, density, log_determinant, slq, trace_of


def spectrum_of(name, steps, probes, seed=0):
    A = operator_of(rotated(SPECTRA[name]))
    return jax.jit(lambda key: slq(A, key, steps, probes))(jax.random.key(seed))


@pytest.mark.parametrize("name", ["spiked", "indefinite"])
def test_traces_lie_within_their_standard_errors(name):
    """With as many steps as unknowns only the probes err; four standard errors hold the dense truth."""
    with jax.enable_x64(True):
        spectrum, values = spectrum_of(name, N, 64), SPECTRA[name]
        np.testing.assert_allclose(jnp.sum(spectrum.weights, axis=1), 1.0, atol=1e-12)
        assert float(spectrum.unknowns) == N
        functions = {"identity": lambda t: t, "square": lambda t: t**2, "gauss": lambda t: jnp.exp(-(t**2))}
        for f in functions.values():
            estimate = trace_of(spectrum, f)
            assert abs(float(estimate.value) - float(jnp.sum(f(values)))) < 4 * float(estimate.standard_error)
            assert estimate.samples == 64


def test_the_standard_error_is_the_spread_of_the_estimate():
    """Hutchinson's variance is twice the squared off-diagonals of f(A): known exactly, and found."""
    with jax.enable_x64(True):
        M, probes = rotated(SPECTRA["spiked"]), 256
        theta, V = np.linalg.eigh(M)
        F = (V * np.sqrt(theta)) @ V.T
        expected = np.sqrt(2 * (np.sum(F**2) - np.sum(np.diag(F) ** 2)) / probes)
        found = float(trace_of(spectrum_of("spiked", N, probes), jnp.sqrt).standard_error)
        assert found == pytest.approx(expected, rel=4 / np.sqrt(2 * probes))


def test_few_steps_are_exact_for_polynomials():
    """A k-point Gauss rule integrates degree 2k - 1: three steps give the traces of powers up to five that N give."""
    with jax.enable_x64(True):
        few, many = spectrum_of("indefinite", 3, 4), spectrum_of("indefinite", N, 4)
        for degree in range(6):
            exact = float(trace_of(many, lambda t, d=degree: t**d).value)
            assert float(trace_of(few, lambda t, d=degree: t**d).value) == pytest.approx(exact, rel=1e-10)
        assert float(trace_of(few, lambda t: t**6).value) != pytest.approx(float(trace_of(many, lambda t: t**6).value))


def test_agreement_with_matfree():
    pytest.importorskip("matfree")
    from matfree import decomp, funm

    with jax.enable_x64(True):
        M = jnp.asarray(rotated(SPECTRA["spiked"]))
        u = jnp.asarray(np.random.default_rng(0).choice([-1.0, 1.0], N))
        form = funm.monte_carlo_funm_sym(funm.dense_funm_sym_eigh(jnp.log), decomp.tridiag_sym(10))
        theirs = form(lambda v: M @ v, u)
        from jaxunlearn.solvers import lanczos
        from jaxunlearn.solvers.tridiagonal import ritz

        theta, S = ritz(jax.jit(lambda u: lanczos(lambda v: M @ v, u, 10))(u))
        ours = trace_of(Spectrum(jnp.stack([theta] * 2), jnp.stack([S[0] ** 2] * 2), jnp.float64(N)), jnp.log)
        assert float(ours.value) == pytest.approx(float(theirs), rel=1e-10)


def test_density_resolves_outliers_and_counts_the_bulk():
    with jax.enable_x64(True):
        spectrum, grid = spectrum_of("spiked", 30, 32), jnp.linspace(-50.0, 1100.0, 11501)
        found = density(spectrum, grid, width=0.5)
        step = float(grid[1] - grid[0])
        assert float(jnp.sum(found.value)) * step == pytest.approx(1.0, abs=1e-6)
        bulk = float(jnp.sum(jnp.where(grid < 4, found.value, 0.0))) * step
        noise = float(jnp.sum(jnp.where(grid < 4, found.standard_error, 0.0))) * step
        assert abs(bulk - (N - 5) / N) < 4 * noise + 1e-3
        peaks = grid[1:-1][(found.value[1:-1] > found.value[:-2]) & (found.value[1:-1] > found.value[2:])]
        for spike in np.geomspace(10, 1e3, 5):
            assert float(jnp.min(jnp.abs(peaks - spike))) <= step


@pytest.mark.parametrize("damping", [1e-3, 1.0])
def test_log_determinants(damping):
    with jax.enable_x64(True):
        M = rotated(np.concatenate([np.zeros(N // 2), np.geomspace(0.01, 100.0, N - N // 2)]))
        estimate = jax.jit(
            lambda key: log_determinant(operator_of(M, psd=True), key, damping=damping, steps=N, probes=64)
        )(jax.random.key(2))
        exact = np.linalg.slogdet(M + damping * np.eye(N))[1]
        assert abs(float(estimate.value) - exact) < 4 * float(estimate.standard_error)
        assert float(estimate.standard_error) < 0.1 * abs(exact)


def test_a_singular_operator_without_damping_stays_finite():
    A = diagonal_operator(jnp.array([0.0, 0.0, 1.0, 2.0]))
    estimate = log_determinant(A, jax.random.key(0), steps=4, probes=2)
    assert bool(jnp.isfinite(estimate.value))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_on_a_model(dtype):
    """The Gauss-Newton spectrum of a network, f32 probes whatever the parameters are."""
    model, params = mlp(dtype=dtype)
    A = GaussNewton()(model, params, labelled(16))
    spectrum = jax.jit(lambda key: slq(A, key, 30, 8))(jax.random.key(0))
    assert spectrum.nodes.dtype == jnp.float32
    estimate = trace_of(spectrum, lambda t: t)
    wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    dense = jax.jit(lambda p: operators.to_dense(GaussNewton()(model, p, labelled(16))))(wide)
    slack = 0.05 * float(jnp.trace(dense)) if dtype == jnp.bfloat16 else 1e-4
    assert abs(float(estimate.value - jnp.trace(dense))) < 4 * float(estimate.standard_error) + slack
    top = float(jnp.max(jnp.linalg.eigvalsh(dense)))
    assert float(spectrum.nodes.max()) == pytest.approx(top, rel=0.05 if dtype == jnp.bfloat16 else 1e-4)


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
def test_eight_devices_equal_one(explicit):
    put = on_mesh("both", explicit)
    scale = tree_of(jnp.asarray(np.geomspace(0.1, 10.0, 20), jnp.float32))
    solve = jax.jit(lambda scale: slq(diagonal_operator(scale), jax.random.key(0), 5, 3))
    one = solve(scale)
    program = solve.lower(put(scale)).compile()
    many = program(put(scale))
    np.testing.assert_allclose(many.nodes, one.nodes, rtol=1e-3)
    np.testing.assert_allclose(many.weights, one.weights, atol=1e-4)
    assert "all-gather" not in program.as_text()


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda A, key: slq(A, key, probes=1), "probes"),
        (lambda A, key: slq(A, key, steps=0), "steps"),
        (lambda A, key: log_determinant(operators.scaled(-1.0, A), key), "psd"),
        (lambda A, key: density(Spectrum(jnp.ones((2, 2)), jnp.ones((2, 2)), 2.0), jnp.ones(3), 0.0), "width"),
    ],
)
def test_settings_are_checked(make, word):
    with pytest.raises(ValueError, match=word):
        make(diagonal_operator(jnp.ones(3)), jax.random.key(0))
