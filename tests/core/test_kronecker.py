"""K-FAC and EK-FAC against dense float64 oracles, and by the theorems that define them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kronecker_cases import assert_same, basis, blocks, fisher, lm, problem, tokens
from toys import labelled, mlp

import jaxunlearn as ju
from jaxunlearn import operators, taps, tree
from jaxunlearn.curvature import GaussNewton
from jaxunlearn.curvature.kronecker import (
    EKFAC,
    KFAC,
    eigendecompose,
    from_eigen,
    from_factors,
    kronecker_factors,
    second_moments,
)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("recipe", [KFAC(labels="exact"), EKFAC(labels="exact")])
def test_one_example_is_the_gauss_newton_matrix_block_by_block(recipe):
    model, params, batch = problem()
    A = recipe(model, params, batch)
    assert A.psd
    expected = dict(blocks(operators.to_dense(GaussNewton()(model, params, batch)), params))
    for path, block in blocks(operators.to_dense(A), params):
        exact = expected[path] if A.table[path].block == "kronecker" else np.diag(np.diag(expected[path]))
        np.testing.assert_allclose(block, exact, atol=1e-12, err_msg=path)


@pytest.mark.parametrize("recipe", [KFAC, EKFAC])
def test_softened_answers_have_the_gauss_newton_matrix_of_divided_logits_times_the_square(recipe):
    T = 3.0
    model, params, batch = problem()
    soft = model._replace(logits=lambda p, x: model.logits(p, x) / T)
    expected = dict(blocks(T**2 * operators.to_dense(GaussNewton()(soft, params, batch)), params))
    A = recipe(labels="exact", temperature=T)(model, params, batch)
    for path, block in blocks(operators.to_dense(A), params):
        exact = expected[path] if A.table[path].block == "kronecker" else np.diag(np.diag(expected[path]))
        np.testing.assert_allclose(block, exact, atol=1e-12, err_msg=path)


def test_draws_of_softened_labels_average_to_their_expectation():
    model, params, batch = problem()
    drawn, exact = (
        operators.to_dense(KFAC(temperature=3.0, **how)(model, params, batch))
        for how in ({"samples": 4000}, {"labels": "exact"})
    )
    assert np.linalg.norm(drawn - exact) < 0.05 * np.linalg.norm(exact)  # 1/sqrt(4000) = .016 an entry


def test_what_cannot_be_softened_is_refused():
    with pytest.raises(ValueError, match="temperature=0"):
        KFAC(temperature=0.0)
    with pytest.raises(ValueError, match="only the true Fisher"):
        EKFAC(fisher="empirical", temperature=2.0)


def test_one_example_with_its_own_label_is_the_empirical_fisher():
    model, params, batch = problem()
    F = dict(blocks(fisher(model, params, batch), params))
    for path, block in blocks(operators.to_dense(KFAC(fisher="empirical")(model, params, batch)), params):
        if path.endswith("w"):
            np.testing.assert_allclose(block, F[path], atol=1e-12, err_msg=path)


def test_a_linear_network_whose_labels_are_equally_likely_is_exact_for_any_number_of_examples():
    """With gradients independent of the inputs the expectation of the product is the product of expectations."""
    model, params = mlp(sizes=(6, 5, 4, 3), activation=lambda x: x, dtype=jnp.float64)
    params = [{"w": layer["w"], "b": 0 * layer["b"]} for layer in params]
    batch = labelled(6, dtype=jnp.float64)
    batch = batch._replace(inputs=1e-7 * batch.inputs, loss_mask=jnp.ones(6))
    G = dict(blocks(operators.to_dense(GaussNewton()(model, params, batch)), params))
    for path, block in blocks(operators.to_dense(KFAC(labels="exact")(model, params, batch)), params):
        if path.endswith("w"):
            np.testing.assert_allclose(block, G[path], atol=1e-6 * np.abs(G[path]).max(), err_msg=path)


CASES = {
    "heads apart": ({}, {}),
    "tied head": ({"tied": True}, {}),
    "not scanned, diagonal vocabulary side": ({"scanned": False}, {"max_side": 4}),
    "tied, diagonal vocabulary side": ({"tied": True}, {"max_side": 4}),
}


@pytest.mark.parametrize("case", CASES)
def test_ekfac_has_the_diagonal_of_the_fisher_in_its_eigenbasis(case):
    how, settings = CASES[case]
    (model, params), batch = lm(**how), tokens()
    recipe = EKFAC(fisher="empirical", **settings)
    E = recipe(model, params, batch)
    K = from_factors(kronecker_factors(model, params, batch, recipe), params)
    F = dict(blocks(fisher(model, params, batch), params))
    dense_K = dict(blocks(operators.to_dense(K), params))
    for path, block in blocks(operators.to_dense(E), params):
        row = E.table[path]
        exact = F[path]
        if row.block == "diagonal":
            np.testing.assert_allclose(block, np.diag(np.diag(exact)), atol=1e-12, err_msg=path)
            continue
        Q = basis(E, row)
        np.testing.assert_allclose(Q.T @ block @ Q, np.diag(np.diag(Q.T @ exact @ Q)), atol=1e-12, err_msg=path)
        error = [np.linalg.norm(x - exact) for x in (block, dense_K[path])]
        assert error[0] <= error[1] * (1 + 1e-12), path


def test_ekfac_of_the_true_fisher_has_the_diagonal_of_the_gauss_newton_matrix():
    (model, params), batch = lm(bias=False), tokens()
    E = EKFAC(labels="exact")(model, params, batch)
    G = dict(blocks(operators.to_dense(GaussNewton()(model, params, batch)), params))
    for path, block in blocks(operators.to_dense(E), params):
        row = E.table[path]
        Q = np.eye(len(block)) if row.block == "diagonal" else basis(E, row)
        np.testing.assert_allclose(Q.T @ block @ Q, np.diag(np.diag(Q.T @ G[path] @ Q)), atol=1e-12, err_msg=path)


def test_ekfac_with_eigenvalues_of_kfac_is_kfac():
    (model, params), batch = lm(), tokens()
    K = from_factors(kronecker_factors(model, params, batch, EKFAC()), params)
    assert_same(operators.to_dense(from_eigen(K.eigen, params)), operators.to_dense(K))


def test_factors_are_means_over_the_positions_that_reach_the_loss():
    """By hand: the last loss token is the prediction made at position T - 3, and later positions reach nothing."""
    (model, params), batch = lm(), tokens()
    factors = kronecker_factors(model, params, batch, EKFAC(fisher="empirical"))
    last = batch.tokens.shape[1] - 3
    counts = np.bincount(np.asarray(batch.tokens[:, : last + 1]).ravel(), minlength=7)
    left, right = factors.sides(factors.table["embed"])[0]
    np.testing.assert_allclose(left, counts / counts.sum(), atol=1e-15)

    def from_embedding(x):
        rows = {**params, "embed": x.reshape(-1, x.shape[-1])}  # each position reads a row of its own
        own = jnp.arange(x.shape[0] * x.shape[1]).reshape(x.shape[:2])
        predictions = ju.types.Predictions(model.logits(rows, own)[:, :-1], batch.tokens[:, 1:], batch.loss_mask[:, 1:])
        return jnp.sum(jnp.sqrt(predictions.weights) * ju.losses.token_nll(predictions))

    g = jax.grad(from_embedding)(params["embed"][batch.tokens]).reshape(-1, 4)
    np.testing.assert_allclose(right, g.T @ g / batch.loss_mask.sum(), atol=1e-12)


def test_padding_changes_nothing():
    (model, params), batch = lm(), tokens()
    padded = ju.TokenBatch(*(jnp.pad(x, ((0, 2), (0, 3))) for x in batch[:2]))
    v = tree.normal_like(jax.random.key(0), params)
    recipe = EKFAC(fisher="empirical")
    assert_same(recipe(model, params, padded)(v), recipe(model, params, batch)(v))


def test_a_tied_matrix_is_the_sum_of_its_uses():
    (model, params), batch = lm(tied=True), tokens()
    apart, two = lm()
    two = {**params, "head": params["embed"].T}
    v = tree.normal_like(jax.random.key(0), params)
    product = lambda model, params, v: from_factors(kronecker_factors(model, params, batch, EKFAC()), params)(v)
    got = product(model, params, v)["embed"]
    parts = product(apart, two, {**v, "head": v["embed"].T})
    np.testing.assert_allclose(got, parts["embed"] + parts["head"].T, atol=1e-12)


def test_products_of_one_input_share_its_factor():
    (model, params), batch = lm(), tokens()
    factors = kronecker_factors(model, params, batch, EKFAC())
    row = factors.table["layers/u"]
    assert row.terms[0].owner == "layers/w"
    assert "A" not in factors.sums["layers/u"]["matmul"]
    assert factors.sides(row)[0][0].shape == (2, 4, 4)
    apart = kronecker_factors(model, params, batch, KFAC(only=("layers/u",)))
    np.testing.assert_allclose(apart.sides(apart.table["layers/u"])[0][0], factors.sides(row)[0][0], atol=1e-14)


def test_sampled_labels_tend_to_exact_ones():
    """The error of a mean over 2500 draws is a fiftieth of the spread of one."""
    (model, params), batch = lm(bias=False), tokens()
    exact = EKFAC(labels="exact")
    eigen = eigendecompose(kronecker_factors(model, params, batch, exact), params)
    for take in (kronecker_factors, partial(second_moments, vectors=eigen.vectors)):
        means = []
        for settings in (exact, EKFAC(samples=2500)):
            sums = take(model, params, batch, settings=settings)
            means.append(jax.tree.map(lambda x, n=sums.count: x / n, sums.sums))
        for (where, got), expected in zip(
            jax.tree_util.tree_flatten_with_path(means[1])[0], jax.tree.leaves(means[0]), strict=True
        ):
            if where[-1].key in ("G", "S"):  # inputs know nothing of labels
                assert np.linalg.norm(got - expected) < 0.12 * np.linalg.norm(expected), where


def test_a_matrix_may_be_used_twice_by_kfac():
    """The factors are sums over both uses; no tap sees an example's whole gradient, so EK-FAC refuses."""
    model = ju.Model(logits=lambda p, x: taps.matmul(jnp.tanh(taps.matmul(x, p["w"])), p["w"]))
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(3, 3)))}
    batch = labelled(4, features=3, dtype=jnp.float64)
    factors = kronecker_factors(model, params, batch, KFAC(fisher="empirical"))
    hidden = jnp.tanh(batch.inputs @ params["w"])
    both = jnp.concatenate([batch.inputs, hidden])
    np.testing.assert_allclose(factors.sides(factors.table["w"])[0][0], both.T @ both / 8, atol=1e-12)
    with pytest.raises(ValueError, match="used several times"):
        EKFAC()(model, params, batch)
