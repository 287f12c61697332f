"""WIN-U: a downdate in the dual space against the dense formula, and against Newton on what is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import flat, labelled, mlp, unlearn_batch

import jaxunlearn as ju
from jaxunlearn import losses, methods, operators, tree
from jaxunlearn.curvature import GaussNewton, TrueFisher
from jaxunlearn.curvature.kronecker import Settings, eigendecompose, from_eigen, kronecker_factors
from jaxunlearn.methods.downdate import solve_downdated
from jaxunlearn.methods.win_u import win_u_step
from jaxunlearn.operators import Factor, LinearOperator
from jaxunlearn.solvers import CG, ClosedForm, Status

EXACT = CG(60, 1e-13, progress=None)


def split(data, n):
    return jax.tree.map(lambda x: x[:n], data), jax.tree.map(lambda x: x[n:], data)


@pytest.fixture(scope="module")
def softmax_regression():
    """Forget, retain and everything of a regression in float64; its Gauss-Newton matrix is its Hessian."""
    with jax.enable_x64(True):
        data = labelled(40, seed=3, features=4, dtype=jnp.float64)
        model = ju.Model(logits=lambda w, x: x @ w)
        w = jnp.asarray(np.random.default_rng(4).normal(size=(4, 3)) * 0.3)
        yield model, w, data, *split(data, 5)


def dense_paper_step(X, W, labels, weights, n, n_forget, damping):
    """`H^-1 J_f^T (I - Lambda K)^-1 r` with the Hessian of the summed loss, in NumPy."""
    p = np.exp(X @ W) / np.exp(X @ W).sum(1, keepdims=True)
    lam = weights[:, None, None] * (np.eye(3) * p[:, None] - p[:, :, None] * p[:, None])
    total = weights.sum()
    J = np.einsum("bi,cv->bciv", X, np.eye(3)).reshape(n, 3, -1)  # d logit_c / d W_iv
    H = np.einsum("bca,bcd,bde->ae", J, lam, J) + total * damping * np.eye(J.shape[-1])
    J_f = J[:n_forget].reshape(3 * n_forget, -1)
    big = np.zeros((3 * n_forget, 3 * n_forget))
    for i in range(n_forget):
        big[3 * i : 3 * i + 3, 3 * i : 3 * i + 3] = lam[i]
    r = ((p - np.eye(3)[labels]) * weights[:, None])[:n_forget].reshape(-1)
    K = J_f @ np.linalg.solve(H, J_f.T)
    step = np.linalg.solve(H, J_f.T @ np.linalg.solve(np.eye(len(K)) - big @ K, r))
    return step, np.linalg.eigvals(big @ K).real.max()


def test_it_is_the_papers_formula(softmax_regression):
    with jax.enable_x64(True):
        model, w, data, forget, _ = softmax_regression
        expected, leverage = dense_paper_step(
            *map(np.asarray, (data.inputs, w, data.labels, data.loss_mask)), 40, 5, 0.02
        )
        H = GaussNewton()(model, w, data).damped(0.02)
        share = jnp.sum(forget.loss_mask) / jnp.sum(data.loss_mask)
        settings = {"share": share, "draws": None, "inverse": EXACT, "rank": 12, "max_leverage": 0.999}
        step, info = jax.jit(lambda w: win_u_step(H, model, w, forget, **settings))(w)
        np.testing.assert_allclose(flat(step), expected, rtol=1e-6, atol=1e-9)
        assert float(info.leverage) == pytest.approx(leverage, rel=1e-6)
        assert float(info.relative_residual) < 1e-6
        assert Status(int(info.status)) is Status.CONVERGED


def test_the_recipe_is_newton_removal_on_what_is_kept(softmax_regression):
    """`(H - c G_f)^-1 c g_f = gamma (H_r + lambda_r)^-1 g_f`: the retained Hessian is full minus forget."""
    with jax.enable_x64(True):
        model, w, _, forget, retain = softmax_regression
        batch, kept, gone = ju.UnlearnBatch(forget, retain), jnp.sum(retain.loss_mask), jnp.sum(forget.loss_mask)
        share, gamma = float(gone / (kept + gone)), float(gone / kept)
        ours = methods.win_u(
            damping=0.01 * (1 - share), draws=None, rank=12, cg_steps=60, rtol=1e-13, max_leverage=0.999
        )
        newton = methods.newton_removal(damping=0.01, step_size=gamma, cg_steps=60, rtol=1e-13)
        ends = []
        for method in (ours._replace(certify=False), newton._replace(certify=False)):
            state = ju.init(method, model, w, key=jax.random.key(0))
            ends.append(jax.jit(ju.unlearn_step, static_argnums=(0, 1))(method, model, state, batch))
        np.testing.assert_allclose(ends[0][0].params, ends[1][0].params, atol=1e-6 * float(jnp.abs(w).max()))
        assert float(jnp.abs(ends[0][0].params - w).max()) > 1e-3
        assert 0 < float(ends[0][1].curvature.solve.leverage) < 1


def test_a_quadratic_lands_on_its_retrained_optimum():
    """Ridge regression: H knows everything, S is the forget rows, and the step is the whole way."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        X, y = jnp.asarray(rng.normal(size=(30, 5))), jnp.asarray(rng.normal(size=30))
        ridge = lambda X, y: jnp.linalg.solve(X.T @ X + 0.3 * jnp.eye(5), X.T @ y)
        w, F = ridge(X, y), X[:6]
        H = LinearOperator(lambda v: X.T @ (X @ v) + 0.3 * v, w, psd=True)
        S = Factor(lambda c: F.T @ c, lambda v: F @ v, w)
        g = F.T @ (F @ w - y[:6])
        step, info = jax.jit(lambda g: solve_downdated(H, S, g, inverse=EXACT, rank=5, max_leverage=0.999))(g)
        np.testing.assert_allclose(w + step, ridge(X[6:], y[6:]), atol=1e-9)
        expected = np.linalg.eigvalsh(F @ jnp.linalg.solve(H(jnp.eye(5)), F.T)).max()
        assert float(info.leverage) == pytest.approx(expected, rel=1e-6)


