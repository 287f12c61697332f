"""Certified removal: the bound holds, the arithmetic of the budget is the paper's, and a spent ledger refuses."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.methods import BudgetSpentError, CertifiedHead, Ledger, head_examples, head_features
from jaxunlearn.methods.certified import GAMMA
from jaxunlearn.solvers import CG

REQUESTS = 1000


def make(kind, dtype, n=80, d=5, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * rng.uniform(0.2, 3.0, size=(n, 1))
    scores = x @ rng.normal(size=(d, classes if kind == "softmax" else 2)) + rng.normal(size=(n, 1))
    return head_examples(jnp.asarray(x, dtype), jnp.asarray(scores.argmax(1), jnp.int32))


def gradient(kind, W, x, y, kept, l2, b):
    """The gradient of the perturbed loss in NumPy, float64."""
    W, x, b = (np.asarray(a, np.float64) for a in (W, x, b))
    z = x @ W
    if kind == "logistic":
        residual = 1 / (1 + np.exp(-z)) - np.asarray(y)[:, None]
    else:
        residual = np.exp(z) / np.exp(z).sum(1, keepdims=True) - np.eye(W.shape[1])[np.asarray(y)]
    kept = np.asarray(kept, np.float64)
    return x.T @ (kept[:, None] * residual) + l2 * kept.sum() * W + b


CASES = [
    (kind, dtype, l2) for kind in ("logistic", "softmax") for dtype, l2 in (("float64", 0.01), ("float32", 0.01))
] + [("logistic", "float64", 1e-4)]


@pytest.mark.parametrize(("kind", "dtype", "l2"), CASES)
def test_no_removal_leaves_more_gradient_than_its_bound(kind, dtype, l2):
    """1,000 random requests of one to six examples each, each against the gradient by NumPy in float64."""
    with jax.enable_x64(dtype == "float64"):
        data = make(kind, dtype)
        rtol = 1e-12 if dtype == "float64" else 1e-6
        head = CertifiedHead(kind, 3 if kind == "softmax" else 2, l2=l2, sigma=0.5, solver=CG(100, rtol, progress=None))
        trained = head.train(data, key=jax.random.key(0))
        rng = np.random.default_rng(1)
        requests = np.stack([rng.choice(80, 6, replace=False) for _ in range(REQUESTS)])
        width = rng.integers(1, 7, REQUESTS)
        requests = np.where(np.arange(6) < width[:, None], requests, requests[:, :1])  # shorter ones, padded
        done = jax.vmap(lambda r: head.remove(trained.weights, data, r))(jnp.asarray(requests))
        left = np.array([
            np.linalg.norm(gradient(kind, W, data.features, data.labels, kept, l2, trained.noise))
            for W, kept in zip(np.asarray(done.weights), np.asarray(done.examples.kept), strict=True)
        ])  # fmt: skip
        assert np.all(left <= done.bound + trained.gradient_norm)
        np.testing.assert_array_equal(np.asarray(done.examples.kept).sum(1), 80 - width)
        if dtype == "float64":  # in f32 the smallest ones are rounding
            assert np.all(left <= done.bound)
            assert np.median(done.bound / left) < 2000  # a bound of the right order in the step, and not infinity
            assert float(trained.gradient_norm) < 1e-11


@pytest.mark.parametrize("kind", ["logistic", "softmax"])
def test_gradient_and_hessian_are_those_of_the_loss(kind):
    with jax.enable_x64(True):
        data = make(kind, "float64")
        data = data._replace(kept=data.kept.at[jnp.array([2, 9])].set(False))
        outputs = 3 if kind == "softmax" else 1
        head = CertifiedHead(kind, max(outputs, 2), l2=0.02)
        rng = np.random.default_rng(2)
        W, b, V = (jnp.asarray(rng.normal(size=(5, outputs))) for _ in range(3))

        def loss(W):
            z = data.features @ W
            if kind == "logistic":
                nll = -jax.nn.log_sigmoid(jnp.where(data.labels == 1, z[:, 0], -z[:, 0]))
            else:
                nll = -jnp.take_along_axis(jax.nn.log_softmax(z), data.labels[:, None], axis=1)[:, 0]
            return jnp.sum(data.kept * (nll + 0.01 * jnp.sum(W**2))) + jnp.sum(b * W)

        np.testing.assert_allclose(head.gradient(W, data, b), jax.grad(loss)(W), atol=1e-12)
        np.testing.assert_allclose(head.hessian(W, data)(V), jax.jvp(jax.grad(loss), (W,), (V,))[1], atol=1e-12)


def test_a_second_removal_goes_on_from_the_first():
    """Bounds add: after two requests the gradient left is under the sum, and the ledger holds exactly that sum."""
    with jax.enable_x64(True):
        data = make("softmax", "float64")
        head = CertifiedHead("softmax", 3, l2=0.3, sigma=50.0, solver=CG(100, 1e-12, progress=None))
        trained = head.train(data, key=jax.random.key(0))
        ledger, W = Ledger.open(head, trained), trained.weights
        bounds = []
        for request in ([3, 4], [4, 7, 50]):  # 4 is gone by then
            removal = head.remove(W, data, jnp.array(request))
            ledger = ledger.spend(request, removal.bound)
            W, data = removal.weights, removal.examples
            bounds.append(float(removal.bound))
        left = gradient("softmax", W, data.features, data.labels, data.kept, 0.3, trained.noise)
        assert int(data.kept.sum()) == 76
        assert 0 < np.linalg.norm(left) <= ledger.spent
        assert ledger.spent == pytest.approx(sum(bounds) + float(trained.gradient_norm))


def test_removal_is_newton_on_the_loss_of_what_is_kept():
    """Delta is minus the gradient of what is kept, and the step removes most of the way to the retrained head."""
    with jax.enable_x64(True):
        data = make("logistic", "float64")
        head = CertifiedHead("logistic", l2=0.05, sigma=0.5, solver=CG(100, 1e-12, progress=None))
        trained = head.train(data, key=jax.random.key(0))
        request = jnp.arange(8)
        removal = head.remove(trained.weights, data, request)
        retrained = head.train(removal.examples, key=jax.random.key(0)).weights  # the same noise: the same problem
        before, after = (float(jnp.linalg.norm(W - retrained)) for W in (trained.weights, removal.weights))
        assert after < 0.1 * before
        g = gradient(
            "logistic", trained.weights, data.features, data.labels, removal.examples.kept, 0.05, trained.noise
        )
        H = jax.jacobian(lambda W: head.gradient(W, removal.examples, trained.noise))(trained.weights).reshape(5, 5)
        np.testing.assert_allclose(
            removal.weights[:, 0], trained.weights[:, 0] - np.linalg.solve(H, g[:, 0]), atol=1e-9
        )


@pytest.mark.parametrize("kind", ["logistic", "softmax"])
def test_gamma_bounds_how_fast_the_hessian_of_a_loss_turns(kind):
    """`||A(z + u) - A(z)|| <= gamma ||u||`, and softmax comes within a percent of it between two classes."""
    rng = np.random.default_rng(0)

    def hessian(z):
        if kind == "logistic":
            p = 1 / (1 + np.exp(-z))
            return p[..., None] * (1 - p[..., None])
        p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
        return p[..., None] * np.eye(z.shape[-1]) - p[..., None] * p[..., None, :]

    z = 2 * rng.normal(size=(20000, 1 if kind == "logistic" else 4))
    u = rng.normal(size=z.shape) * 10 ** rng.uniform(-3, 1, size=(20000, 1))
    turned = np.linalg.norm(hessian(z + u) - hessian(z), ord=2, axis=(1, 2)) / np.linalg.norm(u, axis=1)
    assert turned.max() <= GAMMA[kind]
    if kind == "softmax":
        t = math.log(2 + math.sqrt(3))  # where p (1 - p) (1 - 2 p) is largest
        z, u = np.array([t, 0.0, -40.0]), np.array([1.0, -1.0, 0.0]) * 1e-4 / math.sqrt(2)
        steepest = np.linalg.norm(hessian(z + u) - hessian(z), 2) / 1e-4
        assert steepest == pytest.approx(GAMMA["softmax"], rel=1e-2)


def test_the_budget_is_the_papers_arithmetic():
    head = CertifiedHead("logistic", sigma=10.0, epsilon=0.5, delta=1.5 * math.exp(-8.0))
    assert head.c == pytest.approx(4.0)  # 1.5 exp(-4^2 / 2)
    assert head.budget == pytest.approx(1.25)  # 10 * 0.5 / 4
    assert CertifiedHead("logistic", sigma=1.0, epsilon=1.0, delta=1e-4).budget == pytest.approx(1 / 4.3853, rel=1e-4)


def test_a_spent_ledger_refuses_and_says_how_to_go_on():
    ledger = Ledger(1.0, 1.0, 1e-4).spend([1, 2], 0.4).spend(["a"], 0.6)
    assert ledger.left == pytest.approx(0.0)
    assert [r.ids for r in ledger.requests] == [("1", "2"), ("a",)]
    with pytest.raises(
        BudgetSpentError, match=r"removing b, c, d and 1 more .*head\.train\(.*Ledger\.open\(head, trained\)"
    ):
        ledger.spend("bcde", 1e-6)
    for bound in (float("nan"), float("inf")):
        with pytest.raises(BudgetSpentError):
            Ledger(1.0, 1.0, 1e-4).spend(["x"], bound)
    assert ledger.spent == pytest.approx(1.0)  # a refusal leaves it as it was


def test_a_ledger_survives_its_file(tmp_path, monkeypatch):
    path = tmp_path / "ledger.json"
    ledger = Ledger(1.0, 1.0, 1e-4).spend(["first"], 0.25)
    ledger.save(path)
    assert Ledger.load(path) == ledger
    assert [p.name for p in tmp_path.iterdir()] == ["ledger.json"]

    def fails(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", fails)
    with pytest.raises(OSError, match="no space"):
        ledger.spend(["second"], 0.25).save(path)
    assert Ledger.load(path) == ledger  # the old one, whole
    assert [p.name for p in tmp_path.iterdir()] == ["ledger.json"]


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(format=2),
        lambda c: c.pop("budget"),
        lambda c: c.update(budget=-1.0),
        lambda c: c["requests"].append({"ids": ["x"], "bound": -0.1}),
        lambda c: c.update(requests=3),
    ],
)
def test_a_damaged_ledger_is_named(tmp_path, change):
    path = tmp_path / "ledger.json"
    Ledger(1.0, 1.0, 1e-4).spend(["first"], 0.25).save(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"ledger.json is no ledger"):
        Ledger.load(path)


def test_features_are_the_hidden_states_of_the_loss_tokens():
    model = ju.Model(logits=None, hidden=lambda p, tokens: p[tokens])
    table = jnp.asarray(np.random.default_rng(0).normal(size=(9, 4)), jnp.float32)
    batch = ju.TokenBatch(jnp.array([[1, 2, 3, 4], [5, 6, 7, 8]]), jnp.array([[0.0, 0, 1, 0.5], [0, 0, 0, 0]]))
    np.testing.assert_allclose(head_features(model, table, batch)[0], table[4])
    mean = head_features(model, table, batch, pool="mean")
    np.testing.assert_allclose(mean[0], (table[3] + 0.5 * table[4]) / 1.5, rtol=1e-6)
    np.testing.assert_array_equal(mean[1], np.zeros(4))  # no loss token, no feature
    with pytest.raises(ValueError, match="pool='max'"):
        head_features(model, table, batch, pool="max")
    with pytest.raises(ValueError, match="hidden states"):
        head_features(ju.Model(logits=None), table, batch)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "probit"}, "kind='probit'"),
        ({"classes": 3}, "logistic has 2"),
        ({"l2": 0.0}, "l2=0.0"),
        ({"sigma": -1.0}, "sigma=-1.0"),
        ({"delta": 1.5}, "delta=1.5"),
        ({"gamma": 0.0}, "gamma=0.0"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        CertifiedHead(**{"kind": "logistic", **settings})
    with pytest.raises(ValueError, match="n labels"):
        head_examples(jnp.zeros((3, 2)), jnp.zeros(4, jnp.int32))
