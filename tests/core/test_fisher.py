"""Both Fishers: stored and recomputed, all powers, weights and padding, and the expectation of the true one."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import flat, labelled, mlp, token_batch

import jaxunlearn as ju
from jaxunlearn import losses, operators, tree
from jaxunlearn.curvature import (
    EmpiricalFisher,
    GaussNewton,
    TrueFisher,
    empirical_fisher,
    empirical_fisher_factor,
    gauss_newton,
    gauss_newton_factor,
)
from jaxunlearn.curvature.empirical_fisher import mean_losses
from jaxunlearn.curvature.outer_product import gradients
from jaxunlearn.curvature.parts import parts_of_predictor
from jaxunlearn.curvature.true_fisher import draw_labels, number_rows, redrawn_loss, redrawn_losses


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def problem(n=12):
    model, params = mlp(sizes=(3, 4, 3), dtype=jnp.float64)
    return model, params, labelled(n, features=3, dtype=jnp.float64)


def dense(make, *args):
    """The matrix of `make(*args)`, in one compiled function."""
    return jax.jit(lambda: operators.to_dense(make(*args)))()


def bigram(rows=4, vocab=5, length=5, prompt=2):
    """A language model of one matrix, for sequences of several loss tokens with uneven weights."""
    rng = np.random.default_rng(0)
    batch = token_batch(rng, rows, length, vocab, prompt)
    # Weights are f32 by contract; these and their sums are powers of two or exact, so they leave f64 its digits.
    weights = jnp.zeros((rows, length)).at[:, prompt:].set(jnp.array([0.5, 1.5, 2.0]))
    model = ju.Model(logits=lambda p, tokens: jnp.tanh(p["e"][tokens]) @ p["h"])
    params = {"e": jnp.asarray(rng.normal(size=(vocab, 2))), "h": jnp.asarray(rng.normal(size=(2, vocab)))}
    return model, params, batch._replace(loss_mask=weights)


def predict(model):
    return lambda params, batch: batch.predict(model, params)


FORMS = {
    "stored": {},
    "stored, five at once": {"microbatch": 5},
    "recomputed": {"stored": False, "microbatch": 4, "block": 5},
}
RECIPES = {"empirical": EmpiricalFisher, "true": TrueFisher}
POWERS = (-1.0, -0.25, 0.5, 1.0)


@pytest.mark.parametrize(
    ("kind", "form"),
    [("empirical", "stored"), ("empirical", "recomputed"), ("true", "stored, five at once"), ("true", "recomputed")],
)
def test_every_form_is_the_dense_power(kind, form):
    model, params, batch = problem()
    v = tree.normal_like(jax.random.key(0), params)
    rows = gradients(*per_example(kind, model, batch)(params))

    @jax.jit
    def products(params, batch):
        F = RECIPES[kind](None, **FORMS[form])(model, params, batch).damped(0.01)
        assert (F.rows is None) == (form == "recomputed")
        return F(v), jax.lax.map(lambda p: F.power(p)(v), jnp.array(POWERS)), F.span_share(v)

    product, powers, share = products(params, batch)
    G = jax.vmap(lambda g: flat(g))(rows[0])
    dense = G.T @ G / rows[1] + 0.01 * jnp.eye(G.shape[1])
    values, vectors = jnp.linalg.eigh(dense)
    np.testing.assert_allclose(flat(product), dense @ flat(v), atol=1e-12)
    for i, p in enumerate(POWERS):
        expected = (vectors * values**p) @ vectors.T @ flat(v)
        actual = flat(jax.tree.map(lambda x, i=i: x[i], powers))
        np.testing.assert_allclose(actual, expected, atol=1e-8 * np.abs(expected).max(), err_msg=str(p))
    q, _ = jnp.linalg.qr(G.T)
    assert float(share) == pytest.approx(float(jnp.sum((q.T @ flat(v)) ** 2) / tree.vdot(v, v)), abs=1e-8)


def per_example(kind, model, batch):
    """Arguments of `gradients`, given the parameters."""
    if kind == "true":
        return lambda params: (
            redrawn_losses(parts_of_predictor(predict(model)), jax.random.key(0)),
            params,
            number_rows(batch),
        )
    return lambda params: (mean_losses(lambda p, b: losses.example_nll(model, p, b)), params, batch)


def test_rows_without_loss_do_not_dilute_the_mean():
    model, params, batch = problem(8)
    padded = jax.tree.map(lambda x: jnp.concatenate([x, x[:4]]), batch)
    padded = padded._replace(loss_mask=padded.loss_mask.at[8:].set(0.0))
    v = tree.normal_like(jax.random.key(0), params)
    recipes = [recipe(None, stored=stored) for recipe in (EmpiricalFisher, TrueFisher) for stored in (True, False)]
    products = jax.jit(lambda b: [flat(recipe(model, params, b)(v)) for recipe in recipes])
    for whole, filled in zip(products(batch), products(padded), strict=True):
        np.testing.assert_allclose(filled, whole, rtol=0, atol=1e-13)
        assert float(jnp.abs(whole).max()) > 0.01


def test_a_batch_without_any_loss_gives_zero_and_not_nan():
    model, params, batch = problem(4)
    recipes = (EmpiricalFisher(), TrueFisher(), EmpiricalFisher(stored=False))

    @jax.jit
    def products(batch):
        operator = [recipe(model, params, batch) for recipe in recipes]
        return [(F(params), F.damped(2.0).power(-1.0)(params)) for F in operator]

    for product, inverse in products(batch._replace(loss_mask=jnp.zeros(4))):
        np.testing.assert_array_equal(flat(product), 0.0)
        np.testing.assert_allclose(flat(inverse), flat(params) / 2.0, rtol=1e-12)


def test_rows_are_gradients_of_the_mean_loss_of_an_example():
    model, params, batch = bigram()

    def mean(p, i):
        total, count = losses.nll(model, p, jax.tree.map(lambda x: x[i][None], batch))
        return total / count

    expected = jax.jit(jax.vmap(jax.grad(mean), (None, 0)))(params, jnp.arange(4))
    F = jax.jit(lambda p: EmpiricalFisher(None)(model, p, batch).rows)(params)
    np.testing.assert_allclose(flat(F), flat(expected), rtol=0, atol=1e-13)


def test_a_loss_given_as_one_number_a_batch_equals_one_number_an_example():
    model, params, batch = problem()
    v = tree.normal_like(jax.random.key(0), params)

    def product(params, total, stored):
        F = empirical_fisher(lambda p, b: total(model, p, b), params, batch, samples=7, stored=stored)
        assert F.values.shape == (7,)
        return flat(F(v))

    forms = [(total, stored) for total in (losses.nll, losses.example_nll) for stored in (True, False)]
    first, *others = jax.jit(lambda p: [product(p, *form) for form in forms])(params)
    for other in others:
        np.testing.assert_allclose(other, first, rtol=0, atol=1e-13)


def test_enumerating_all_labels_of_a_sequence_gives_the_gauss_newton_matrix_exactly():
    """The expectation over every joint draw of the labels, with its probability: cross terms between tokens vanish."""
    model, params, batch = bigram(rows=1)
    predictions = batch.predict(model, params)
    p = jax.nn.softmax(predictions.logits[0])
    P, V = p.shape
    assert P == 3

    def row(labels):
        loss = lambda q: redrawn_loss(batch.predict(model, q).logits, predictions.weights, labels[None])[0]
        return flat(jax.grad(loss)(params))

    every = jnp.array(list(itertools.product(range(V), repeat=P)), jnp.int32)
    rows = jax.jit(jax.vmap(row))(every)
    chance = jnp.prod(jnp.take_along_axis(p[None], every[:, :, None], axis=2)[..., 0], axis=1)
    assert float(chance.sum()) == pytest.approx(1.0, abs=1e-12)
    actual = jnp.einsum("k,ki,kj->ij", chance, rows, rows) / predictions.weights.sum()
    expected = dense(GaussNewton(), model, params, batch)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-13)


def test_labels_are_drawn_from_the_prediction():
    logits = jnp.log(jnp.array([0.1, 0.2, 0.7]))
    n = 20_000
    ids = jnp.arange(n, dtype=jnp.uint32).reshape(-1, 2)
    labels = draw_labels(jax.random.key(0), ids, jnp.broadcast_to(logits, (n // 2, 2, 3)))
    share = np.bincount(labels.reshape(-1), minlength=3) / n
    np.testing.assert_allclose(share, [0.1, 0.2, 0.7], atol=4 * np.sqrt(0.25 / n))


@pytest.mark.parametrize("make", [problem, bigram], ids=["classifier", "sequences"])
def test_true_fisher_converges_to_gauss_newton(make):
    model, params, batch = make(4)
    G = dense(GaussNewton(), model, params, batch)

    def draw(key):
        rows, count = gradients(redrawn_losses(parts_of_predictor(predict(model)), key), params, number_rows(batch))
        R = jax.vmap(flat)(rows)
        return R.T @ R / count

    draws = 400
    F = jax.jit(lambda keys: jax.lax.map(draw, keys, batch_size=100))(jax.random.split(jax.random.key(0), draws))
    error = F.mean(0) - G
    scale = F.std(0) / np.sqrt(draws)
    # Standardised errors: none beyond 5 of the thousand or so, and their mean square is about one.
    real = scale > 1e-12
    np.testing.assert_allclose(error[~real], 0.0, atol=1e-12)
    z = error[real] / scale[real]
    assert float(jnp.abs(z).max()) < 5.0
    assert 0.5 < float(jnp.mean(z**2)) < 1.6


def test_more_draws_mean_less_noise():
    model, params, batch = problem(4)
    G = dense(GaussNewton(), model, params, batch)
    error = [float(jnp.linalg.norm(dense(TrueFisher(None, draws=n), model, params, batch) - G)) for n in (1, 64)]
    assert error[1] < 0.3 * error[0]


def test_draws_depend_on_seed_and_place_only():
    model, params, batch = problem()
    v = tree.normal_like(jax.random.key(0), params)
    recipes = (TrueFisher(None), TrueFisher(None, stored=False, microbatch=3), TrueFisher(None, seed=1))
    product = lambda p: [flat(recipe(model, p, batch)(v)) for recipe in recipes]
    once, again = jax.jit(product)(params), jax.jit(lambda p: product(p))(params)
    np.testing.assert_array_equal(once[0], again[0])
    np.testing.assert_allclose(once[0], once[1], rtol=0, atol=1e-12)
    assert float(jnp.abs(once[0] - once[2]).max()) > 1e-3


def test_chunks_of_the_head_leave_every_draw_in_place():
    """A model that gives its head apart never makes all logits at once; its Fishers are the same."""
    model, params, batch = bigram()
    hidden = lambda p, tokens, layer=None: jnp.tanh(p["e"][tokens])
    chunked = model._replace(hidden=hidden, head=lambda p, h: h @ p["h"], head_rows=4)
    v = tree.normal_like(jax.random.key(0), params)
    recipes = (TrueFisher(None), TrueFisher(None, stored=False), EmpiricalFisher(None, stored=False))
    products = jax.jit(lambda v: [[flat(r(m, params, batch)(v)) for r in recipes] for m in (model, chunked)])
    for whole, parts in zip(*products(v), strict=True):
        np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-13)


FACTORS = {
    "gauss_newton": lambda m, p, b, k: gauss_newton_factor(predict(m), p, b, microbatch=k),
    "empirical_fisher": lambda m, p, b, k: empirical_fisher_factor(
        lambda q, c: losses.example_nll(m, q, c), p, b, microbatch=k
    ),
}
WHOLE = {"gauss_newton": GaussNewton(), "empirical_fisher": EmpiricalFisher(None)}


@pytest.mark.parametrize(("make", "microbatch"), [(problem, None), (bigram, 2)], ids=["classifier", "sequences"])
@pytest.mark.parametrize("name", FACTORS)
def test_factors_are_square_roots_and_adjoint(name, make, microbatch):
    model, params, batch = make(4)

    @jax.jit
    def both(params):
        S = FACTORS[name](model, params, batch, microbatch)
        assert S.operator().psd
        v = tree.normal_like(jax.random.key(0), params)
        c = tree.normal_like(jax.random.key(1), S.transpose(v))
        adjoint = tree.vdot(S.forward(c), v), tree.vdot(c, S.transpose(v))
        return operators.to_dense(S.operator()), operators.to_dense(WHOLE[name](model, params, batch)), adjoint

    root, expected, (left, right) = both(params)
    np.testing.assert_allclose(root, expected, rtol=0, atol=1e-13)
    assert float(left) == pytest.approx(float(right), rel=1e-12)


def test_samples_of_a_factor_have_its_covariance():
    model, params = mlp(sizes=(3, 2), dtype=jnp.float64)
    batch = labelled(6, features=3, classes=2, dtype=jnp.float64)
    S = gauss_newton_factor(predict(model), params, batch)
    draws = jax.jit(jax.vmap(lambda key: flat(S.sample(key))))(jax.random.split(jax.random.key(0), 20_000))
    G = dense(S.operator)
    np.testing.assert_allclose(draws.T @ draws / len(draws), G, atol=0.05 * float(G.max()))


def test_gauss_newton_factor_in_bf16_multiplies_in_f32():
    with jax.enable_x64(False):
        model, params = mlp(sizes=(3, 4, 3), dtype=jnp.bfloat16)
        batch = labelled(8, features=3, dtype=jnp.bfloat16)

        @jax.jit
        def both(v):
            S = gauss_newton_factor(predict(model), params, batch)
            return S.transpose(v), S.operator()(v), gauss_newton(predict(model), params, batch)(v)

        dual, product, whole = both(tree.normal_like(jax.random.key(0), params))
        assert dual.dtype == jnp.float32
        assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(product))
        assert float(tree.norm(tree.sub(product, whole))) < 0.05 * float(tree.norm(whole))


def test_outer_products_add_up_over_batches():
    model, params, batch = problem()
    v = tree.normal_like(jax.random.key(0), params)
    parts = [jax.tree.map(lambda x, s=s: x[s], batch) for s in (slice(0, 5), slice(5, 12))]

    @jax.jit
    def both(params):
        sums = [
            EmpiricalFisher(microbatch=m).product(model, params, part, v)
            for m, part in zip((None, 1), parts, strict=True)
        ]
        return tree.add(sums[0][0], sums[1][0]), sums[0][1] + sums[1][1], EmpiricalFisher(None)(model, params, batch)(v)

    total, count, expected = both(params)
    assert float(count) == 12.0
    np.testing.assert_allclose(flat(total) / count, flat(expected), rtol=0, atol=1e-13)


def test_recomputed_products_hold_no_gradient_for_every_example():
    """Bytes of the compiled product, gradients of 64 examples against parameters of 20 kB."""
    with jax.enable_x64(False):
        model, params = mlp(sizes=(6, 800, 3))
        batch = labelled(64)
        size = sum(x.nbytes for x in jax.tree.leaves(params))

        def temporary(recipe):
            product = lambda p, b, v: recipe(model, p, b).damped(0.1).power(-1.0)(v)
            compiled = jax.jit(product).lower(params, batch, params).compile()
            return compiled.memory_analysis().temp_size_in_bytes

        assert temporary(EmpiricalFisher(None)) > 64 * size
        assert temporary(EmpiricalFisher(None, stored=False, microbatch=1, block=4)) < 24 * size


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EmpiricalFisher(0), "samples=0"),
        (lambda: EmpiricalFisher(block=0), "block=0"),
        (lambda: TrueFisher(0), "samples=0"),
        (lambda: TrueFisher(draws=0), "draws=0"),
        (lambda: TrueFisher(block=0), "block=0"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_gradients_come_a_few_at_a_time_or_one_by_one():
    model, params, batch = problem(6)
    values = redrawn_losses(parts_of_predictor(predict(model)), jax.random.key(0))
    some = lambda k: jax.jit(lambda p: gradients(values, p, number_rows(batch), at_once=k))(params)
    (alone, n), (together, m) = some(1), some(4)  # 6 is not a multiple of 4
    assert float(n) == float(m) == pytest.approx(float(batch.loss_mask.sum()))
    np.testing.assert_allclose(flat(alone), flat(together), atol=1e-13)
