"""Cubic-regularised and trust-region steps: global minima by dense float64 oracles, optimality, and the hard case."""

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
    on_mesh,
    right_hand_side,
    rotated,
    runs,
    tree_of,
    vector_of,
)
from toys import flat, mlp, unlearn_batch

import jaxunlearn as ju
from jaxunlearn import methods, solvers, tree
from jaxunlearn.curvature import Hessian
from jaxunlearn.operators import LinearOperator
from jaxunlearn.solvers import CubicRegularized, Status, TrustRegionLanczos, krylov
from jaxunlearn.solvers.lanczos import tridiagonalization
from jaxunlearn.solvers.secular import secular

CASES = {
    "cubic, strong": CubicRegularized(100.0, N, rtol=1e-8),
    "cubic, weak": CubicRegularized(0.1, N, rtol=1e-8),
    "short radius": TrustRegionLanczos(0.1, N, rtol=1e-8),
    "long radius": TrustRegionLanczos(50.0, N, rtol=1e-8),
}


def model(solver, M, b, x):
    size = np.linalg.norm(x)
    cubic = solver.L / 6 * size**3 if isinstance(solver, CubicRegularized) else 0.0
    return x @ M @ x / 2 - b @ x + cubic


def oracle(solver, M, b):
    """The global minimum by the eigendecomposition and plain bisection, the hard case included."""
    theta, V = np.linalg.eigh(M)
    c = V.T @ b
    length = (lambda lam: 2 * lam / solver.L) if isinstance(solver, CubicRegularized) else (lambda lam: solver.radius)
    pole = max(0.0, -theta[0])
    regular = np.abs(theta + pole) > 1e-12
    z = np.where(regular, c / np.where(regular, theta + pole, 1.0), 0.0)
    if np.linalg.norm(z) <= length(pole) and not np.any(np.abs(c[~regular]) > 1e-12):
        if pole > 0:
            z[0] += np.sqrt(length(pole) ** 2 - z @ z)
        return V @ z, pole
    low, high = pole, pole + 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.linalg.norm(c / (theta + middle)) > length(middle) else (low, middle)
    return V @ (c / (theta + high)), high


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("case", CASES)
def test_the_global_minimum_and_its_conditions(case, name):
    """`(A + lambda I) x = b`, `A + lambda I >= 0`, `lambda >= 0`, and the step has the length its lambda asks for."""
    with jax.enable_x64(True):
        solver, M, b = CASES[case], rotated(SPECTRA[name]), right_hand_side()
        x, info = finish(solver, runs(M, b, N)[-1])
        x, lam = np.asarray(vector_of(x)), float(info.damping)
        expected, damping = oracle(solver, M, b)
        np.testing.assert_allclose(x, expected, atol=1e-7 * np.linalg.norm(expected))
        assert lam == pytest.approx(damping, rel=1e-8, abs=1e-9)
        residual = np.linalg.norm(b - M @ x - lam * x) / np.linalg.norm(b)
        assert residual < 1e-9
        assert Status(int(info.status)) is Status.CONVERGED
        assert np.linalg.eigvalsh(M)[0] + lam >= -1e-12
        if isinstance(solver, CubicRegularized):
            assert lam == pytest.approx(solver.L / 2 * np.linalg.norm(x), rel=1e-10)
        else:
            assert np.linalg.norm(x) <= solver.radius * (1 + 1e-12)
            assert lam * (solver.radius - np.linalg.norm(x)) == pytest.approx(0.0, abs=1e-9)
        assert float(info.decrease) == pytest.approx(-model(solver, M, b, x), rel=1e-9)
        assert not bool(info.hard_case)


@pytest.mark.parametrize("case", CASES)
def test_in_a_smaller_space_it_is_the_minimum_over_that_space(case):
    """No point of the Krylov space is better, a larger space is never worse, and the residual told is the true one."""
    with jax.enable_x64(True):
        solver, M, b = CASES[case], rotated(SPECTRA["indefinite"]), right_hand_side()
        rng, decreases = np.random.default_rng(0), []
        for state in runs(M, b, N)[1:8]:
            x, info = finish(solver, state)
            x, lam = np.asarray(vector_of(x)), float(info.damping)
            residual = np.linalg.norm(b - M @ x - lam * x)
            assert float(info.residual_norms[1]) == pytest.approx(residual, rel=1e-7, abs=1e-12)
            Q = np.concatenate([np.asarray(q).reshape(N, -1) for q in jax.tree.leaves(state.basis)], axis=1)
            for size in (1e-3, 1e-1):
                rival = x + size * np.linalg.norm(x) * (rng.normal(size=N) * (np.arange(N) < int(state.steps))) @ Q
                if isinstance(solver, TrustRegionLanczos):
                    rival *= min(1.0, solver.radius / np.linalg.norm(rival))
                assert model(solver, M, b, x) <= model(solver, M, b, rival) + 1e-12
            decreases.append(float(info.decrease))
        assert np.all(np.diff(decreases) >= -1e-12)
        assert decreases[0] > 0


