"""Cubic-regularised unlearning: the step is the global minimum of its model, on an indefinite Hessian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import flat, labelled, mlp

import jaxunlearn as ju
from jaxunlearn import methods, operators
from jaxunlearn.curvature import Hessian

WEIGHTS = [(1.0, 0.0), (0.0, 1.0), (0.5, 2.0)]


@pytest.fixture(scope="module")
def problem():
    """`(model, params, batch, H, g_f, g_r)` in float64."""
    with jax.enable_x64(True):
        model, params = mlp(sizes=(3, 4, 3), dtype=jnp.float64)
        forget, retain = (labelled(n, n, features=3, dtype=jnp.float64) for n in (4, 12))
        H = np.asarray(operators.to_dense(Hessian()(model, params, retain)))
        gradient = lambda part: np.asarray(
            flat(ju.objectives.Objective(((1.0, ju.objectives.NLL(part)),)).value_and_grad(model, params, batch)[1])
        )
        batch = ju.UnlearnBatch(forget, retain)
        return model, params, batch, H, gradient("forget"), gradient("retain")


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("L", [0.5, 400.0])
def test_the_step_is_optimal(problem, L, weights):
    model, params, batch, H, g_f, g_r = problem
    with jax.enable_x64(True):
        method = methods.cubic_newton(
            L=L, forget_weight=weights[0], retain_weight=weights[1], lanczos_steps=len(H)
        )._replace(certify=False)
        state = ju.init(method, model, params, key=jax.random.key(0))
        after, info = jax.jit(ju.unlearn_step, static_argnums=(0, 1))(method, model, state, batch)
        d = np.asarray(flat(after.params) - flat(params))
    g = weights[1] * g_r - weights[0] * g_f
    size, lowest = np.linalg.norm(d), np.linalg.eigvalsh(H)[0]
    assert lowest < -1e-3  # indefinite, so that an undamped Newton step would not do
    damping = L / 2 * size
    np.testing.assert_allclose(H @ d + damping * d, -g, atol=1e-7 * np.linalg.norm(g))
    assert lowest + damping >= 0
    assert float(info.curvature.used_damping) == pytest.approx(damping, rel=1e-6)
    model_value = lambda d: g @ d + d @ H @ d / 2 + L / 6 * np.linalg.norm(d) ** 3
    others = d + size * np.random.default_rng(0).normal(size=(200, len(d))) / np.sqrt(len(d))
    assert all(model_value(d) < model_value(other) for other in others)


def test_the_certificate_says_which_damping_was_found():
    model, params = mlp()
    batch = ju.UnlearnBatch(labelled(4, 1), labelled(8, 2))
    method = methods.cubic_newton(lanczos_steps=6)
    state = ju.init(method, model, params, key=jax.random.key(0))
    _, info = jax.jit(ju.unlearn_step, static_argnums=(0, 1))(method, model, state, batch)
    damping = 200 * float(info.update_norm)
    assert float(info.curvature.used_damping) == pytest.approx(damping, rel=1e-4)
    assert f"damping {damping:.2e}" in ju.certificate.describe(info.certificate, info.curvature)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="L=0"):
        methods.cubic_newton(L=0.0)
    with pytest.raises(ValueError, match="give at least one loss a weight"):
        methods.cubic_newton(forget_weight=0.0)
