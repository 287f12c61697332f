"""The dual form of the empirical Fisher matrix: dense powers, the WoodFisher recursion, what lies in its span."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import dense_problem, flat, mean_nll, unflatten_like

from jaxunlearn import losses, operators
from jaxunlearn.curvature import EmpiricalFisher, empirical_fisher


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def per_example_rows(model, params, batch):
    one = lambda v, i: mean_nll(model, unflatten_like(v, params), jax.tree.map(lambda x: x[i : i + 1], batch))
    return jnp.stack([jax.grad(one)(flat(params), i) for i in range(len(batch.labels))])


@pytest.mark.parametrize("p", [-1.0, -0.25, 0.5, 1.0])
@pytest.mark.parametrize("damping", [1e-3, 1.0])
def test_dual_form_is_the_dense_power(p, damping):
    model, params, batch = dense_problem()
    rows = per_example_rows(model, params, batch)
    dense = rows.T @ rows / len(rows) + damping * jnp.eye(rows.shape[1])
    values, vectors = jnp.linalg.eigh(dense)
    expected = (vectors * values**p) @ vectors.T
    F = EmpiricalFisher(None)(model, params, batch).damped(damping)
    np.testing.assert_allclose(operators.to_dense(F), dense, atol=1e-12)
    np.testing.assert_allclose(operators.to_dense(F.power(p)), expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max())


def test_dual_inverse_is_the_woodfisher_recursion():
    model, params, batch = dense_problem()
    rows, lam = per_example_rows(model, params, batch), 1e-2
    m = len(rows)
    inverse = jnp.eye(rows.shape[1]) / lam
    for g in rows:
        Fg = inverse @ g
        inverse = inverse - jnp.outer(Fg, Fg) / (m + g @ Fg)
    F = EmpiricalFisher(None)(model, params, batch).damped(lam)
    np.testing.assert_allclose(operators.to_dense(F.power(-1.0)), inverse, rtol=1e-8, atol=1e-8)


def test_span_share_tells_the_protected_part():
    model, params, batch = dense_problem()
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
    model, params, batch = dense_problem()
    F = empirical_fisher(lambda p, b: losses.nll(model, p, b), params, batch, samples=3)
    assert jax.tree.leaves(F.rows)[0].shape[0] == 3
