"""Lanczos tridiagonalisation: identities to rounding, exhausted spaces, matfree, eight devices without a gather."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from krylov_cases import (
    LAYOUTS,
    SPECTRA,
    K,
    N,
    diagonal_operator,
    on_mesh,
    right_hand_side,
    rotated,
    rows_of,
    run,
    tree_of,
    vector_of,
)
from toys import flat

from jaxunlearn.solvers import Status, krylov, lanczos, matrix_function
from jaxunlearn.solvers.tridiagonal import dense, ritz

EPS = np.finfo(np.float64).eps


@pytest.mark.parametrize("name", SPECTRA)
def test_the_identities_of_lanczos(name):
    """`A Q^T = Q^T T + r e^T`, `Q Q^T = I`, `Q r = 0`, to rounding, where plain Lanczos has long lost them."""
    with jax.enable_x64(True):
        M, b = rotated(SPECTRA[name]), right_hand_side()
        T = run(M, b)
        k = int(T.steps)
        Q, r, size = rows_of(T.basis), np.asarray(vector_of(T.residual)), np.abs(SPECTRA[name]).max()
        assert not Q[k:].any()
        e = np.eye(K)[k - 1]
        np.testing.assert_allclose(M @ Q[:k].T, (Q.T @ dense(T) + np.outer(r, e))[:, :k], atol=20 * EPS * size)
        np.testing.assert_allclose(Q[:k] @ Q[:k].T, np.eye(k), atol=20 * EPS)
        np.testing.assert_allclose(Q[:k] @ r, 0.0, atol=20 * EPS * size)
        np.testing.assert_allclose(float(T.norm) * Q[0], b, atol=20 * EPS * np.linalg.norm(b))
        assert float(T.residual_norm) == pytest.approx(np.linalg.norm(r), abs=EPS * size)


@pytest.mark.parametrize("name", SPECTRA)
def test_ritz_values_lie_within_the_spectrum_and_moments_match(name):
    """T has the moments of A: `e_1.T^j e_1 = v.A^j v` for `j <= 2k - 1` (Gauss quadrature), and not for 2k."""
    with jax.enable_x64(True):
        values, k = SPECTRA[name] / np.abs(SPECTRA[name]).max(), 3
        M, v = rotated(values), right_hand_side()
        v /= np.linalg.norm(v)
        T = run(M, v)
        D = np.asarray(dense(T))[:k, :k]
        for j in range(2 * k):
            moment = v @ np.linalg.matrix_power(M, j) @ v
            assert np.linalg.matrix_power(D, j)[0, 0] == pytest.approx(moment, abs=20 * EPS)
        assert abs(np.linalg.matrix_power(D, 2 * k)[0, 0] - v @ np.linalg.matrix_power(M, 2 * k) @ v) > 1e-9
        theta, S = ritz(T)
        assert values.min() - 20 * EPS <= float(theta[0]) <= float(theta[-1]) <= values.max() + 20 * EPS
        np.testing.assert_allclose(S.T @ dense(T) @ S, np.diag(theta), atol=20 * EPS)


@pytest.mark.parametrize("distinct", [1, 2, 5])
def test_an_exhausted_space_ends_the_run_exactly(distinct):
    """With d distinct eigenvalues the space has dimension d: status, zero rows, no NaN, and f(A) b exact."""
    with jax.enable_x64(True):
        scale, b = jnp.asarray(np.resize(np.linspace(1.0, 9.0, distinct), N)), jnp.asarray(right_hand_side())
        whole = jax.jit(lambda v: lanczos(diagonal_operator(scale), v, K, breakdown=1e-12))(b)
        assert (Status(int(whole.status)), int(whole.steps)) == (Status.INVARIANT_SUBSPACE, distinct)
        # What goes on from rounding instead changes nothing: it is coupled by no more than rounding.
        for T in (whole, run(np.diag(scale), b)):
            assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(T))
            for f in (jnp.sqrt, jnp.log, jnp.exp):
                found = matrix_function(T, f)
                expected = f(scale) * b
                np.testing.assert_allclose(
                    found if T is whole else vector_of(found), expected, atol=1e-11 * float(jnp.max(jnp.abs(f(scale))))
                )


def test_agreement_with_matfree():
    pytest.importorskip("matfree")
    from matfree import decomp, funm

    with jax.enable_x64(True):
        M, b = jnp.asarray(rotated(SPECTRA["spiked"])), jnp.asarray(right_hand_side())
        theirs = decomp.tridiag_sym(12, materialize=True, reortho="full")(lambda v: M @ v, b)
        ours = run(M, b, 12)
        np.testing.assert_allclose(dense(ours), theirs.J_small, atol=1e-9)
        apply = funm.funm_lanczos_sym(funm.dense_funm_sym_eigh(jnp.sqrt), decomp.tridiag_sym(12))
        np.testing.assert_allclose(vector_of(matrix_function(ours, jnp.sqrt)), apply(lambda v: M @ v, b), atol=1e-9)


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_eight_devices_equal_one_without_a_gather(layout, explicit):
    """The basis is laid out like the parameters behind its leading axis, and no step gathers a leaf."""
    put = on_mesh(layout, explicit)
    scale, b = (tree_of(jnp.asarray(x, jnp.float32)) for x in (np.geomspace(0.1, 10.0, 20), right_hand_side(20)))

    def solve(scale, b):
        T = lanczos(diagonal_operator(scale), b, 6)
        return T, krylov.power(T, -0.25, 0.1)

    expected = jax.jit(solve)(scale, b)
    program = jax.jit(solve).lower(put(scale), put(b)).compile()
    found = program(put(scale), put(b))
    np.testing.assert_allclose(found[0].diagonal, expected[0].diagonal, rtol=2e-4)
    np.testing.assert_allclose(flat(jax.device_get(found[1])), flat(expected[1]), rtol=1e-4, atol=1e-5)
    for x, rows, like in zip(*(jax.tree.leaves(t) for t in (found[1], found[0].basis, put(b))), strict=True):
        assert x.sharding.is_equivalent_to(like.sharding, like.ndim)
        assert rows.sharding.shard_shape(rows.shape) == (6, *like.sharding.shard_shape(like.shape))
    text = program.as_text()
    assert "all-reduce" in text
    assert not any(word in text for word in ("all-gather", "all-to-all", "collective-permute"))


def test_memory_is_one_basis():
    """No step copies the basis: all temporaries together stay within a few vectors of it."""
    scale, k = jnp.linspace(0.1, 1.0, 128 * 128).reshape(128, 128), 20
    solve = jax.jit(lambda b: lanczos(diagonal_operator(scale), b, k).diagonal)
    memory = solve.lower(scale).compile().memory_analysis()
    assert memory.temp_size_in_bytes < (k + 5) * 4 * scale.size
