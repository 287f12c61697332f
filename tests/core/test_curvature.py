"""Every operator against a dense float64 oracle, and by the identities that define it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import dense_problem, flat, labelled, mean_nll, mlp, token_batch, unflatten_like

import jaxunlearn as ju
from jaxunlearn import losses, models, operators, tree
from jaxunlearn.curvature import (
    EmpiricalFisher,
    GaussNewton,
    Hessian,
    TrueFisher,
    hessian_product,
)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def dense_hessian(model, params, batch):
    return jax.hessian(lambda v: mean_nll(model, unflatten_like(v, params), batch))(flat(params))


@pytest.mark.parametrize("mode", ["forward_over_reverse", "linearize"])
@pytest.mark.parametrize("microbatch", [None, 4])
def test_hessian_is_the_dense_one(microbatch, mode):
    model, params, batch = dense_problem()
    H = operators.to_dense(Hessian(microbatch, mode)(model, params, batch))
    np.testing.assert_allclose(H, dense_hessian(model, params, batch), atol=1e-12)


def test_a_linearised_hessian_differentiates_the_model_once():
    """Building it traces the model; products afterwards replay the tangent program and never call the model again."""
    model, params, batch = dense_problem()
    calls = []

    def counting(p, x):
        calls.append(1)
        return model.logits(p, x)

    H = Hessian(4, "linearize")(ju.Model(logits=counting), params, batch)
    built = len(calls)
    first, second = H(params), H(tree.scale(2.0, params))
    assert len(calls) == built
    np.testing.assert_allclose(flat(second), 2.0 * flat(first), rtol=1e-12)
    np.testing.assert_allclose(flat(first), flat(Hessian()(model, params, batch)(params)), atol=1e-12)


def test_a_linearised_product_spends_fewer_flops():
    """With the residuals at hand a product is the tangent program alone: two thirds of what jvp of grad computes."""
    with jax.enable_x64(False):
        model, params = mlp(sizes=(64, 64, 64, 64, 8))
        batch = labelled(64, features=64, classes=8)
        flops = lambda f, *args: jax.jit(f).lower(*args).compile().cost_analysis()["flops"]
        H = Hessian(mode="linearize")(model, params, batch)
        once = flops(lambda p, v: Hessian()(model, p, batch)(v), params, params)
        assert flops(H, params) < 0.8 * once


def test_products_before_normalisation_add_up():
    model, params, batch = dense_problem()
    total = lambda p, b: losses.nll(model, p, b)
    v = tree.normal_like(jax.random.key(0), params)
    parts = [jax.tree.map(lambda x, s=s: x[s], batch) for s in (slice(0, 5), slice(5, 12))]

    @jax.jit
    def both(v):
        sums, counts = zip(*(hessian_product(total, params, part, v) for part in parts), strict=True)
        return tree.add(*sums), sum(counts), Hessian()(model, params, batch)(v)

    summed, count, whole = both(v)
    assert float(count) == pytest.approx(float(batch.loss_mask.sum()), rel=1e-12)
    np.testing.assert_allclose(flat(summed) / count, flat(whole), atol=1e-12)


@pytest.fixture(scope="module")
def decoder_products():
    """One vector through the products of one decoder on one batch, for every way to run them."""
    config = models.DecoderConfig(
        vocab_size=16, hidden_size=8, intermediate_size=12, num_attention_heads=2, num_hidden_layers=2
    )
    found = {}

    def add(way, params, recipes, run):
        v = tree.normal_like(jax.random.key(1), params)
        batch = token_batch(np.random.default_rng(0), 4, length=6, vocab=16, prompt=2)
        products = jax.jit(lambda v: {name: flat(recipe(run, params, batch)(v)) for name, recipe in recipes.items()})
        found.update({(name, way): product for name, product in products(v).items()})

    with jax.enable_x64(True):
        both = {"hessian": Hessian(), "gauss_newton": GaussNewton()}
        for remat in ("none", "dots", "full"):
            model, params = models.init(config, jax.random.key(0), dtype=jnp.float64, remat=remat)
            add(remat, params, both, model)
        add("unrolled", params, both, ju.Model(logits=lambda p, tokens: unrolled_logits(model, p, tokens)))
        model, _ = models.init(config, jax.random.key(0), dtype=jnp.float64)
        add("in twos", params, {"hessian": Hessian(2), "gauss_newton": GaussNewton(2)}, model)
        add("linearised one by one", params, {"hessian": Hessian(1, "linearize")}, model)
    return found


def unrolled_logits(model, params, tokens):
    """The decoder with a Python loop over its layers in the place of the scan."""
    scans = []

    def python_scan(f, carry, xs):
        scans.append(1)
        for i in range(jax.tree.leaves(xs)[0].shape[0]):
            carry, _ = f(carry, jax.tree.map(lambda x, i=i: x[i], xs))
        return carry, None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.lax, "scan", python_scan)
        logits = model.logits(params, tokens)
    assert scans
    return logits


WAYS = ("unrolled", "dots", "full", "in twos", "linearised one by one")


@pytest.mark.parametrize("way", WAYS)
def test_unrolled_scanned_rematerialised_and_split_are_one(decoder_products, way):
    for name in ("hessian", "gauss_newton"):
        expected = decoder_products[name, "none"]
        scale = float(jnp.abs(expected).max())
        assert scale > 0
        if (name, way) in decoder_products:
            np.testing.assert_allclose(decoder_products[name, way], expected, rtol=0, atol=1e-12 * scale, err_msg=name)
    assert ("hessian", way) in decoder_products


@pytest.mark.parametrize("make", [Hessian, GaussNewton])
def test_a_split_batch_differs_by_f32_rounding_only(make):
    with jax.enable_x64(False):
        model, params = mlp()
        batch = labelled(24)
        v = tree.normal_like(jax.random.key(0), params)
        products = jax.jit(lambda v: [flat(make(m)(model, params, batch)(v)) for m in (None, 8, 3, 1)])(v)
        for other in products[1:]:
            np.testing.assert_allclose(other, products[0], rtol=0, atol=1e-6 * float(jnp.abs(products[0]).max()))


@pytest.mark.parametrize("microbatch", [None, 4])
def test_gauss_newton_is_jacobian_sandwich(microbatch):
    model, params, batch = dense_problem()
    logits = lambda v: model.logits(unflatten_like(v, params), batch.inputs)
    J = jax.jacobian(logits)(flat(params))
    p = jax.nn.softmax(logits(flat(params)))
    inner = jnp.einsum("bi,ij->bij", p, jnp.eye(3)) - p[:, :, None] * p[:, None, :]
    w = batch.loss_mask
    expected = jnp.einsum("b,bid,bij,bje->de", w, J, inner, J) / w.sum()
    G = GaussNewton(microbatch)(model, params, batch)
    assert G.psd
    np.testing.assert_allclose(operators.to_dense(G), expected, atol=1e-12)


def test_gauss_newton_equals_hessian_where_the_network_is_linear():
    model, params = mlp(sizes=(6, 3), dtype=jnp.float64)
    batch = labelled(12, dtype=jnp.float64)
    G = operators.to_dense(GaussNewton()(model, params, batch))
    np.testing.assert_allclose(G, operators.to_dense(Hessian()(model, params, batch)), atol=1e-12)


def test_gauss_newton_is_the_second_derivative_of_kl():
    model, params, batch = dense_problem()
    before = model.logits(params, batch.inputs)

    def kl(v):
        after = model.logits(unflatten_like(v, params), batch.inputs)
        total = jnp.sum(jax.nn.softmax(before) * (jax.nn.log_softmax(before) - jax.nn.log_softmax(after)), -1)
        return jnp.sum(batch.loss_mask * total) / batch.loss_mask.sum()

    G = operators.to_dense(GaussNewton()(model, params, batch))
    np.testing.assert_allclose(G, jax.hessian(kl)(flat(params)), atol=1e-10)


@pytest.mark.parametrize(
    "make",
    [
        Hessian(),
        Hessian(mode="linearize"),
        GaussNewton(),
        EmpiricalFisher(),
        EmpiricalFisher(stored=False),
        TrueFisher(),
    ],
)
def test_products_are_symmetric_and_f32_in_bf16(make):
    model, params = mlp(dtype=jnp.bfloat16)
    batch = labelled(8, dtype=jnp.bfloat16)
    u, v = tree.normal_like(jax.random.key(0), params), tree.normal_like(jax.random.key(1), params)
    Au, Av = jax.jit(lambda: [make(model, params, batch)(x) for x in (u, v)])()
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(Au))
    scale = float(tree.norm(Au) * tree.norm(v))
    assert abs(float(tree.vdot(Au, v) - tree.vdot(u, Av))) < 0.05 * scale


def test_positions_change_nothing_but_the_cost():
    rng = np.random.default_rng(0)
    batch = token_batch(rng, 4)
    model = ju.Model(logits=lambda p, tokens: p["e"][tokens] @ p["h"])
    params = {"e": jnp.asarray(rng.normal(size=(32, 5))), "h": jnp.asarray(rng.normal(size=(5, 32)))}
    gathered = mean_nll(model, params, batch)
    assert float(gathered) == pytest.approx(float(mean_nll(model, params, batch._replace(positions=None))), abs=1e-12)


def test_uneven_microbatch_is_refused():
    model, params, batch = dense_problem()
    with pytest.raises(ValueError, match="12 examples does not divide into microbatches of 5"):
        Hessian(5)(model, params, batch)(params)


def test_restriction_never_leaves_the_block():
    model, params, batch = dense_problem()
    mask = [{"w": True, "b": False}, {"w": False, "b": True}]
    A = operators.restricted(Hessian()(model, params, batch), mask)
    out = A(jax.tree.map(jnp.ones_like, params))
    assert float(jnp.abs(out[0]["b"]).max()) == 0.0
    assert float(jnp.abs(out[0]["w"]).max()) > 0.0


def halves(batch):
    return (jax.tree.map(lambda x: x[:4], batch), jax.tree.map(lambda x: x[4:], batch))


def test_removing_a_data_set_from_the_whole_leaves_the_rest_exactly():
    """`H_r = (n H - n_f H_f) / n_r`: curvature of a retain set that is never looked at."""
    model, params, batch = dense_problem()
    forget, retain = halves(batch)
    H = lambda b: Hessian()(model, params, b)
    n, n_f = float(batch.loss_mask.sum()), float(forget.loss_mask.sum())
    pooled = operators.pooled((H(batch), n), (H(forget), -n_f))
    expected = operators.to_dense(H(retain))
    np.testing.assert_allclose(operators.to_dense(pooled), expected, atol=1e-12)
    union = operators.pooled((H(retain), n - n_f), (H(forget), n_f))
    np.testing.assert_allclose(operators.to_dense(union), operators.to_dense(H(batch)), atol=1e-12)
    with pytest.raises(ValueError, match=r"counts add to 0"):
        operators.pooled((H(batch), 1), (H(forget), -1))


def test_a_difference_of_data_sets_is_that_of_their_matrices():
    model, params, batch = dense_problem()
    forget, retain = halves(batch)
    H_f, H_r = (Hessian()(model, params, b) for b in (forget, retain))
    D = operators.difference(H_r, H_f, 0.3)
    expected = operators.to_dense(H_r) - 0.3 * operators.to_dense(H_f)
    np.testing.assert_allclose(operators.to_dense(D), expected, atol=1e-13)
    np.testing.assert_allclose(operators.to_dense(D.damped(2.0)), expected + 2.0 * jnp.eye(len(expected)), atol=1e-13)


def test_semidefiniteness_is_claimed_only_where_it_is_known():
    like = jnp.zeros(2)
    A, B = operators.identity(like), operators.LinearOperator(lambda v: -v, like)
    assert operators.scaled(2.0, A).psd
    assert not operators.scaled(-2.0, A).psd
    assert not operators.scaled(2.0, B).psd
    assert not operators.scaled(jnp.float32(2.0), A).psd  # a traced factor has no sign
    assert operators.scaled(jnp.float32(2.0), A, psd=True).psd
    assert operators.summed(A, A).psd
    assert not operators.summed(A, B).psd
    assert not operators.difference(A, A).psd
    assert operators.pooled((A, 3), (A, 4)).psd
    assert not operators.pooled((A, 3), (A, -1)).psd


def test_a_power_without_closed_form_names_the_remedy():
    model, params, batch = dense_problem()
    with pytest.raises(TypeError, match="solvers.cg"):
        Hessian()(model, params, batch).power(-1.0)
