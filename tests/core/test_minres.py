"""MINRES against scipy and dense solves in float64, on indefinite, singular and inconsistent systems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.operators import LinearOperator
from jaxunlearn.solvers import CG, MINRES, Status, ritz_values

N = 20


def symmetric(eigenvalues, seed=0):
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues), len(eigenvalues))))
    return (q * eigenvalues) @ q.T


def indefinite(seed=0):
    return symmetric(np.concatenate([-np.geomspace(0.1, 4.0, N // 2), np.geomspace(0.2, 10.0, N // 2)]), seed)


def acting(matrix):
    return LinearOperator(lambda v: jnp.asarray(matrix) @ v, jnp.zeros(len(matrix), matrix.dtype))


def b_of(seed=1, n=N):
    return np.random.default_rng(seed).normal(size=n)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def jacobi(matrix):
    """An SPD preconditioner that is far from the identity."""
    size = jnp.abs(jnp.asarray(matrix)).sum(axis=0) * jnp.geomspace(0.5, 3.0, len(matrix), dtype=matrix.dtype)
    return lambda r: r / size


@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("warm", [False, True])
def test_it_is_the_dense_solve(preconditioned, warm):
    M, b = indefinite(), b_of()
    solver = MINRES(80, 1e-12, preconditioner=jacobi(M) if preconditioned else None)
    x0 = jnp.asarray(b_of(2)) if warm else None
    x, info = jax.jit(lambda b: solver(acting(M), b, x0))(jnp.asarray(b))
    np.testing.assert_allclose(x, np.linalg.solve(M, b), atol=1e-9)
    assert Status(int(info.status)) is Status.CONVERGED
    assert float(info.min_curvature) < 0 < float(info.max_curvature)


@pytest.mark.parametrize("preconditioned", [False, True])
def test_every_iterate_is_scipys(preconditioned):
    from scipy.sparse.linalg import LinearOperator as ScipyOperator
    from scipy.sparse.linalg import minres

    M, b = indefinite(), b_of()
    P = jacobi(M) if preconditioned else None
    theirs = []
    scipy_P = ScipyOperator((N, N), matvec=lambda r: np.asarray(P(jnp.asarray(r)))) if preconditioned else None
    minres(M, b, rtol=1e-14, maxiter=12, M=scipy_P, callback=lambda x: theirs.append(x.copy()))
    solver = MINRES(12, 0.0, preconditioner=P)
    A, state = acting(M), solver.init(jnp.asarray(b))
    for expected in theirs[:12]:
        state = solver.update(state, A(solver.direction(state)))
        np.testing.assert_allclose(state.x, expected, atol=1e-9)
    assert len(theirs) >= 12


def test_the_residual_is_the_smallest_in_the_krylov_space_and_never_grows():
    M, b = indefinite(), b_of()
    _, info = MINRES(N, 0.0)(acting(M), jnp.asarray(b))
    norms = np.asarray(info.residual_norms)
    assert (np.diff(norms) <= 0).all()
    for k in (1, 5, 10):
        x, _ = MINRES(k, 0.0)(acting(M), jnp.asarray(b))
        K, _ = np.linalg.qr(np.stack([np.linalg.matrix_power(M, j) @ b for j in range(k)], axis=1))
        best = np.linalg.norm(b - M @ K @ np.linalg.lstsq(M @ K, b)[0])
        assert float(np.linalg.norm(b - M @ np.asarray(x))) == pytest.approx(best, rel=1e-8)
        assert norms[k] == pytest.approx(best, rel=1e-8)


def test_the_preconditioned_residual_is_measured_in_the_preconditioners_norm():
    M, b = indefinite(), jnp.asarray(b_of())
    P = jacobi(M)
    x0 = jnp.asarray(b_of(5))
    x, info = MINRES(6, 0.0, preconditioner=P)(acting(M), b, x0)
    for r, norm in ((b - M @ x0, info.residual_norms[0]), (b - M @ x, info.residual_norms[6])):
        assert float(norm) == pytest.approx(float(jnp.sqrt(r @ P(r))), rel=1e-9)
    assert float(info.relative_residual) == pytest.approx(float(info.residual_norms[6] / jnp.sqrt(b @ P(b))), rel=1e-9)
    assert (np.diff(info.residual_norms) <= 0).all()


def test_its_lanczos_matrix_is_that_of_cg():
    M, b = symmetric(np.geomspace(0.1, 10.0, N)), jnp.asarray(b_of())
    ours, cg = (solver(acting(M), b)[1] for solver in (MINRES(8, 0.0), CG(8, 0.0, progress=None)))
    np.testing.assert_allclose(ours.alphas, cg.alphas, rtol=1e-9)
    np.testing.assert_allclose(ours.betas, cg.betas, rtol=1e-9)
    np.testing.assert_allclose(
        [ours.min_curvature, ours.max_curvature], np.asarray(ritz_values(cg))[[0, -1]], rtol=1e-9
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-2), (jnp.float64, 1e-6)])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_a_singular_system_without_a_solution_gives_the_least_squares_solution(preconditioned, seed, dtype, tolerance):
    """To where rounding lets the range be told from the null space: about the root of the unit."""
    eigenvalues = np.concatenate([np.zeros(3), -np.arange(1.0, 9.0), np.arange(1.0, 10.0)])
    M, b = jnp.asarray(symmetric(eigenvalues, seed), dtype), jnp.asarray(b_of(seed + 5), dtype)
    P = jacobi(M)
    solver = MINRES(100, 1e-10, preconditioner=P if preconditioned else None)
    x, info = jax.jit(lambda b: solver(acting(M), b))(b)
    assert Status(int(info.status)) is Status.LEAST_SQUARES
    r = b - M @ x
    # In the preconditioner's inner product r is orthogonal to the range of A.
    z = P(r) if preconditioned else r
    assert float(jnp.linalg.norm(M @ z)) <= tolerance * float(jnp.linalg.norm(z))
    assert float(info.residual_norms[-1]) == pytest.approx(float(jnp.sqrt(r @ z)), rel=tolerance)
    if not preconditioned:
        best = np.linalg.norm(b - M @ np.linalg.lstsq(M, b, rcond=1e-5)[0])
        assert float(jnp.linalg.norm(r)) == pytest.approx(best, rel=tolerance)


def test_a_singular_system_with_a_solution_gives_the_smallest_one():
    M = symmetric(np.concatenate([np.zeros(3), -np.arange(1.0, 9.0), np.arange(1.0, 10.0)]))
    b = M @ b_of()
    x, info = MINRES(200, 1e-11)(acting(M), jnp.asarray(b))
    assert Status(int(info.status)) is Status.CONVERGED
    np.testing.assert_allclose(x, np.linalg.pinv(M, rcond=1e-10) @ b, atol=1e-8)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_ill_conditioned_is_not_taken_for_singular(dtype):
    """Spikes 10^4 above the bulk, as a network has them."""
    scale = np.concatenate([np.linspace(-1.0, -0.5, 4), np.linspace(0.5, 1.0, 30), [1e3, 5e3, 1e4]])
    b = jnp.ones(len(scale), dtype)
    x, info = MINRES(200, 1e-3)(LinearOperator(lambda v: jnp.asarray(scale, dtype) * v, b), b)
    assert Status(int(info.status)) is Status.CONVERGED
    assert float(jnp.linalg.norm(b - jnp.asarray(scale, dtype) * x)) <= 2e-3 * float(jnp.linalg.norm(b))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_an_invariant_subspace_ends_exactly(dtype):
    """b has components along three eigenvectors: three steps, and nothing is divided by the zero that follows."""
    scale = jnp.asarray([1.0, -2.0, 3.0, 4.0, 5.0], dtype)
    b = jnp.asarray([1.0, 1.0, 1.0, 0.0, 0.0], dtype)
    x, info = MINRES(50, 0.0)(LinearOperator(lambda v: scale * v, b), b)
    assert Status(int(info.status)) in (Status.CONVERGED, Status.LEAST_SQUARES, Status.MAX_STEPS)
    np.testing.assert_allclose(x, b / scale, atol=20 * jnp.finfo(dtype).eps)
    assert float(info.residual_norms[3]) <= 20 * float(jnp.finfo(dtype).eps)
    x, info = MINRES(50, 1e-5)(LinearOperator(lambda v: scale * v, b), b)
    assert (int(info.steps), Status(int(info.status))) == (3, Status.CONVERGED)


def test_a_zero_operator_is_a_least_squares_problem():
    b = jnp.ones(3)
    x, info = MINRES()(LinearOperator(lambda v: 0 * v, b), b)
    assert Status(int(info.status)) is Status.LEAST_SQUARES
    np.testing.assert_array_equal(x, np.zeros(3))


def test_an_indefinite_preconditioner_is_reported():
    signs = jnp.array([1.0, -1.0, -1.0])
    for b in (jnp.ones(3), jnp.array([2.0, 1.0, 1.0])):  # seen before the first step, and later
        solver = MINRES(20, 1e-6, preconditioner=lambda r: signs * r)
        x, info = solver(LinearOperator(lambda v: jnp.array([1.0, 2.0, 3.0]) * v, b), b)
        assert Status(int(info.status)) is Status.INDEFINITE_PRECONDITIONER
        assert bool(jnp.all(jnp.isfinite(x)))


def test_max_steps_is_reported_with_the_true_residual():
    M, b = indefinite(), jnp.asarray(b_of())
    x, info = MINRES(4, 1e-10)(acting(M), b)
    assert Status(int(info.status)) is Status.MAX_STEPS
    assert int(info.steps) == 4
    assert float(info.relative_residual) == pytest.approx(float(jnp.linalg.norm(b - M @ x) / jnp.linalg.norm(b)))
