"""Sophia against a loop in NumPy, twelve steps in each of its forms, with the random draws of the library."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import labelled, mlp, unlearn_batch

import jaxunlearn as ju
from jaxunlearn import methods, tree
from jaxunlearn.curvature import GaussNewtonBartlett, HutchinsonDiagonal
from jaxunlearn.curvature.true_fisher import draw_labels
from jaxunlearn.methods import sophia

STEPS, INTERVAL = 12, 5
LR, B1, B2, WD = 0.05, 0.9, 0.95, 0.1
MODES = {"bartlett": 0.3, "hutchinson": 3.0, "released": 0.005}  # rho, for some coordinates to be clipped and some not


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def mean_gradient(w, batch):
    x, y, weights = (np.asarray(a, np.float64) for a in batch)
    residual = softmax(x @ w) - np.eye(3)[y.astype(int)]
    return x.T @ (weights[:, None] * residual) / weights.sum()


def bartlett(w, batch, key):
    """`n ghat^2` at labels drawn from the model; the draw alone is the library's."""
    x, _, weights = (np.asarray(a, np.float64) for a in batch)
    ids = jnp.arange(len(x), dtype=jnp.uint32)[:, None]
    logits = jnp.asarray((x @ w)[:, None], jnp.float32)
    labels = np.asarray(draw_labels(jax.random.split(key, 1)[0], ids, logits))[:, 0]
    root = np.sqrt(weights)[:, None]
    return (x.T @ (root * (softmax(x @ w) - np.eye(3)[labels]))) ** 2 / weights.sum()


def hutchinson(w, batch, key):
    """`u * H u`, H the Hessian of softmax regression."""
    x, _, weights = (np.asarray(a, np.float64) for a in batch)
    u = np.asarray(tree.rademacher_like(jax.random.split(key, 1)[0], jnp.zeros(w.shape)))
    p, t = softmax(x @ w), x @ u
    Hu = x.T @ (weights[:, None] * p * (t - (p * t).sum(-1, keepdims=True))) / weights.sum()
    return u * Hu


def in_numpy(w, batch, mode, rho, key):
    """The parameters after every step, and the share of clipped coordinates."""
    estimate = {"bartlett": bartlett, "hutchinson": hutchinson}.get(mode)
    m, h, path, clipped = np.zeros(w.shape), np.zeros(w.shape), [], []
    for t in range(STEPS):
        key, now = jax.random.split(key)
        g = mean_gradient(w, batch.retain) - mean_gradient(w, batch.forget)
        m = B1 * m + (1 - B1) * g
        if mode == "released":
            m = B1 * m + (1 - B1) * g
            h = B2 * h + (1 - B2) * g**2
            scale = rho * 5120
        else:
            scale = rho
            if t % INTERVAL == 0:
                parts = (batch.forget, batch.retain)
                h = B2 * h + (1 - B2) * sum(estimate(w, b, jax.random.fold_in(now, i)) for i, b in enumerate(parts))
        ratio = m / np.maximum(scale * h, 1e-15)
        w = w - LR * WD * w - LR * np.clip(ratio, -1, 1)
        path.append(w)
        clipped.append(np.mean(np.abs(ratio) > 1))
    return path, np.mean(clipped)


@pytest.mark.parametrize("mode", MODES)
def test_twelve_steps_equal_a_numpy_loop(mode):
    w = np.random.default_rng(0).normal(size=(4, 3))
    batch = ju.UnlearnBatch(labelled(6, 1, features=4), labelled(10, 2, features=4))
    model, rho, key = ju.Model(logits=lambda w, x: x @ w), MODES[mode], jax.random.key(7)
    expected, clipped = in_numpy(w, batch, mode, rho, key)
    assert 0.05 < clipped < 0.95
    method = methods.soul(
        learning_rate=LR, rho=rho, interval=INTERVAL,
        diagonal="bartlett" if mode == "released" else mode, compat="released" if mode == "released" else None,
    )._replace(certify=False)  # fmt: skip
    state = ju.init(method, model, jnp.asarray(w, jnp.float32), key=key)
    step = jax.jit(ju.unlearn_step, static_argnums=(0, 1))
    for t in range(STEPS):
        state, _ = step(method, model, state, batch)
        np.testing.assert_allclose(state.params, expected[t], rtol=1e-4, atol=2e-5)
    assert int(state.opt_state.count) == STEPS


def test_the_estimate_is_made_in_a_branch_that_other_steps_do_not_take():
    model, w = ju.Model(logits=lambda w, x: x @ w), jnp.ones((4, 3))
    batch = ju.UnlearnBatch(labelled(6, 1, features=4), labelled(10, 2, features=4))
    transform = sophia(interval=3)

    def update(state, key):
        return transform.update(w, state, w, model=model, batch=batch, key=key)[1]

    program = jax.make_jaxpr(update)(transform.init(w), jax.random.key(0))
    outside = [str(e.primitive) for e in program.eqns]
    assert outside.count("cond") == 1
    assert "dot_general" not in outside  # the model runs inside the branch alone
    compiled, state, kept = jax.jit(update), transform.init(w), []
    for t in range(7):
        state = compiled(state, jax.random.key(t))
        kept.append(np.asarray(state.h))
    changed = [t for t in range(1, 7) if not np.array_equal(kept[t], kept[t - 1])]
    assert changed == [3, 6]
    assert kept[0].max() > 0


def test_it_runs_under_any_objective_and_estimator():
    model, params = mlp()
    batch = unlearn_batch(model, params)
    retain_only = (("retain", 1.0),)
    for objective, diagonal in (
        (methods.npo().objective, HutchinsonDiagonal(probes=2)),
        (methods.counterfactual_matching().objective, GaussNewtonBartlett(draws=2)),
    ):
        transform = sophia(learning_rate=1e-2, diagonal=diagonal, metric=retain_only)
        method = methods.Method("mine", objective, transform, certify=False)
        state = ju.init(method, model, params, key=jax.random.key(0))
        after, info = jax.jit(ju.unlearn_step, static_argnums=(0, 1))(method, model, state, batch)
        assert float(objective.value(model, after.params, batch)) < float(info.objective)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "rmu"}, "objective='rmu'"),
        ({"diagonal": "adam"}, "diagonal='adam'"),
        ({"compat": "code"}, "compat='code'"),
        ({"beta1": 1.0}, "beta1=1"),
        ({"rho": 0.0}, "rho=0"),
        ({"interval": 0}, "interval=0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        methods.soul(**settings)


def test_a_missing_part_is_named():
    model, w = ju.Model(logits=lambda w, x: x @ w), jnp.ones((4, 3))
    transform = sophia()
    batch = ju.UnlearnBatch(labelled(6, 1, features=4))
    with pytest.raises(ValueError, match=r"UnlearnBatch\.retain"):
        transform.update(w, transform.init(w), w, model=model, batch=batch, key=jax.random.key(0))
