"""Diagonals against dense ones: exact where they are exact, unbiased with honest error bars where they are random."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import flat, labelled, mlp, token_batch, unlearn_batch

import jaxunlearn as ju
from jaxunlearn import methods, objectives, operators, tree
from jaxunlearn.curvature import (
    DiagonalOperator,
    EmpiricalFisher,
    GaussNewton,
    GaussNewtonBartlett,
    Hessian,
    HutchinsonDiagonal,
    SquaredGradients,
    diagonal,
    gauss_newton_bartlett,
    hutchinson_diagonal,
    squared_gradients,
)
from jaxunlearn.curvature.parts import parts_of_predictor
from jaxunlearn.curvature.true_fisher import number_rows, redrawn_losses
from jaxunlearn.operators import LinearOperator
from jaxunlearn.solvers import ClosedForm, Status


def classifier(n=6):
    model, params = mlp(sizes=(3, 4, 3))
    return model, params, labelled(n, features=3)


def sequences():
    rng = np.random.default_rng(0)
    batch = token_batch(rng, 4, length=5, vocab=5, prompt=2)
    batch = batch._replace(loss_mask=batch.loss_mask * jnp.array([1.0, 1.0, 0.5, 2.0, 1.5]))
    model = ju.Model(logits=lambda p, tokens: jnp.tanh(p["e"][tokens]) @ p["h"])
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return model, {"e": normal(5, 2), "h": normal(2, 5)}, batch


def dense_diagonal(recipe, model, params, batch):
    return jax.jit(lambda p: jnp.diag(operators.to_dense(recipe(model, p, batch))))(params)


def predict(model):
    return lambda params, batch: batch.predict(model, params)


def standard_scores(draw, expected, n=2000):
    """`(mean of n draws - expected) / standard error`, entry by entry where there is any noise."""
    draws = jax.jit(lambda keys: jax.lax.map(draw, keys, batch_size=250))(jax.random.split(jax.random.key(0), n))
    error, scale = draws.mean(0) - expected, draws.std(0) / np.sqrt(n)
    noisy = scale > 1e-7
    np.testing.assert_allclose(error[~noisy], 0.0, atol=1e-5)
    return error[noisy] / scale[noisy]


def assert_unbiased(scores):
    assert float(jnp.abs(scores).max()) < 5.0
    assert float(jnp.mean(scores**2)) < 2.0


@pytest.mark.parametrize("make", [classifier, sequences])
def test_gauss_newton_bartlett_is_unbiased(make):
    model, params, batch = make()
    expected = dense_diagonal(GaussNewton(), model, params, batch)
    assert_unbiased(
        standard_scores(lambda key: flat(gauss_newton_bartlett(predict(model), params, batch, key).mean), expected)
    )


def test_squared_gradients_at_drawn_labels_are_unbiased_and_less_noisy_than_bartlett():
    model, params, batch = sequences()
    expected = dense_diagonal(GaussNewton(), model, params, batch)

    def one_by_one(key):
        return flat(
            squared_gradients(redrawn_losses(parts_of_predictor(predict(model)), key), params, number_rows(batch))
        )

    assert_unbiased(standard_scores(one_by_one, expected))
    keys = jax.random.split(jax.random.key(1), 500)
    bartlett = lambda key: flat(gauss_newton_bartlett(predict(model), params, batch, key).mean)
    spread = [jnp.linalg.norm(jax.jit(lambda k, f=f: jax.lax.map(f, k))(keys).std(0)) for f in (one_by_one, bartlett)]
    assert float(spread[0]) < 0.8 * float(spread[1])


def test_hutchinson_is_unbiased_and_its_standard_error_honest():
    rng = np.random.default_rng(0)
    M = jnp.asarray(rng.normal(size=(6, 6)), jnp.float32)
    M = M + M.T
    A = LinearOperator(lambda v: M @ v, like=jnp.zeros(6))
    assert_unbiased(standard_scores(lambda key: hutchinson_diagonal(A, key).mean, jnp.diag(M)))
    estimate = jax.jit(lambda key: hutchinson_diagonal(A, key, probes=400))(jax.random.key(1))
    off = jnp.sqrt(jnp.sum(M**2, axis=1) - jnp.diag(M) ** 2)
    np.testing.assert_allclose(estimate.standard_error, off / np.sqrt(400), rtol=0.2)
    assert float(jnp.abs((estimate.mean - jnp.diag(M)) / estimate.standard_error).max()) < 4.0


def test_one_draw_has_no_standard_error():
    A = LinearOperator(lambda v: 2.0 * v, like=jnp.zeros(3))
    assert bool(jnp.all(jnp.isnan(hutchinson_diagonal(A, jax.random.key(0)).standard_error)))


def test_the_average_of_draws_is_the_mean_of_single_draws():
    model, params, batch = classifier()
    key = jax.random.key(3)
    both = jax.jit(lambda p: gauss_newton_bartlett(predict(model), p, batch, key, draws=4))(params)

    def single(key):
        values = redrawn_losses(parts_of_predictor(predict(model)), key)
        grad = flat(jax.grad(lambda p: jnp.sum(values(p, number_rows(batch))[0]))(params))
        return grad**2 / jnp.sum(batch.loss_mask)

    draws = jax.jit(jax.vmap(single))(jax.random.split(key, 4))
    np.testing.assert_allclose(flat(both.mean), draws.mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(flat(both.standard_error), draws.std(0, ddof=1) / 2.0, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("microbatch", [1, 3])
@pytest.mark.parametrize("make", [classifier, sequences])
def test_squared_gradients_are_the_diagonal_of_the_empirical_fisher(make, microbatch):
    model, params, batch = make()
    if microbatch == 3 and len(batch[0]) % 3:
        batch = jax.tree.map(lambda x: x[:3], batch)
    expected = dense_diagonal(EmpiricalFisher(None), model, params, batch)
    D = jax.jit(lambda p: SquaredGradients(microbatch=microbatch)(model, p, batch).entries)(params)
    np.testing.assert_allclose(flat(D), expected, rtol=1e-4, atol=1e-6)


def test_microbatches_leave_every_draw_in_place():
    model, params, batch = classifier()

    @jax.jit
    def entries(params):
        recipes = [GaussNewtonBartlett(), GaussNewtonBartlett(microbatch=2)]
        recipes += [SquaredGradients(labels="drawn"), SquaredGradients(labels="drawn", microbatch=3)]
        return [flat(recipe(model, params, batch).entries) for recipe in recipes]

    whole, parts, one, three = entries(params)
    np.testing.assert_allclose(whole, parts, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(one, three, rtol=1e-4, atol=1e-7)


def test_a_diagonal_is_closed_under_damping_and_powers():
    D = diagonal({"a": jnp.array([3.0, 0.0]), "b": jnp.array([[8.0]])}, psd=True)
    v = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([[3.0]])}
    np.testing.assert_allclose(flat(D(v)), [3.0, 0.0, 24.0])
    inverse_root = D.damped(1.0).power(-0.5)
    assert isinstance(inverse_root, DiagonalOperator)
    assert inverse_root.psd
    np.testing.assert_allclose(flat(inverse_root(v)), [0.5, 2.0, 1.0], rtol=1e-6)
    x, info = ClosedForm(-1.0)(D.damped(1.0), v)
    np.testing.assert_allclose(flat(x), [0.25, 2.0, 1.0 / 3.0], rtol=1e-6)
    assert Status(int(info.status)) is Status.CLOSED_FORM


def test_hutchinson_recipe_is_positive_unless_told_not_to():
    """Away from a minimum the Hessian's diagonal has entries below zero."""
    model, params, batch = classifier()
    recipes = (HutchinsonDiagonal(Hessian(), 8), HutchinsonDiagonal(Hessian(), 8, absolute=False))
    positive, raw = jax.jit(lambda p: [flat(r(model, p, batch).entries) for r in recipes])(params)
    assert float(raw.min()) < 0
    np.testing.assert_array_equal(positive, jnp.abs(raw))