def test_a_cubic_step_is_a_trust_region_step_and_a_damped_solve():
    with jax.enable_x64(True):
        M, b = rotated(SPECTRA["indefinite"]), right_hand_side()
        state = runs(M, b)[-1]
        x, info = finish(CubicRegularized(10.0, K), state)
        y, other = finish(TrustRegionLanczos(float(tree.norm(x)), K), state)
        z = krylov.solution(tridiagonalization(state), float(info.damping))
        np.testing.assert_allclose(flat(x), flat(y), atol=1e-9)
        np.testing.assert_allclose(flat(x), flat(z), atol=1e-9)
        assert float(info.damping) == pytest.approx(float(other.damping), rel=1e-9)


@pytest.mark.parametrize("solver", [CubicRegularized(1.0, 3), TrustRegionLanczos(5.0, 3)], ids=["cubic", "radius"])
def test_the_hard_case_of_the_secular_equation(solver):
    """b has nothing along the lowest eigenvector: the step is filled up with it to the length that lambda asks for."""
    with jax.enable_x64(True):
        theta, c = np.array([-2.0, 1.0, 3.0]), np.array([0.0, 1.0, 1.0])
        root = jax.jit(lambda c: secular(jnp.asarray(theta), c, solver.length))(jnp.asarray(c))
        assert bool(root.hard_case)
        expected, damping = oracle(solver, np.diag(theta), c)
        np.testing.assert_allclose(np.abs(root.z), np.abs(expected), atol=1e-12)
        assert float(root.damping) == damping == 2.0
        # The solution is continuous: the easy problem next to it has nearly this one.
        near = jax.jit(lambda c: secular(jnp.asarray(theta), c, solver.length))(jnp.asarray(c + 1e-9 * np.eye(3)[0]))
        assert not bool(near.hard_case)
        np.testing.assert_allclose(near.z, np.abs(root.z), atol=1e-6)


def test_a_saddle_that_the_gradient_does_not_see_needs_a_perturbation():
    """b is orthogonal to the only direction of descent: Krylov spaces of b never hold it, those of b plus noise do."""
    with jax.enable_x64(True):
        scale = np.concatenate([[-1.0], np.linspace(1.0, 2.0, N - 1)])
        M, b = np.diag(scale), np.concatenate([[0.0], np.ones(N - 1)])
        A, rhs = diagonal_operator(jnp.asarray(scale), psd=False), jnp.asarray(b)
        values = {}
        for share in (0.0, 1e-4):
            solver = CubicRegularized(0.1, 25, rtol=1e-3, perturbation=share)
            x, info = jax.jit(lambda v, s=solver: s(A, v))(rhs)
            values[share] = model(solver, M, b, np.asarray(x))
            assert float(info.decrease) == pytest.approx(-values[share], rel=1e-6)
            residual = np.linalg.norm(b - scale * np.asarray(x) - float(info.damping) * np.asarray(x))
            assert float(info.residual_norms[1]) == pytest.approx(residual, rel=1e-5, abs=1e-9)
        best = model(solver, M, b, oracle(solver, M, b)[0])
        assert values[0.0] > 0.5 * best  # blind to most of the descent
        assert values[1e-4] == pytest.approx(best, rel=1e-4)


