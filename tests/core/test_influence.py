"""Influence unlearning on ridge regression: the first-order step towards the optimum that retraining would find."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import flat, labelled, mlp

import jaxunlearn as ju
from jaxunlearn import methods, operators
from jaxunlearn.curvature import EmpiricalFisher
from jaxunlearn.types import Predictions

LAM = 0.1
step = jax.jit(ju.unlearn_step, static_argnums=(0, 1))


class Regression(NamedTuple):
    """A batch whose NLL is `(x.w - y)^2 / 2`, by two classes with logits `(0, log(exp(r^2/2) - 1))`, the first true."""

    inputs: jax.Array
    labels: jax.Array

    def predict(self, model, params):
        half = 0.5 * (model.logits(params, self.inputs) - self.labels) ** 2
        logits = jnp.stack([jnp.zeros_like(half), half + jnp.log1p(-jnp.exp(-half))], axis=-1)
        n = len(self.labels)
        return Predictions(logits[:, None], jnp.zeros((n, 1), jnp.int32), jnp.ones((n, 1), half.dtype))


def ridge(X, y):
    return np.linalg.solve(X.T @ X / len(y) + LAM * np.eye(X.shape[1]), X.T @ y / len(y))


def test_it_lands_on_the_retrained_optimum_of_ridge_regression_to_first_order():
    """The penalty's gradient cancels in `g_f - g_r`, its curvature is the damping. What is left over is of second
    order in the share of the data."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 5))
    y = X @ rng.normal(size=5) + rng.normal(size=400)
    model, start, left = ju.Model(logits=lambda w, x: x @ w), ridge(X, y), {}
    with jax.enable_x64(True):
        for n_f in (16, 8):
            forget, retain = (Regression(*(jnp.asarray(a[s]) for a in (X, y))) for s in (slice(n_f), slice(n_f, None)))
            method = methods.influence(
                curvature="hessian", forget_share=n_f / 400, damping=LAM, cg_steps=20, rtol=1e-12
            )._replace(certify=False)
            state = ju.init(method, model, jnp.asarray(start), key=jax.random.key(0))
            after, _ = step(method, model, state, ju.UnlearnBatch(forget, retain))
            target = ridge(X[n_f:], y[n_f:])
            left[n_f] = np.linalg.norm(after.params - target) / np.linalg.norm(start - target)
    # Relative to the way there, which is of first order, what is missing is of the order of the share n_f / n.
    assert left[16] < 3 * 16 / 400
    assert left[8] < 3 * 8 / 400


def test_its_curvature_is_the_empirical_fisher_of_all_the_data():
    with jax.enable_x64(True):
        model, params = mlp(sizes=(4, 3), dtype=jnp.float64)
        forget, retain = (labelled(n, n, features=4, dtype=jnp.float64) for n in (4, 12))
        share, lam, alpha = 0.25, 0.05, 0.5
        method = methods.influence(
            forget_share=share, damping=lam, samples=12, alpha=alpha, cg_steps=30, rtol=1e-12
        )._replace(certify=False)
        state = ju.init(method, model, params, key=jax.random.key(0))
        batch = ju.UnlearnBatch(forget, retain)
        after, _ = step(method, model, state, batch)
        everything = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), forget, retain)  # the share is the true one
        E = np.asarray(operators.to_dense(EmpiricalFisher(None)(model, params, everything)))
        _, g = method.objective.value_and_grad(model, params, batch)
        expected = -alpha * share * np.linalg.solve(E + lam * np.eye(len(E)), np.asarray(flat(g)))
        np.testing.assert_allclose(flat(after.params) - flat(params), expected, atol=1e-8)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="curvature='wfisher'"):
        methods.influence(curvature="wfisher")
    with pytest.raises(ValueError, match="forget_share=1"):
        methods.influence(forget_share=1.0)
