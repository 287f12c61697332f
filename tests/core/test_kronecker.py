"""K-FAC and EK-FAC against dense float64 oracles, and by the theorems that define them."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kronecker_cases import basis, blocks, fisher, lm, tokens
from toys import labelled, mlp

import jaxunlearn as ju
from jaxunlearn import operators, solvers, taps, tree
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


@cache
def problem(sizes=(6, 5, 3), n=1):
    model, params = mlp(sizes=sizes, dtype=jnp.float64)
    return model, params, labelled(n, dtype=jnp.float64)


def assert_same(got, expected, atol=1e-12):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


@pytest.mark.parametrize("recipe", [KFAC(labels="exact"), EKFAC(labels="exact")])
def test_one_example_is_the_gauss_newton_matrix_block_by_block(recipe):
    model, params, batch = problem()
    A = recipe(model, params, batch)
    assert A.psd
    expected = dict(blocks(operators.to_dense(GaussNewton()(model, params, batch)), params))
    for path, block in blocks(operators.to_dense(A), params):
        exact = expected[path] if A.table[path].block == "kronecker" else np.diag(np.diag(expected[path]))
        np.testing.assert_allclose(block, exact, atol=1e-12, err_msg=path)


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
    (model, params), batch = lm(), tokens(2)
    E = EKFAC(labels="exact")(model, params, batch)
    G = dict(blocks(operators.to_dense(GaussNewton()(model, params, batch)), params))
    for path, block in blocks(operators.to_dense(E), params):
        row = E.table[path]
        Q = np.eye(len(block)) if row.block == "diagonal" else basis(E, row)
        np.testing.assert_allclose(Q.T @ block @ Q, np.diag(np.diag(Q.T @ G[path] @ Q)), atol=1e-12, err_msg=path)


def test_ekfac_with_eigenvalues_of_kfac_is_kfac():
    (model, params), batch = lm(), tokens()
    K = KFAC()(model, params, batch)
    assert_same(operators.to_dense(from_eigen(K.eigen, params)), operators.to_dense(K))


def test_factors_are_means_over_the_positions_that_reach_the_loss():
    """By hand: the last loss token is the prediction made at position T - 3, and later positions reach nothing."""
    (model, params), batch = lm(), tokens()
    factors = kronecker_factors(model, params, batch, KFAC(fisher="empirical"))
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
    for settings in ({}, {"max_side": 4}):
        got = KFAC(**settings)(model, params, batch)(v)["embed"]
        parts = KFAC(**settings)(apart, two, batch)({**v, "head": v["embed"].T})
        np.testing.assert_allclose(got, parts["embed"] + parts["head"].T, atol=1e-12)


def test_products_of_one_input_share_its_factor():
    (model, params), batch = lm(), tokens()
    factors = kronecker_factors(model, params, batch)
    row = factors.table["layers/u"]
    assert row.terms[0].owner == "layers/w"
    assert "A" not in factors.sums["layers/u"]["matmul"]
    assert factors.sides(row)[0][0].shape == (2, 4, 4)
    apart = kronecker_factors(model, params, batch, KFAC(only=("layers/u",)))
    np.testing.assert_allclose(apart.sides(apart.table["layers/u"])[0][0], factors.sides(row)[0][0], atol=1e-14)


@pytest.mark.parametrize("p", [-1.0, -0.25, 0.5])
@pytest.mark.parametrize("recipe", [KFAC(), EKFAC()])
def test_powers_are_the_dense_ones(recipe, p):
    (model, params), batch = lm(), tokens()
    A = recipe(model, params, batch).damped(0.3)
    values, Q = np.linalg.eigh(operators.to_dense(A))
    assert values.min() >= 0.3 - 1e-12
    np.testing.assert_allclose(operators.to_dense(A.power(p)), (Q * values**p) @ Q.T, atol=1e-11)


def test_undamped_inverse_is_the_pseudo_inverse():
    model, params, batch = problem(n=4)
    A = KFAC()(model, params, batch)
    dense = operators.to_dense(A)
    np.testing.assert_allclose(dense @ operators.to_dense(A.power(-1.0)) @ dense, dense, atol=1e-9)


def test_damping_by_the_mean_eigenvalue_is_that_of_each_block():
    (model, params), batch = lm(), tokens()
    A = EKFAC()(model, params, batch)
    dense, damped = (dict(blocks(operators.to_dense(x), params)) for x in (A, A.damped_by_mean(0.1)))
    for path, block in dense.items():
        stacks = int(np.prod(A.table[path].shape[: A.table[path].stacked]))
        mean = np.repeat(np.diag(block).reshape(stacks, -1).mean(1), len(block) // stacks)
        np.testing.assert_allclose(damped[path], block + 0.1 * np.diag(mean), atol=1e-12, err_msg=path)


def test_sampled_labels_tend_to_exact_ones():
    """The error of a mean over 2500 draws is a fiftieth of the spread of one."""
    (model, params), batch = lm(bias=False), tokens(2)
    exact = EKFAC(labels="exact")
    eigen = eigendecompose(kronecker_factors(model, params, batch, exact), params)
    for take in (kronecker_factors, partial(second_moments, vectors=eigen.vectors)):
        means = []
        for settings in (exact, EKFAC(samples=2500)):
            sums = take(model, params, batch, settings=settings)
            means.append({(path, use, name): x / sums.count for path, uses in sums.sums.items()
                          for use, kept in uses.items() for name, x in kept.items() if name not in ("A", "N")})  # fmt: skip
        for key, expected in means[0].items():
            assert np.linalg.norm(means[1][key] - expected) < 0.12 * np.linalg.norm(expected), key


def test_microbatches_change_nothing():
    (model, params), batch = lm(tied=True), tokens(4)
    v = tree.normal_like(jax.random.key(0), params)
    assert_same(EKFAC(microbatch=2)(model, params, batch)(v), EKFAC()(model, params, batch)(v))


def test_streamed_batches_add_up():
    (model, params), batch = lm(tied=True), tokens(4)
    recipe = EKFAC(fisher="empirical")
    halves = [jax.tree.map(lambda x, i=i: x[2 * i : 2 * i + 2], batch) for i in range(2)]
    first = [kronecker_factors(model, params, half, recipe, seed=i) for i, half in enumerate(halves)]
    eigen = eigendecompose(first[0] + first[1], params)
    second = [second_moments(model, params, half, recipe, eigen.vectors) for half in halves]
    streamed = from_eigen(eigen.with_moments(second[0] + second[1]), params)
    v = tree.normal_like(jax.random.key(0), params)
    assert_same(streamed(v), recipe(model, params, batch)(v))


def test_host_and_device_eigenvectors_give_the_same_powers():
    (model, params), batch = lm(tied=True), tokens()
    factors = kronecker_factors(model, params, batch)
    v = tree.normal_like(jax.random.key(0), params)
    powers = [from_factors(factors, params, eigen=e).damped(0.1).power(-1.0)(v) for e in ("host", "device")]
    assert_same(*powers, atol=1e-10)


def test_closed_form_reports_how_exact_it_was():
    model, params, batch = problem(n=4)
    v = tree.normal_like(jax.random.key(0), params)
    _, info = solvers.ClosedForm(-1.0)(KFAC()(model, params, batch).damped(0.1), v)
    assert float(info.relative_residual) < 1e-12


def test_as_preconditioner_it_saves_products():
    model, params, batch = problem(sizes=(8, 3), n=60)
    batch = labelled(60, features=8, dtype=jnp.float64)
    batch = batch._replace(inputs=batch.inputs * jnp.logspace(0, -2, 8))
    G = GaussNewton()(model, params, batch).damped(1e-6)
    v = tree.normal_like(jax.random.key(0), params)
    P = EKFAC(labels="exact")(model, params, batch).damped(1e-6).power(-1.0)
    plain = solvers.CG(60, 1e-6, progress=None)(G, v)[1]
    better = solvers.CG(60, 1e-6, progress=None, preconditioner=P)(G, v)[1]
    assert int(better.steps) < 0.6 * int(plain.steps)


def test_parameters_left_out_cost_nothing_and_have_no_curvature():
    (model, params), batch = lm(), tokens()
    A = KFAC(only=("layers/w",))(model, params, batch)
    whole = KFAC()(model, params, batch)
    v = tree.normal_like(jax.random.key(0), params)
    out = A(v)
    np.testing.assert_allclose(out["layers"]["w"], whole(v)["layers"]["w"], atol=1e-12)
    assert float(jnp.abs(out["embed"]).max()) == 0.0
    assert float(jnp.abs(A.power(-1.0)(v)["embed"]).max()) == 0.0
    np.testing.assert_allclose(A.damped(2.0).power(-1.0)(v)["embed"], v["embed"] / 2, atol=1e-12)
    assert set(kronecker_factors(model, params, batch, KFAC(only=("layers/w",))).sums) == {"layers/w"}


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
