"""Functions of an operator in a Krylov space: dense oracles, error bounds that hold, every damping from one run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from krylov_cases import (
    SPECTRA,
    K,
    N,
    diagonal_operator,
    finish,
    operator_of,
    right_hand_side,
    rotated,
    rows_of,
    run,
    runs,
    tree_of,
    vector_of,
)
from toys import mlp, unlearn_batch

import jaxunlearn as ju
from jaxunlearn import methods, solvers, tree
from jaxunlearn.curvature import GaussNewton, Hessian
from jaxunlearn.operators import LinearOperator
from jaxunlearn.solvers import CG, Lanczos, Status, damping_path, krylov, lanczos
from jaxunlearn.solvers.matrix_power import error_bounds
from jaxunlearn.solvers.tridiagonal import dense


def function_of(matrix, f):
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * f(values)) @ vectors.T


def test_an_eigenvector_is_solved_in_one_step():
    x, info = Lanczos(5)(diagonal_operator(jnp.arange(2.0, 8.0)), jnp.eye(6)[2])
    assert x.tolist() == [0.0, 0.0, 0.25, 0.0, 0.0, 0.0]
    assert (Status(int(info.status)), int(info.steps)) == (Status.CONVERGED, 1)


@pytest.mark.parametrize("power", [-1.0, -0.25])
def test_zeros_do_no_harm(power):
    solve = jax.jit(lambda scale, b: Lanczos(5, power)(diagonal_operator(scale), b))
    x, info = solve(jnp.arange(1.0, 9.0), jnp.zeros(8))
    assert not np.asarray(x).any()
    assert (Status(int(info.status)), int(info.steps)) == (Status.CONVERGED, 0)
    x, info = solve(jnp.zeros(8), jnp.ones(8))
    assert bool(jnp.all(jnp.isfinite(x)))
    assert bool(jnp.isfinite(info.relative_residual))


def test_a_product_that_is_not_finite_ends_the_run():
    """What was found before it is kept; the failed product counts as spent."""
    scale = jnp.arange(1.0, 7.0)
    link = jnp.zeros((6, 6)).at[2, 3].set(1.0).at[3, 2].set(1.0)

    def mv(v):  # the first direction leaves v[3] alone, the second one meets it
        return jnp.where(jnp.abs(v[3]) > 0, jnp.nan, 1.0) * scale * v + link @ v

    solve = jax.jit(lambda b: Lanczos(5)(LinearOperator(mv, scale), b))
    x, info = solve(jnp.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0]))
    assert (Status(int(info.status)), int(info.steps)) == (Status.NON_FINITE, 2)
    assert bool(jnp.all(jnp.isfinite(x)))
    assert float(jnp.linalg.norm(x)) > 0
    x, info = solve(scale * jnp.nan)
    assert (Status(int(info.status)), float(jnp.abs(x).max())) == (Status.NON_FINITE, 0.0)


@pytest.mark.parametrize("power", [-1.0, -0.25, 0.5])
def test_as_many_steps_as_unknowns_are_exact(power):
    with jax.enable_x64(True):
        for name in ("geometric", "spiked"):
            M, b = rotated(SPECTRA[name]), right_hand_side()
            x = vector_of(krylov.power(run(M, b, N), power))
            expected = function_of(M, lambda t: t**power) @ b
            np.testing.assert_allclose(x, expected, atol=1e-9 * np.linalg.norm(expected))


def test_more_steps_than_spikes():
    """`A^(-1/4) b` on a bulk with 20 outliers: useless after 10 steps, exact after 40; and both are said."""
    with jax.enable_x64(True):
        scale = jnp.concatenate([jnp.linspace(0.1, 0.2, 480), jnp.geomspace(1.0, 1e3, 20)])
        b, exact, error = jnp.asarray(right_hand_side(500)), None, {}
        exact = scale**-0.25 * b
        for steps in (10, 40):
            x, info = jax.jit(lambda b, k=steps: Lanczos(k, -0.25)(diagonal_operator(scale), b))(b)
            error[steps] = float(jnp.linalg.norm(x - exact) / jnp.linalg.norm(exact))
            assert error[steps] <= float(info.relative_residual) * (1 + error[steps])
            assert Status(int(info.status)) is (Status.CONVERGED if steps == 40 else Status.MAX_STEPS)
        assert 0.05 < error[10] < 0.3
        assert error[40] < 1e-10


@pytest.mark.parametrize("power", [-0.9, -0.25, 0.5])
def test_the_error_bound_holds_at_every_step_and_is_not_idle(power):
    """With the smallest eigenvalue known the bound is one, and past the outliers it is within ten times the error."""
    with jax.enable_x64(True):
        for name in ("geometric", "spiked"):
            M, b, k = rotated(SPECTRA[name]), right_hand_side(), 30
            expected = function_of(M, lambda t: t**power) @ b
            T = run(M, b, N)
            bounds = np.asarray(jax.jit(error_bounds, static_argnums=2)(T, jnp.asarray(SPECTRA[name]), power))[:k]
            Q, D, errors = rows_of(T.basis), np.asarray(dense(T)), [np.linalg.norm(expected)]
            for steps in range(1, k):
                theta, S = np.linalg.eigh(D[:steps, :steps])
                y = float(T.norm) * (S @ (theta**power * S[0]))
                errors.append(np.linalg.norm(Q[:steps].T @ y - expected))
            errors = np.array(errors)
            floor = 1e-11 * errors[0]
            assert np.all(errors <= 1.0001 * bounds + floor)
            late = (errors > 100 * floor) & (np.arange(k) > 12)
            if name == "spiked":
                assert np.all(bounds[late] <= 10 * errors[late])


@pytest.mark.parametrize("name", SPECTRA)
def test_residuals_by_step_are_the_true_ones(name):
    with jax.enable_x64(True):
        M, b = rotated(SPECTRA[name]), right_hand_side()
        states = runs(M, b)
        whole = finish(Lanczos(K), states[-1])[1]
        for state in states[1:12]:
            x, info = finish(Lanczos(K), state)
            true = np.linalg.norm(b - M @ np.asarray(vector_of(x)))
            assert float(info.relative_residual) * np.linalg.norm(b) == pytest.approx(true, rel=1e-6, abs=1e-10)
            assert float(whole.residual_norms[int(state.steps)]) == pytest.approx(true, rel=1e-5, abs=1e-10)
        assert Status(int(info.status)) is Status.RUNNING
        theta = np.linalg.eigvalsh(M)
        assert theta[0] - 1e-12 <= float(whole.min_curvature) <= float(whole.max_curvature) <= theta[-1] + 1e-9


def test_the_solution_is_that_of_conjugate_gradients_and_a_warm_start_goes_on():
    """k steps of Lanczos and k of CG minimise one energy over one space."""
    with jax.enable_x64(True):
        M, b = rotated(SPECTRA["spiked"]), right_hand_side()
        A, rhs = operator_of(M, psd=True), tree_of(jnp.asarray(b))
        ours, info = finish(Lanczos(6), runs(M, b, 6)[-1])
        theirs, other = jax.jit(lambda v: CG(6, 0.0, progress=None)(A, v))(rhs)
        np.testing.assert_allclose(vector_of(ours), vector_of(theirs), atol=1e-9)
        np.testing.assert_allclose(info.residual_norms, other.residual_norms, rtol=1e-7)
        np.testing.assert_allclose(solvers.ritz_values(info), solvers.ritz_values(other), rtol=1e-7)
        start = tree_of(jnp.asarray(np.linalg.solve(M, b) + 1e-3))
        x, info = jax.jit(lambda v, s: Lanczos(6)(A, v, s))(rhs, start)
        true = np.linalg.norm(b - M @ np.asarray(vector_of(x))) / np.linalg.norm(b)
        assert float(info.relative_residual) == pytest.approx(true, rel=1e-6)
        assert true < 0.01 * float(other.relative_residual)


def test_f32_keeps_small_eigenvalues_apart_from_large_ones():
    """Condition 10^6 in f32: the roots of T resolve what a symmetric eigensolver, and CG, lose to rounding."""
    scale = jnp.concatenate([jnp.linspace(1e-3, 1e-2, 480), jnp.geomspace(1.0, 1e3, 20)])
    b = jnp.asarray(right_hand_side(500), jnp.float32)

    def residual(x):
        exact = np.asarray(b, np.float64) - np.asarray(scale, np.float64) * np.asarray(x, np.float64)
        return np.linalg.norm(exact) / np.linalg.norm(b)

    @jax.jit
    def solve(b):
        T = lanczos(diagonal_operator(scale), b, 60)
        theta, S = jnp.linalg.eigh(dense(T))
        plain, _ = CG(60, 0.0, progress=None)(diagonal_operator(scale), b)
        return krylov.solution(T), krylov.combine(T, T.norm * (S @ (S[0] / theta))), plain

    fine, crude, plain = (residual(x) for x in solve(b))
    assert 5 * fine < min(crude, plain)
    assert fine < 0.03


def test_the_damping_path_is_that_of_the_solutions():
    """And shifting A shifts T and leaves the space alone: each is the solve of a run on the damped operator."""
    with jax.enable_x64(True):
        M, b = rotated(SPECTRA["indefinite"]), right_hand_side()
        T = run(M, b)
        dampings = np.array([0.0, 0.5, 3.5, 20.0])
        path = jax.jit(damping_path)(T, jnp.asarray(dampings))
        solve = jax.jit(krylov.solution)
        for i, lam in enumerate(dampings):
            x = np.asarray(vector_of(solve(T, lam)))
            assert float(path.solution_norm[i]) == pytest.approx(np.linalg.norm(x), rel=1e-9)
            assert float(path.slope[i]) == pytest.approx(b @ x, rel=1e-9)
            assert float(path.curvature[i]) == pytest.approx(x @ M @ x, rel=1e-8)
            assert float(path.decrease[i]) == pytest.approx(b @ x - x @ M @ x / 2, rel=1e-8)
            assert float(path.residual[i]) == pytest.approx(np.linalg.norm(b - M @ x - lam * x), rel=1e-7)
            y, _ = finish(Lanczos(K), runs(M + lam * np.eye(N), b)[-1])
            np.testing.assert_allclose(x, vector_of(y), atol=1e-9 * np.linalg.norm(x))
        assert path.positive_definite.tolist() == [False, False, True, True]
        exact = run(M, b, N)
        np.testing.assert_allclose(
            vector_of(solve(exact, 3.5)), np.linalg.solve(M + 3.5 * np.eye(N), b), rtol=1e-9, atol=1e-10
        )


def test_indefinite_operators():
    """A solve is a solve; a fractional power is that of the absolute values, and said to be; `absolute` asks for it."""
    with jax.enable_x64(True):
        M, b = rotated(SPECTRA["indefinite"]), right_hand_side()
        state = runs(M, b, N)[-1]
        x, info = finish(Lanczos(N, rtol=1e-9), state)
        np.testing.assert_allclose(vector_of(x), np.linalg.solve(M, b), rtol=1e-9, atol=1e-9)
        assert Status(int(info.status)) is Status.CONVERGED
        assert float(info.min_curvature) == pytest.approx(-3.0)
        for solver, status in (
            (Lanczos(N, -0.25), Status.INDEFINITE_POWER),
            (Lanczos(N, 0.5), Status.INDEFINITE_POWER),
            (Lanczos(N, -1.0, absolute=True), Status.CONVERGED),
        ):
            x, info = finish(solver, state)
            expected = function_of(M, lambda t, p=solver.power: np.abs(t) ** p) @ b
            np.testing.assert_allclose(vector_of(x), expected, rtol=1e-9, atol=1e-9)
            assert Status(int(info.status)) is status


def test_spectral_powers_are_finite_everywhere():
    theta = jnp.array([-2.0, -1e-30, 0.0, 1e-30, 2.0])
    for p in (-1.0, -0.25, 0.5, 2.0, 3.0):
        assert bool(jnp.all(jnp.isfinite(krylov.spectral_power(theta, p))))
        assert bool(jnp.all(jnp.isfinite(krylov.spectral_power(jnp.zeros(3), p))))
    assert krylov.spectral_power(theta, 2.0)[0] == 4.0
    assert krylov.spectral_power(theta, 3.0)[0] == -8.0
    assert krylov.spectral_power(theta, -1.0)[0] == -0.5


@pytest.mark.parametrize(("curvature", "dtype"), [(Hessian(), jnp.float32), (GaussNewton(), jnp.bfloat16)])
def test_on_a_model(curvature, dtype):
    """f32 vectors whatever the parameters are, and a residual that is the true one to the product's rounding."""
    model, params = mlp(dtype=dtype)
    batch = unlearn_batch(model, params)

    @jax.jit
    def solve(b):
        A = curvature(model, params, batch.retain).damped(1.0)
        x, info = Lanczos(25)(A, b)
        return x, info, tree.norm(tree.sub(b, A(x))) / tree.norm(b)

    x, info, true = solve(tree.normal_like(jax.random.key(0), params))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(x))
    assert abs(float(true - info.relative_residual)) < {jnp.float32: 1e-5, jnp.bfloat16: 0.05}[dtype]
    assert dtype == jnp.bfloat16 or Status(int(info.status)) is Status.CONVERGED


