"""Every operator against a dense float64 oracle, and by the identities that define it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import flat, labelled, mlp, token_batch, unflatten_like

import jaxunlearn as ju
from jaxunlearn import losses, operators, tree
from jaxunlearn.curvature import EmpiricalFisher, GaussNewton, Hessian, empirical_fisher


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def mean_nll(model, params, batch):
    total, count = losses.nll(model, params, batch)
    return total / count


def dense_hessian(model, params, batch):
    return jax.hessian(lambda v: mean_nll(model, unflatten_like(v, params), batch))(flat(params))


def problem(activation=jnp.tanh):
    model, params = mlp(activation=activation, dtype=jnp.float64)
    return model, params, labelled(12, dtype=jnp.float64)


@pytest.mark.parametrize("microbatch", [None, 4])
def test_hessian_is_the_dense_one(microbatch):
    model, params, batch = problem()
    H = operators.to_dense(Hessian(microbatch)(model, params, batch))
    np.testing.assert_allclose(H, dense_hessian(model, params, batch), atol=1e-12)


@pytest.mark.parametrize("microbatch", [None, 4])
def test_gauss_newton_is_jacobian_sandwich(microbatch):
    model, params, batch = problem()
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
    model, params, batch = problem()
    before = model.logits(params, batch.inputs)

    def kl(v):
        after = model.logits(unflatten_like(v, params), batch.inputs)
        total = jnp.sum(jax.nn.softmax(before) * (jax.nn.log_softmax(before) - jax.nn.log_softmax(after)), -1)
        return jnp.sum(batch.loss_mask * total) / batch.loss_mask.sum()

    G = operators.to_dense(GaussNewton()(model, params, batch))
    np.testing.assert_allclose(G, jax.hessian(kl)(flat(params)), atol=1e-10)


def per_example_rows(model, params, batch):
    one = lambda v, i: mean_nll(model, unflatten_like(v, params), jax.tree.map(lambda x: x[i : i + 1], batch))
    return jnp.stack([jax.grad(one)(flat(params), i) for i in range(len(batch.labels))])


@pytest.mark.parametrize("p", [-1.0, -0.25, 0.5, 1.0])
@pytest.mark.parametrize("damping", [1e-3, 1.0])
def test_dual_form_is_the_dense_power(p, damping):
    model, params, batch = problem()
    rows = per_example_rows(model, params, batch)
    dense = rows.T @ rows / len(rows) + damping * jnp.eye(rows.shape[1])
    values, vectors = jnp.linalg.eigh(dense)
    expected = (vectors * values**p) @ vectors.T
    F = EmpiricalFisher(None)(model, params, batch).damped(damping)
    np.testing.assert_allclose(operators.to_dense(F), dense, atol=1e-12)
    np.testing.assert_allclose(operators.to_dense(F.power(p)), expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max())


def test_dual_inverse_is_the_woodfisher_recursion():
    model, params, batch = problem()
    rows, lam = per_example_rows(model, params, batch), 1e-2
    m = len(rows)
    inverse = jnp.eye(rows.shape[1]) / lam
    for g in rows:
        Fg = inverse @ g
        inverse = inverse - jnp.outer(Fg, Fg) / (m + g @ Fg)
    F = EmpiricalFisher(None)(model, params, batch).damped(lam)
    np.testing.assert_allclose(operators.to_dense(F.power(-1.0)), inverse, rtol=1e-8, atol=1e-8)


def test_span_share_tells_the_protected_part():
    model, params, batch = problem()
    F = EmpiricalFisher(5)(model, params, batch)
    inside = jax.tree.map(lambda g: g[0] - 2 * g[3], F.rows)
    assert float(F.span_share(inside)) == pytest.approx(1.0, abs=1e-8)
    rows = per_example_rows(model, params, batch)[:5]
    q, _ = jnp.linalg.qr(rows.T)
    v = np.random.default_rng(0).normal(size=rows.shape[1])
    outside = v - q @ (q.T @ v)
    assert float(F.span_share(unflatten_like(jnp.asarray(outside), params))) == pytest.approx(0.0, abs=1e-8)
    assert float(F.span_share(unflatten_like(jnp.asarray(v), params))) == pytest.approx(
        float(jnp.sum((q.T @ v) ** 2) / (v @ v)), abs=1e-8
    )


def test_samples_limits_the_rows():
    model, params, batch = problem()
    F = empirical_fisher(lambda p, b: losses.nll(model, p, b), params, batch, samples=3)
    assert jax.tree.leaves(F.rows)[0].shape[0] == 3


@pytest.mark.parametrize("make", [Hessian(), GaussNewton(), EmpiricalFisher()])
def test_products_are_symmetric_and_f32_in_bf16(make):
    model, params = mlp(dtype=jnp.bfloat16)
    A = make(model, params, labelled(8, dtype=jnp.bfloat16))
    u, v = tree.normal_like(jax.random.key(0), params), tree.normal_like(jax.random.key(1), params)
    Au = A(u)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(Au))
    scale = float(tree.norm(Au) * tree.norm(v))
    assert abs(float(tree.vdot(Au, v) - tree.vdot(u, A(v)))) < 0.05 * scale


def test_positions_change_nothing_but_the_cost():
    rng = np.random.default_rng(0)
    batch = token_batch(rng, 4)
    model = ju.Model(logits=lambda p, tokens: p["e"][tokens] @ p["h"])
    params = {"e": jnp.asarray(rng.normal(size=(32, 5))), "h": jnp.asarray(rng.normal(size=(5, 32)))}
    gathered = mean_nll(model, params, batch)
    assert float(gathered) == pytest.approx(float(mean_nll(model, params, batch._replace(positions=None))), abs=1e-12)


def test_uneven_microbatch_is_refused():
    model, params, batch = problem()
    with pytest.raises(ValueError, match="12 examples does not divide into microbatches of 5"):
        Hessian(5)(model, params, batch)(params)


def test_restriction_never_leaves_the_block():
    model, params, batch = problem()
    mask = [{"w": True, "b": False}, {"w": False, "b": True}]
    A = operators.restricted(Hessian()(model, params, batch), mask)
    out = A(jax.tree.map(jnp.ones_like, params))
    assert float(jnp.abs(out[0]["b"]).max()) == 0.0
    assert float(jnp.abs(out[0]["w"]).max()) > 0.0


def test_a_power_without_closed_form_names_the_remedy():
    model, params, batch = problem()
    with pytest.raises(TypeError, match="solvers.cg"):
        Hessian()(model, params, batch).power(-1.0)