@pytest.mark.parametrize("recipe", [HutchinsonDiagonal(), GaussNewtonBartlett(), SquaredGradients()])
def test_bf16_parameters_have_f32_diagonals(recipe):
    model, params = mlp(sizes=(3, 4, 3), dtype=jnp.bfloat16)
    batch = labelled(4, features=3, dtype=jnp.bfloat16)
    D = jax.jit(lambda p: recipe(model, p, batch).entries)(params)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(D))
    assert bool(tree.all_finite(D))


@pytest.mark.parametrize("recipe", [HutchinsonDiagonal(GaussNewton(), 2), GaussNewtonBartlett(2), SquaredGradients()])
def test_methods_take_diagonals_in_closed_form(recipe):
    model, params = mlp()
    batch = unlearn_batch(model, params)
    method = methods.compose(
        "diagonal", objectives.Objective(((-1.0, objectives.NLL("forget")),)), recipe, ClosedForm(), damping=0.1
    )._replace(certify=False)
    state = ju.init(method, model, params, key=jax.random.key(0))
    state, info = jax.jit(ju.unlearn_step, static_argnums=(0, 1))(method, model, state, batch)
    assert Status(int(info.curvature.solve.status)) is Status.CLOSED_FORM
    assert bool(info.applied)
    assert float(info.curvature.solve.relative_residual) < 1e-5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HutchinsonDiagonal(probes=0), "probes=0"),
        (lambda: GaussNewtonBartlett(draws=0), "draws=0"),
        (lambda: SquaredGradients(microbatch=0), "microbatch=0"),
        (lambda: SquaredGradients(labels="wrong"), "labels='wrong'"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