def test_as_the_solver_of_a_method():
    """`compose` takes it as it takes CG."""
    model, params = mlp()
    batch = unlearn_batch(model, params)
    objective = ju.objectives.Objective(((-1.0, ju.objectives.NLL("forget")),))
    method = methods.compose("lanczos", objective, GaussNewton(), Lanczos(8), damping=0.1, step_size=0.05)
    state = ju.init(method, model, params, key=jax.random.key(0))
    state, info = jax.jit(ju.unlearn_step, static_argnums=(0, 1))(method, model, state, batch)
    assert float(objective.value(model, state.params, batch)) < float(objective.value(model, params, batch))
    assert Status(int(info.curvature.solve.status)).name in ju.certificate.describe(info.certificate, info.curvature)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Lanczos(0), "steps"),
        (lambda: Lanczos(5, power=1.5), "power"),
        (lambda: Lanczos(5, power=0), "power"),
        (lambda: Lanczos(5, rtol=2), "rtol"),
        (lambda: Lanczos(5, basis="disk"), "basis"),
        (lambda: lanczos(lambda v: v, jnp.ones(3), 0), "steps"),
        (lambda: lanczos(lambda v: v, jnp.ones(3), 2, breakdown=-1.0), "breakdown"),
        (lambda: Lanczos(5, -0.25)(diagonal_operator(jnp.ones(3)), jnp.ones(3), jnp.ones(3)), "x0"),
        (lambda: Lanczos(5, basis="host")(diagonal_operator(jnp.ones(3)), jnp.ones(3)), "solve_with_host_basis"),
        (lambda: solvers.solve_with_host_basis(Lanczos(5), diagonal_operator(jnp.ones(3)), jnp.ones(3)), "basis"),
    ],
)
def test_settings_are_checked(make, word):
    with pytest.raises(ValueError, match=word):
        make()
