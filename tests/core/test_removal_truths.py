"""What Newton removal must be exact on: ridge regression in one step, logistic regression in two."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from toys import labelled

import jaxunlearn as ju
from jaxunlearn import methods
from jaxunlearn.methods import compose
from jaxunlearn.objectives import Objective
from jaxunlearn.solvers import CG

step = jax.jit(ju.unlearn_step, static_argnums=(0, 1))


class Points(NamedTuple):
    """Rows of a regression; a target is the mean of a unit Gaussian."""

    x: jax.Array
    y: jax.Array


class SquaredError(NamedTuple):
    """`(x.w - y)^2 / 2 + (ridge / 2) ||w||^2` an example, as a term: hashable, as all of them are."""

    on: str
    ridge: float

    def rows(self, batch):
        return {"data": getattr(batch, self.on)}

    def total(self, model, params, rows):
        data = rows["data"]
        n = data.y.shape[0]
        return 0.5 * jnp.sum((data.x @ params - data.y) ** 2) + 0.5 * n * self.ridge * jnp.sum(params**2), float(n)


class RidgeHessian(NamedTuple):
    """Its Hessian on a set of points."""

    ridge: float

    def __call__(self, model, params, data):
        total = lambda w, rows: SquaredError("", self.ridge).total(model, w, {"data": rows})
        return ju.curvature.hessian(total, params, data)


def test_newton_removal_lands_on_the_retrained_optimum_of_ridge_regression():
    """The recipe's composition, `theta + (n_f / n_r) H_r^-1 g_f` from the optimum on everything, for any forget set."""
    with jax.enable_x64(True):
        rng, ridge = np.random.default_rng(0), 0.1
        X, y = rng.normal(size=(30, 5)), rng.normal(size=30)
        solve = lambda X, y: np.linalg.solve(X.T @ X + len(y) * ridge * np.eye(5), X.T @ y)
        method = compose(
            "ridge", Objective(((-1.0, SquaredError("forget", ridge)),)), RidgeHessian(ridge), CG(40, 1e-13, None),
            damping=0.0, step_size=6 / 24,
        )._replace(certify=False)  # fmt: skip
        for _ in range(3):
            order = rng.permutation(30)
            forget, retain = (Points(jnp.asarray(X[i]), jnp.asarray(y[i])) for i in (order[:6], order[6:]))
            state = ju.init(method, None, jnp.asarray(solve(X, y)), key=jax.random.key(0))
            state, info = step(method, None, state, ju.UnlearnBatch(forget, retain))
            np.testing.assert_allclose(state.params, solve(X[order[6:]], y[order[6:]]), atol=1e-9)
            assert float(info.update_norm) > 1e-2


def optimum(x, y, weights):
    """Minimum of the mean NLL of softmax regression in NumPy, by full Newton steps."""
    d, C = x.shape[1], 3
    W = np.zeros((d, C))
    for _ in range(30):
        z = x @ W
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        g = x.T @ (weights[:, None] * (p - np.eye(C)[y])) / weights.sum()
        lam = weights[:, None, None] * (p[:, :, None] * np.eye(C) - p[:, :, None] * p[:, None])
        H = np.einsum("ni,nab,nj->iajb", x, lam, x).reshape(d * C, d * C) / weights.sum()
        # The common shift of all classes has no curvature; the least-squares step leaves it alone.
        W = W - np.linalg.lstsq(H, g.reshape(-1), rcond=1e-12)[0].reshape(d, C)
    return W


def test_two_steps_of_newton_removal_reach_the_retrained_logistic_regression():
    """The first is `(n_f / n_r) g_f`, and from there `-g_r` is what is left: Newton on the loss of what is kept."""
    with jax.enable_x64(True):
        model = ju.Model(logits=lambda w, x: x @ w)
        data = labelled(200, seed=5, features=4, dtype=jnp.float64)
        arrays = [np.asarray(a) for a in data]
        order = np.random.default_rng(1).permutation(200)
        gone, kept = order[:10], order[10:]
        start, target = optimum(*arrays), optimum(*(a[kept] for a in arrays))
        forget, retain = (jax.tree.map(lambda a, i=i: a[i], data) for i in (gone, kept))
        gamma = float(forget.loss_mask.sum() / retain.loss_mask.sum())
        first = methods.newton_removal(damping=1e-10, step_size=gamma, cg_steps=40, rtol=1e-12)
        second = methods.newton_removal(damping=1e-10, step_size=-1.0, cg_steps=40, rtol=1e-12)
        distance = [np.linalg.norm(start - target)]
        W = jnp.asarray(start)
        for method, batch in [(first, ju.UnlearnBatch(forget, retain)), (second, ju.UnlearnBatch(retain, retain))]:
            method = method._replace(certify=False)
            state, _ = step(method, model, ju.init(method, model, W, key=jax.random.key(0)), batch)
            W = state.params
            distance.append(np.linalg.norm(W - target))
        assert distance[0] > 0.05
        assert distance[1] < 0.1 * distance[0]
        assert distance[2] < 1e-4 * distance[0]
