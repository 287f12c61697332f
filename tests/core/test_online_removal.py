"""Hessian-free online removal against retraining on the same batches without the forgotten examples."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import flat, labelled, mlp

from jaxunlearn import losses, tree
from jaxunlearn.methods import Trajectory, hessian_free_online, recorded_sgd
from jaxunlearn.methods.online import carry_along

N, BATCH, EPOCHS = 22, 4, 3


def squares(w, rows):
    """Weighted least squares: gradients linear in w."""
    x, y, weights = rows
    return weights * 0.5 * (x @ w - y) ** 2, weights


def batches(rng):
    """Epochs of shuffled batches; the last of each is short and filled up with -1."""
    short = -np.ones(-N % BATCH, int)
    epochs = [np.concatenate([rng.permutation(N), short]).reshape(-1, BATCH) for _ in range(EPOCHS)]
    return np.concatenate(epochs)


@pytest.fixture(scope="module")
def quadratic():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        data = (rng.normal(size=(N, 3)), rng.normal(size=N), rng.uniform(0.5, 2.0, N))
        rows = batches(rng)
        rates = 0.2 / (1 + 0.1 * np.arange(len(rows)))
        start = jnp.asarray(rng.normal(size=3))
        arrays = jax.tree.map(jnp.asarray, (data, rows, rates))
        yield data, rows, rates, start, *arrays


def retrained(data, rows, rates, start, kept):
    """The same run without the forgotten examples in NumPy; a batch's normaliser is its whole weight."""
    x, y, weights = data
    w = np.array(start)
    for batch, rate in zip(rows, rates, strict=True):
        real = batch[batch >= 0]
        stay = real[kept[real]]
        w = w - rate / weights[real].sum() * x[stay].T @ (weights[stay] * (x[stay] @ w - y[stay]))
    return w


@pytest.mark.parametrize("store", [True, False], ids=["stored", "recomputed"])
def test_on_a_quadratic_it_is_retraining(quadratic, store):
    with jax.enable_x64(True):
        data, rows, rates, start, *arrays = quadratic
        kept = np.ones(N, bool)
        kept[[1, 5, 6, 17]] = False
        end, trajectory = recorded_sgd(squares, start, *arrays, store=store)
        np.testing.assert_allclose(end, retrained(data, rows, rates, start, np.ones(N, bool)), atol=1e-13)
        a = hessian_free_online(squares, trajectory, arrays[0], ~jnp.asarray(kept), curvature="kept")
        target = retrained(data, rows, rates, start, kept)
        np.testing.assert_allclose(end + a, target, atol=1e-13)
        assert np.linalg.norm(target - end) > 0.02
        assert (trajectory.points is not None) == store
        again, _ = recorded_sgd(squares, start, *arrays, kept=jnp.asarray(kept))
        np.testing.assert_allclose(again, target, atol=1e-13)


def test_the_papers_recursion_by_hand_and_sums_of_singles(quadratic):
    """With H of the whole batch the vector of a group is the sum of its members'."""
    with jax.enable_x64(True):
        (x, y, weights), rows, rates, start, *arrays = quadratic
        w, a, U = np.array(start), np.zeros(3), [3, 8, 20]
        for batch, rate in zip(rows, rates, strict=True):
            real = batch[batch >= 0]
            n, gone = weights[real].sum(), [i for i in real if i in U]
            g = (weights * (x @ w - y))[:, None] * x
            H = x[real].T @ (weights[real, None] * x[real]) / n
            a = a - rate * H @ a + rate / n * g[gone].sum(axis=0)
            w = w - rate / n * g[real].sum(axis=0)
        trajectory = Trajectory(start, *arrays[1:])
        masks = jnp.asarray([[i == u for i in range(N)] for u in U])
        online = jax.jit(partial(hessian_free_online, squares, trajectory, arrays[0]))
        group = online(masks.any(axis=0))
        np.testing.assert_allclose(group, a, atol=1e-13)
        np.testing.assert_allclose(jax.vmap(online)(masks).sum(axis=0), group, atol=1e-13)
        assert np.abs(group - online(masks[0])).max() > 1e-3


@pytest.mark.parametrize("curvature", ["batch", "kept"])
def test_a_network_comes_closer_to_the_retrained_one(curvature):
    model, params = mlp()
    data = labelled(24, 3)
    loss = partial(losses.example_nll, model)
    rng = np.random.default_rng(0)
    rows = jnp.asarray(np.concatenate([rng.permutation(24).reshape(-1, 6) for _ in range(8)]))
    rates = jnp.full(len(rows), 0.2)
    forget = jnp.arange(24) < 2
    trained, trajectory = recorded_sgd(loss, params, data, rows, rates)
    without, _ = recorded_sgd(loss, params, data, rows, rates, kept=~forget, microbatch=3)
    a = hessian_free_online(loss, trajectory, data, forget, curvature=curvature, microbatch=3)
    distance = lambda p: float(tree.norm(tree.sub(p, without)))
    assert distance(tree.add(trained, a)) < 0.25 * distance(trained)


def test_a_loop_of_ones_own_gives_the_same_vector():
    model, params = mlp()
    data, loss = labelled(8, 3), partial(losses.example_nll, model)
    rows, rates, forget = jnp.arange(8).reshape(2, 4), jnp.array([0.3, 0.1]), jnp.arange(8) == 5
    _, trajectory = recorded_sgd(loss, params, data, rows, rates, store=True)
    a, along = tree.zeros_like(params), jax.jit(partial(carry_along, loss))
    for i in range(2):
        point = jax.tree.map(lambda x, i=i: x[i], trajectory.points)
        batch = jax.tree.map(lambda x, i=i: x[rows[i]], data)
        a = along(point, a, batch, forget[rows[i]], rates[i])
    np.testing.assert_allclose(flat(a), flat(hessian_free_online(loss, trajectory, data, forget)), atol=1e-6)


def test_mistakes_are_named():
    trajectory = Trajectory(jnp.zeros(3), jnp.zeros((1, 2), jnp.int32), jnp.ones(1))
    data = (jnp.zeros((4, 3)), jnp.zeros(4), jnp.ones(4))
    with pytest.raises(ValueError, match="curvature='all'"):
        hessian_free_online(squares, trajectory, data, jnp.zeros(4, bool), curvature="all")
    with pytest.raises(ValueError, match="each of 4 examples"):
        hessian_free_online(squares, trajectory, data, jnp.zeros(3, bool))