def test_a_huge_range_of_settings_stays_finite_and_right_in_f32():
    scale = jnp.concatenate([-jnp.geomspace(1e-3, 1.0, 8), jnp.geomspace(1e-3, 1e3, 24)])
    state = runs(np.diag(scale), np.ones(32, np.float32), 32)[-1]
    for strength in (1e-6, 1e-2, 1e2, 1e6):
        x, info = finish(CubicRegularized(strength, 32), state)
        lam = float(info.damping)
        assert lam == pytest.approx(strength / 2 * float(tree.norm(x)), rel=1e-5)
        assert lam > 1.0 - 1e3 * np.finfo(np.float32).eps
        residual = np.linalg.norm(1 - (np.asarray(scale, np.float64) + lam) * np.asarray(vector_of(x), np.float64))
        assert residual / np.sqrt(32) <= float(info.relative_residual) + 1e-6
        x, info = finish(TrustRegionLanczos(strength, 32), state)
        assert float(tree.norm(x)) == pytest.approx(strength, rel=1e-5)


def test_zero_right_hand_side_and_products_that_are_not_finite():
    solve = jax.jit(lambda scale, b: CubicRegularized(1.0, 4)(diagonal_operator(scale), b))
    x, info = solve(jnp.arange(1.0, 9.0), jnp.zeros(8))
    assert not np.asarray(x).any()
    assert Status(int(info.status)) is Status.CONVERGED
    x, info = solve(jnp.arange(1.0, 9.0) * jnp.nan, jnp.ones(8))
    assert Status(int(info.status)) is Status.NON_FINITE
    assert bool(jnp.all(jnp.isfinite(x)))


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
def test_eight_devices_equal_one(explicit):
    put = on_mesh("both", explicit)
    scale, b = (tree_of(jnp.asarray(x, jnp.float32)) for x in (np.linspace(-1.0, 4.0, 20), right_hand_side(20)))

    def solve(scale, b):
        A = diagonal_operator(scale, psd=False)
        return CubicRegularized(2.0, 6)(A, b), TrustRegionLanczos(0.5, 6, perturbation=1e-3)(A, b)

    one, many = jax.jit(solve)(scale, b), jax.jit(solve)(put(scale), put(b))
    for (x, _), (y, _) in zip(one, many, strict=True):
        np.testing.assert_allclose(flat(jax.device_get(y)), flat(x), atol=1e-4)
        for leaf, like in zip(jax.tree.leaves(y), jax.tree.leaves(put(b)), strict=True):
            assert leaf.sharding.is_equivalent_to(like.sharding, like.ndim)


def test_on_the_host_with_either_basis():
    M = jnp.asarray(rotated(SPECTRA["indefinite"]), jnp.float32)
    A = LinearOperator(lambda v: tree_of(M @ vector_of(v)), tree_of(jnp.zeros(N)))
    b = tree_of(jnp.asarray(right_hand_side(), jnp.float32))
    x, info = solvers.solve_on_host(CubicRegularized(10.0, 7, perturbation=1e-3), A, b)
    y, other = solvers.solve_with_host_basis(CubicRegularized(10.0, 7, perturbation=1e-3, basis="host"), A, b)
    np.testing.assert_allclose(flat(x), flat(y), rtol=1e-3, atol=1e-4)
    assert float(info.damping) == pytest.approx(float(other.damping), rel=1e-4)


def test_as_the_solver_of_a_method():
    """Cubic Newton on the exact, indefinite Hessian goes downhill and reports its damping."""
    net, params = mlp()
    batch = unlearn_batch(net, params)
    objective = ju.objectives.Objective(((-1.0, ju.objectives.NLL("forget")),))
    method = methods.compose("cubic", objective, Hessian(), CubicRegularized(50.0, 8), damping=0.0)
    state = ju.init(method, net, params, key=jax.random.key(0))
    state, info = jax.jit(ju.unlearn_step, static_argnums=(0, 1))(method, net, state, batch)
    assert float(objective.value(net, state.params, batch)) < float(objective.value(net, params, batch))
    assert float(info.curvature.solve.damping) > 0


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: CubicRegularized(0.0), "L=0"),
        (lambda: CubicRegularized(1.0, 0), "steps"),
        (lambda: TrustRegionLanczos(-1.0), "radius"),
        (lambda: TrustRegionLanczos(1.0, rtol=1.0), "rtol"),
        (lambda: TrustRegionLanczos(1.0, perturbation=-1.0), "perturbation"),
        (lambda: CubicRegularized(1.0)(diagonal_operator(jnp.ones(3)), jnp.ones(3), jnp.ones(3)), "x0"),
    ],
)
def test_settings_are_checked(make, word):
    with pytest.raises(ValueError, match=word):
        make()