def test_a_sketch_downdates_what_it_sketched(softmax_regression):
    """With drawn labels the step solves `(H - c F) d = c g_f`, F the true Fisher of those draws, by closed forms."""
    with jax.enable_x64(True):
        model, w, _, forget, retain = softmax_regression

        @jax.jit
        def everything(w):
            H, F = TrueFisher(None, draws=3)(model, w, retain).damped(0.5), TrueFisher(None, draws=4)(model, w, forget)
            step, info = win_u_step(H, model, w, forget, share=0.2, draws=4, rank=12)
            return step, info, operators.to_dense(H), operators.to_dense(F)

        step, info, H, F = everything(w)
        g = jax.grad(lambda p: losses.nll(model, p, forget)[0] / jnp.sum(forget.loss_mask))(w)
        expected = np.linalg.solve(H - 0.2 * F, 0.2 * flat(g))
        np.testing.assert_allclose(flat(step), expected, rtol=1e-6, atol=1e-9)
        assert int(info.steps) == 0


@jax.jit
def along_one_direction(leverage):
    """H = 2 I, of which the forget set supplies the share `leverage` along `e_0`."""
    H, size = operators.identity(jnp.zeros(3), 2.0), jnp.sqrt(2 * leverage)
    S = Factor(lambda c: size * jnp.eye(3)[0] * c, lambda v: size * v[:1], jnp.zeros(3))
    return solve_downdated(H, S, jnp.array([1.0, 1.0, 0.0]), inverse=ClosedForm(), rank=4)


@pytest.mark.parametrize("leverage", [0.5, 0.9, 0.999, 1.0, 45.0])
def test_the_cap_bounds_the_amplification(leverage):
    x, info = along_one_direction(leverage)
    amplification = 1 / (1 - min(leverage, 0.95))
    np.testing.assert_allclose(x, [0.5 * amplification, 0.5, 0.0], rtol=1e-4)
    assert float(info.leverage) == pytest.approx(leverage, rel=1e-5)
    assert (Status(int(info.status)) is Status.CONVERGED) == (leverage <= 0.95)


def test_a_pooled_curvature_is_made_of_the_sketch_that_is_taken_off():
    """However rough the sketch, its leverage stays below 1 and the step is that of what is kept."""
    with jax.enable_x64(True):
        model, params = mlp(dtype=jnp.float64)
        batch = ju.UnlearnBatch(labelled(3, 1, dtype=jnp.float64), labelled(16, 2, dtype=jnp.float64))
        method = methods.win_u(
            damping=0.05, share=0.3, draws=1, rank=20, cg_steps=90, rtol=1e-12, max_leverage=0.9999
        )._replace(certify=False)
        state = ju.init(method, model, params, key=jax.random.key(0))
        state, info = jax.jit(ju.unlearn_step, static_argnums=(0, 1))(method, model, state, batch)
        G_r = jax.jit(lambda p: operators.to_dense(GaussNewton()(model, p, batch.retain)))(params)
        _, g = method.objective.value_and_grad(model, params, batch)
        expected = -np.linalg.solve(0.7 * G_r + 0.05 * np.eye(len(G_r)), 0.3 * flat(g))
        # CG ends once it hardly improves, which here is four digits before rounding.
        np.testing.assert_allclose(flat(state.params) - flat(params), expected, atol=1e-4 * np.abs(expected).max())
        assert 0.5 < float(info.curvature.solve.leverage) < 1


