"""Removal by the empirical Fisher, noise by its roots: each recipe against float64 matrices and sampled covariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import flat, labelled, mlp, unlearn_batch

import jaxunlearn as ju
from jaxunlearn import methods, operators, tree
from jaxunlearn.curvature import EmpiricalFisher, GaussNewton
from jaxunlearn.solvers import Lanczos, Status
from jaxunlearn.transforms import add_curvature_noise


def change(method, model, params, batch, key=0):
    state = ju.init(method, model, params, key=jax.random.key(key))
    after, info = jax.jit(ju.unlearn_step, static_argnums=(0, 1))(method, model, state, batch)
    return np.asarray(flat(after.params) - flat(params)), info


def test_fisher_removal_is_the_woodfisher_recursion_applied_to_the_forget_gradient():
    with jax.enable_x64(True):
        model, params = mlp(sizes=(4, 3), dtype=jnp.float64)
        forget, retain = (labelled(n, n, features=4, dtype=jnp.float64) for n in (5, 9))
        lam, gamma = 0.03, 0.7
        recipe = methods.fisher_removal(damping=lam, samples=9, step_size=gamma)
        step, _ = change(recipe._replace(certify=False), model, params, ju.UnlearnBatch(forget, retain))

        def gradients(batch):  # of the NLL of each row, biases before weights as in the tree
            p = jax.nn.softmax(batch.inputs @ params[0]["w"] + params[0]["b"])
            r = np.asarray(p - jax.nn.one_hot(batch.labels, 3))
            return np.concatenate([r, np.einsum("bi,bo->bio", batch.inputs, r).reshape(len(r), -1)], axis=1)

        inverse = np.eye(15) / lam
        for g in gradients(retain):
            Fg = inverse @ g
            inverse -= np.outer(Fg, Fg) / (9 + g @ Fg)
        weights = np.asarray(forget.loss_mask)
        g_f = weights @ gradients(forget) / weights.sum()
        np.testing.assert_allclose(step, gamma * inverse @ g_f, rtol=1e-7, atol=1e-9)


def test_released_noise_is_normal_with_the_inverse_diagonal_of_the_true_fisher_for_covariance():
    """One input and a thousand examples of it: drawn labels then average to their expectation."""
    x, n, lam = np.array([1.0, -0.5, 2.0]), 1000, 0.05
    w = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    model = ju.Model(logits=lambda w, x: x @ w)
    retain = ju.LabelledBatch(jnp.tile(jnp.asarray(x, jnp.float32), (n, 1)), jnp.zeros(n, jnp.int32))
    method = methods.fisher_forgetting(damping=lam, mu=16.0, sigma=0.25, compat="golatkar_code")
    batch = ju.UnlearnBatch(retain, retain)
    state = method.transform.init(jnp.asarray(w))

    def draw(key):
        update, _ = method.transform.update(jnp.asarray(w), state, jnp.asarray(w), model=model, batch=batch, key=key)
        return update.reshape(-1)

    noise = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(3), 4000)))
    p = np.exp(x @ w) / np.exp(x @ w).sum()
    fisher = (x[:, None] ** 2 * (p * (1 - p))).reshape(-1)
    expected = 1.0 / (fisher + lam)  # (mu sigma^2)^(1/2) = 1
    # A variance of m normal draws errs by sqrt(2/m), the drawn Fisher by less than 1 / sqrt(n).
    np.testing.assert_allclose(noise.var(axis=0), expected, rtol=5 * (np.sqrt(2 / 4000) + 0.5 / np.sqrt(n)))
    correlations = np.corrcoef(noise.T) - np.eye(6)
    assert np.abs(correlations).max() < 5 / np.sqrt(4000)


def test_noise_by_lanczos_is_the_root_of_the_matrix_times_the_draw():
    with jax.enable_x64(True):
        model, params = mlp(sizes=(4, 3), dtype=jnp.float64)
        retain = labelled(16, 2, features=4, dtype=jnp.float64)
        batch = ju.UnlearnBatch(retain, retain)
        key, lam, scale = jax.random.key(5), 0.02, 0.3
        transform = add_curvature_noise(
            GaussNewton(), scale=scale, damping=lam, solver=Lanczos(15, power=-0.25, rtol=1e-6)
        )
        zero = tree.zeros_like(params)
        update = lambda t: jax.jit(lambda p: t.update(zero, t.init(p), p, model=model, batch=batch, key=key))(params)
        noise, state = update(transform)
        G = np.asarray(operators.to_dense(GaussNewton()(model, params, batch.retain)))
        values, vectors = np.linalg.eigh(G + lam * np.eye(len(G)))
        expected = scale * (vectors * values**-0.25) @ vectors.T @ np.asarray(flat(tree.normal_like(key, params)))
        np.testing.assert_allclose(flat(noise), expected, atol=1e-9)
        assert Status(int(state.solve.status)) is Status.CONVERGED
        short = add_curvature_noise(GaussNewton(), scale=scale, damping=lam, solver=Lanczos(2, power=-0.25, rtol=1e-6))
        assert Status(int(update(short)[1].solve.status)) is Status.MAX_STEPS


@pytest.mark.parametrize("removal", ["newton", "fisher"])
def test_noisy_newton_is_removal_plus_the_noise_of_forgetting_for_the_same_key(removal):
    model, params = mlp()
    batch = unlearn_batch(model, params)
    noise = {"samples": 8, "mu": 1.0, "sigma": 0.3}
    both = methods.noisy_newton(removal=removal, damping=0.1, step_size=0.5, noise_damping=0.2, **noise)
    alone = {
        "newton": methods.newton_removal(damping=0.1, step_size=0.5),
        "fisher": methods.fisher_removal(damping=0.1, step_size=0.5, samples=8),
    }[removal]
    forgetting = methods.fisher_forgetting(damping=0.2, **noise)
    (got, info), (step, plain), (added, _) = (
        change(m._replace(certify=False), model, params, batch, key=4) for m in (both, alone, forgetting)
    )
    assert np.linalg.norm(added) > 0.1 * np.linalg.norm(step) > 0
    np.testing.assert_allclose(got, step + added, atol=2e-6)
    assert int(info.curvature.solve.status) == int(plain.curvature.solve.status)  # the record is the removal's
    assert plain.noise is None
    assert "noise: CLOSED_FORM" in ju.certificate.describe(info.certificate, info.curvature, info.noise)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: methods.fisher_forgetting(compat="golatkar"), "golatkar_code"),
        (lambda: methods.noisy_newton(mu=0.0), "noisy_newton.*positive"),
        (lambda: methods.noisy_newton(removal="hessian"), "removal='hessian'"),
        (lambda: methods.noisy_newton(noise="hessian"), "noise='hessian'"),
        (lambda: methods.noisy_newton(noise_damping=0.0), "damping"),
        (lambda: add_curvature_noise(EmpiricalFisher(), scale=1.0, damping=0.0), "positive damping"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
