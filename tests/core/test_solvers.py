"""CG and closed forms against dense float64 solves, lineax, and their own statuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import tree
from jaxunlearn.curvature.low_rank import low_rank
from jaxunlearn.operators import LinearOperator
from jaxunlearn.solvers import CG, ClosedForm, Status, ritz_values


def dense_operator(matrix):
    """A matrix acting on a two-leaf tree."""

    def mv(v):
        y = matrix @ jnp.concatenate([v["a"], v["b"].reshape(-1)])
        return {"a": y[:3], "b": y[3:].reshape(2, -1)}

    n = matrix.shape[0]
    return LinearOperator(mv, {"a": jnp.zeros(3, matrix.dtype), "b": jnp.zeros((2, (n - 3) // 2), matrix.dtype)})


def random_psd(n, seed=0, low=0.1):
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    return (q * np.geomspace(low, 10.0, n)) @ q.T


def as_vector(t):
    return np.concatenate([np.asarray(t["a"]), np.asarray(t["b"]).reshape(-1)])


def test_cg_is_the_dense_solve():
    with jax.enable_x64(True):
        M = jnp.asarray(random_psd(15))
        b = {"a": jnp.arange(3.0), "b": jnp.ones((2, 6))}
        x, info = jax.jit(lambda b: CG(60, 1e-12, progress=None)(dense_operator(M), b))(b)
        np.testing.assert_allclose(as_vector(x), np.linalg.solve(M, as_vector(b)), atol=1e-9)
        assert Status(int(info.status)) is Status.CONVERGED
        eigenvalues = np.linalg.eigvalsh(M)
        assert eigenvalues[0] - 1e-9 <= float(info.min_curvature) <= float(info.max_curvature) <= eigenvalues[-1] + 1e-9


def test_cg_agrees_with_lineax():
    lineax = pytest.importorskip("lineax")
    with jax.enable_x64(True):
        M = jnp.asarray(random_psd(15, seed=3))
        b = jnp.linspace(-1.0, 1.0, 15)
        theirs = lineax.linear_solve(
            lineax.MatrixLinearOperator(M, lineax.positive_semidefinite_tag), b, lineax.CG(rtol=1e-12, atol=1e-12)
        ).value
        ours, _ = CG(60, 1e-12, progress=None)(LinearOperator(lambda v: M @ v, b), b)
        np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_residual_history_is_the_true_one():
    with jax.enable_x64(True):
        M = jnp.asarray(random_psd(15))
        b = jnp.ones(15)
        A = LinearOperator(lambda v: M @ v, b)
        for steps in (1, 4, 9):
            x, info = CG(steps, 0.0, progress=None)(A, b)
            assert float(info.residual_norms[steps]) == pytest.approx(float(jnp.linalg.norm(b - M @ x)), rel=1e-8)
            assert Status(int(info.status)) is Status.MAX_STEPS
            assert int(info.steps) == steps


def test_preconditioner_and_warm_start_save_products():
    scale = jnp.geomspace(1.0, 1e4, 200)
    A = LinearOperator(lambda v: scale * v, scale)
    b = jnp.ones(200)
    _, plain = CG(500, 1e-4, progress=None)(A, b)
    _, exact = CG(500, 1e-4, progress=None, preconditioner=lambda r: r / scale)(A, b)
    _, warm = CG(500, 1e-4, progress=None)(A, b, b / scale)
    assert int(exact.steps) == 1
    assert int(warm.steps) == 0
    assert int(plain.steps) > 20


def test_the_preconditioner_may_be_an_operator_and_the_recorded_residual_is_the_plain_one():
    with jax.enable_x64(True):
        M, b = jnp.asarray(random_psd(15)), jnp.linspace(-1.0, 1.0, 15)
        P = LinearOperator(lambda r: r / jnp.diag(M), b, psd=True)
        for steps in (1, 5):
            x, info = CG(steps, 0.0, progress=None, preconditioner=P)(LinearOperator(lambda v: M @ v, b), b, 0.1 * b)
            r = [b - M @ (0.1 * b), b - M @ x]
            assert float(info.residual_norms[0]) == pytest.approx(float(jnp.linalg.norm(r[0])), rel=1e-12)
            assert float(info.residual_norms[steps]) == pytest.approx(float(jnp.linalg.norm(r[1])), rel=1e-8)
            assert float(info.relative_residual) == pytest.approx(float(jnp.linalg.norm(r[1]) / jnp.linalg.norm(b)))


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("jacobi", [False, True])
def test_the_recorded_models_and_curvatures_are_the_true_ones(warm, jacobi):
    """Both come from recurrences: the model from step lengths, the curvature from `p.p` without a product of p."""
    with jax.enable_x64(True):
        M, b = jnp.asarray(random_psd(15)), jnp.linspace(-1.0, 1.0, 15)
        A = LinearOperator(lambda v: M @ v, b)
        solver = CG(8, 0.0, progress=None, preconditioner=(lambda r: r / jnp.diag(M)) if jacobi else None)
        state = solver.init(b, *((0.3 * b, A(0.3 * b)) if warm else ()))
        quotients = []
        for step in range(8):
            model = 0.5 * state.x @ M @ state.x - b @ state.x
            assert float(state.models[step]) == pytest.approx(float(model), rel=1e-10, abs=1e-12)
            p = solver.direction(state)
            quotients.append(float(p @ M @ p / (p @ p)))
            state = solver.update(state, A(p))
        _, info = solver.result(state)
        assert float(info.min_curvature) == pytest.approx(min(quotients), rel=1e-8)
        assert float(info.max_curvature) == pytest.approx(max(quotients), rel=1e-8)


@pytest.mark.parametrize("jacobi", [False, True])
def test_ritz_values_are_those_of_the_krylov_space(jacobi):
    """After k steps: the eigenvalues of the (preconditioned) operator projected on `span(r, A r, ..., A^(k-1) r)`."""
    with jax.enable_x64(True):
        M, b = random_psd(15), np.linspace(-1.0, 1.0, 15)
        root = np.sqrt(np.diag(M)) if jacobi else np.ones(15)
        inner = M / root[:, None] / root  # similar to M^-1 A
        A = LinearOperator(lambda v: jnp.asarray(M) @ v, b)
        solver = CG(20, 1e-10, progress=None, preconditioner=(lambda r: r / root**2) if jacobi else None)
        for k in (1, 4):
            _, info = CG(k, 0.0, progress=None, preconditioner=solver.preconditioner)(A, jnp.asarray(b))
            Q, _ = np.linalg.qr(np.stack([np.linalg.matrix_power(inner, j) @ (b / root) for j in range(k)], axis=1))
            np.testing.assert_allclose(ritz_values(info), np.linalg.eigvalsh(Q.T @ inner @ Q), rtol=1e-9)
        _, info = jax.jit(lambda b: solver(A, b))(jnp.asarray(b))
        values, steps = np.asarray(jax.jit(ritz_values)(info)), int(info.steps)
        assert np.isnan(values[steps:]).all()
        assert len(values[steps:]) > 0
        eigenvalues = np.linalg.eigvalsh(inner)
        # The ends of the spectrum are found, and nothing outside it.
        np.testing.assert_allclose(values[[0, steps - 1]], eigenvalues[[0, -1]], rtol=1e-6)


def test_ritz_values_need_a_lanczos_matrix():
    _, info = CG()(LinearOperator(lambda v: v, jnp.ones(3)), jnp.ones(3))
    with pytest.raises(ValueError, match="alphas is None"):
        ritz_values(info._replace(alphas=None))


def test_progress_rule_stops_early_and_says_so():
    scale = jnp.concatenate([jnp.ones(50), jnp.geomspace(1e3, 1e6, 50)])
    b = jnp.concatenate([jnp.ones(50), 1e-3 * jnp.ones(50)])
    _, info = CG(200, 1e-9)(LinearOperator(lambda v: scale * v, scale), b)
    assert Status(int(info.status)) is Status.NO_PROGRESS
    assert int(info.steps) < 100


@pytest.mark.parametrize("at_first_step", [True, False])
def test_negative_curvature_truncates(at_first_step):
    eigenvalues = -jnp.ones(4) if at_first_step else jnp.array([5.0, 4.0, 3.0, -0.5])
    A = LinearOperator(lambda v: eigenvalues * v, eigenvalues)
    b = jnp.array([1.0, 1.0, 1.0, 0.1])
    x, info = CG(20, 1e-6)(A, b)
    assert Status(int(info.status)) is Status.NEGATIVE_CURVATURE
    assert float(info.min_curvature) < 0
    assert float(tree.vdot(x, b)) > 0


def test_negative_curvature_at_once_steps_down_the_model_from_a_warm_start():
    eigenvalues, b, x0 = jnp.array([-1.0, -2.0]), jnp.array([1.0, 0.0]), jnp.array([0.5, 0.25])
    A = LinearOperator(lambda v: eigenvalues * v, b)
    x, info = CG(20, 1e-6)(A, b, x0)
    r = b - A(x0)
    np.testing.assert_allclose(x - x0, r * (r @ r) / jnp.abs(r @ A(r)), rtol=1e-6)
    model = 0.5 * x @ A(x) - b @ x
    assert float(info.models[1]) == pytest.approx(float(model), rel=1e-5)
    assert float(info.models[1]) < float(info.models[0])
    assert float(info.min_curvature) == pytest.approx(float(r @ A(r) / (r @ r)), rel=1e-6)
    assert float(ritz_values(info)[0]) == pytest.approx(float(info.min_curvature), rel=1e-6)


@pytest.mark.parametrize("matrix", [jnp.zeros((3, 3)), jnp.diag(jnp.array([1.0, 2.0, 0.0]))])
def test_a_singular_operator_is_reported_and_nothing_divides_by_it(matrix):
    b = jnp.array([1.0, 1.0, 1.0])
    x, info = CG(20, 1e-6, progress=None)(LinearOperator(lambda v: matrix @ v, b), b)
    assert Status(int(info.status)) is Status.NEGATIVE_CURVATURE
    assert bool(jnp.all(jnp.isfinite(x)))


def test_an_indefinite_preconditioner_is_reported():
    signs, b = jnp.array([1.0, -1.0, -1.0]), jnp.ones(3)
    for start in (b, jnp.array([2.0, 1.0, 1.0])):  # seen before the first step, and later
        _, info = CG(20, 1e-6, preconditioner=lambda r: signs * r)(LinearOperator(lambda v: 2 * v, b), start)
        assert Status(int(info.status)) is Status.INDEFINITE_PRECONDITIONER


def test_nan_product_returns_the_last_finite_iterate():
    calls = jnp.array([1.0, 2.0, jnp.nan])
    x, info = CG(20, 1e-6)(LinearOperator(lambda v: calls * v, calls), jnp.ones(3))
    assert Status(int(info.status)) is Status.NON_FINITE
    assert bool(jnp.all(jnp.isfinite(x)))


@pytest.mark.parametrize("spectrum", ["identity", "one_to_fifty"])
def test_a_million_f32_unknowns(spectrum):
    n = 10**6
    scale = jnp.ones(n) if spectrum == "identity" else jnp.tile(jnp.arange(1.0, 51.0), n // 50)
    x, info = jax.jit(lambda b: CG(60, 1e-5, progress=None)(LinearOperator(lambda v: scale * v, scale), b))(jnp.ones(n))
    assert Status(int(info.status)) is Status.CONVERGED
    np.testing.assert_allclose(x, 1.0 / scale, rtol=1e-3)


def test_zero_right_hand_side_is_zero():
    x, info = CG()(LinearOperator(lambda v: v, jnp.zeros(3)), jnp.zeros(3))
    assert Status(int(info.status)) is Status.CONVERGED
    assert float(jnp.abs(x).max()) == 0.0


def test_closed_form_reports_its_own_residual():
    rng = np.random.default_rng(0)
    G = jnp.asarray(rng.normal(size=(4, 9)), jnp.float32)
    values, vectors = jnp.linalg.eigh(G @ G.T)
    A = low_rank(G, vectors, values / 4, jnp.zeros(9), 0.1)
    b = jnp.ones(9)
    x, info = ClosedForm(-1.0)(A, b)
    assert float(jnp.linalg.norm(A(x) - b) / 3) == pytest.approx(float(info.relative_residual), abs=1e-6)
    assert float(info.relative_residual) < 1e-5
    assert Status(int(info.status)) is Status.CLOSED_FORM


def test_a_step_makes_no_copy_of_a_vector_in_the_compiled_loop():
    """What a step costs beyond its product: every copy would be one more pass over all parameters."""
    like = jnp.ones(4096)
    solve = jax.jit(lambda scale, b: CG(20, 1e-6, progress=None)(LinearOperator(lambda v: scale * v, b), b)[0])
    text = solve.lower(like, like).compile().as_text()
    body = max((part for part in text.split("\n\n") if "/while/body/" in part), key=len)
    assert "f32[4096]" in body
    assert not [line for line in body.splitlines() if "f32[4096]" in line and " copy(" in line]


def test_martens_rule_must_be_a_share():
    with pytest.raises(ValueError, match="progress"):
        CG(progress=0.0)