def test_the_exact_root_runs_on_a_network_and_reports():
    model, params = mlp()
    method = methods.win_u(damping=0.05, draws=None, rank=30, cg_steps=60, rtol=1e-6, max_leverage=0.99)
    method = method._replace(certify=False)
    batch = unlearn_batch(model, params)
    state = ju.init(method, model, params, key=jax.random.key(0))
    state, info = jax.jit(ju.unlearn_step, static_argnums=(0, 1))(method, model, state, batch)
    share = float(batch.forget.loss_mask.sum() / (batch.forget.loss_mask.sum() + batch.retain.loss_mask.sum()))
    dense = jax.jit(lambda part: operators.to_dense(GaussNewton()(model, params, part)))
    G_r, G_f = dense(batch.retain), dense(batch.forget)
    _, g = methods.win_u().objective.value_and_grad(model, params, batch)
    expected = -np.linalg.solve((1 - share) * G_r + 0.05 * np.eye(len(G_r)), share * flat(g))
    np.testing.assert_allclose(flat(state.params) - flat(params), expected, atol=2e-3 * np.abs(expected).max())
    M = np.linalg.solve((1 - share) * G_r + share * G_f + 0.05 * np.eye(len(G_r)), share * G_f)
    assert float(info.curvature.solve.leverage) == pytest.approx(np.linalg.eigvals(M).real.max(), rel=1e-3)
    assert int(info.curvature.solve.steps) > 0
    assert Status(int(info.curvature.solve.status)).name in ju.certificate.describe(info.certificate, info.curvature)


def test_stored_curvature_takes_the_place_of_all_retain_examples():
    """Kronecker factors of everything, a forget set and a share: closed forms, no product, within the trust region."""
    model, params = mlp()
    forget, everything = labelled(4, 1), labelled(24, 2)
    eigen = eigendecompose(kronecker_factors(model, params, everything, Settings(labels="exact")), params)
    batch = ju.UnlearnBatch(forget, curvature=eigen)

    @jax.jit
    def step(params):
        ends = []
        for max_kl in (None, 1e-5):
            method = methods.win_u(damping=0.1, share=0.15, draws=2, max_kl=max_kl)
            state, info = ju.unlearn_step(method, model, ju.init(method, model, params, key=jax.random.key(0)), batch)
            ends.append((tree.sub(state.params, params), info))
        H = from_eigen(eigen, params)
        F = TrueFisher(None, draws=2)(model, params, forget)
        return ends, operators.to_dense(H), operators.to_dense(F)

    ends, H, F = step(params)
    _, g = methods.win_u().objective.value_and_grad(model, params, batch)
    expected = -np.linalg.solve(H + 0.1 * np.eye(len(H)) - 0.15 * F, 0.15 * flat(g))
    (free, info), (short, bound) = ends
    np.testing.assert_allclose(flat(free), expected, atol=1e-3 * np.abs(expected).max())
    assert int(info.curvature.solve.steps) == 0
    assert float(info.certificate.forget_after) > float(info.certificate.forget_before)
    length = float(bound.curvature.length)
    np.testing.assert_allclose(flat(short), length * flat(free), atol=1e-6)
    assert 0.5 * flat(short) @ H @ flat(short) == pytest.approx(1e-5, rel=1e-3)


def test_bad_settings_and_a_missing_retain_set_are_named():
    model, params = mlp()
    for settings, message in [
        ({"rank": 0}, "rank=0"),
        ({"max_leverage": 1.0}, "max_leverage=1.0"),
        ({"share": 1.0}, "share=1.0"),
        ({"damping": -1.0}, "damping=-1.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            methods.win_u(**settings)
    state = ju.init(methods.win_u(), model, params, key=jax.random.key(0))
    with pytest.raises(ValueError, match="UnlearnBatch.retain, which is None"):
        ju.unlearn_step(methods.win_u(), model, state, ju.UnlearnBatch(labelled(4)))
    with pytest.raises(ValueError, match="say which share"):
        ju.unlearn_step(methods.win_u(), model, state, ju.UnlearnBatch(labelled(4), curvature=()))
