"""The Kronecker operator: powers, damping, accumulation, subsets, and how solvers use it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kronecker_cases import assert_same, blocks, lm, problem, tokens
from toys import flat, labelled, mlp

from jaxunlearn import operators, sharding, solvers, tree
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


def test_microbatches_change_nothing():
    (model, params), batch = lm(tied=True), tokens()
    v = tree.normal_like(jax.random.key(0), params)
    assert_same(EKFAC(microbatch=2)(model, params, batch)(v), EKFAC()(model, params, batch)(v))


def test_streamed_batches_add_up():
    (model, params), batch = lm(tied=True), tokens()
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
    factors = kronecker_factors(model, params, batch, EKFAC())
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
    whole = from_factors(kronecker_factors(model, params, batch, EKFAC()), params)
    v = tree.normal_like(jax.random.key(0), params)
    out = A(v)
    np.testing.assert_allclose(out["layers"]["w"], whole(v)["layers"]["w"], atol=1e-12)
    assert float(jnp.abs(out["embed"]).max()) == 0.0
    assert float(jnp.abs(A.power(-1.0)(v)["embed"]).max()) == 0.0
    np.testing.assert_allclose(A.damped(2.0).power(-1.0)(v)["embed"], v["embed"] / 2, atol=1e-12)
    assert set(kronecker_factors(model, params, batch, KFAC(only=("layers/w",))).sums) == {"layers/w"}


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
def test_a_hand_written_model_on_eight_devices_equals_one(explicit):
    """With biases outside of taps and weights gathered before use (FSDP, spelt out)."""
    model, params = mlp(sizes=(6, 8, 4), dtype=jnp.float64)
    batch = labelled(8, classes=4, dtype=jnp.float64)
    v = tree.normal_like(jax.random.key(0), params)
    mesh = sharding.make_mesh(2, 2, 2, explicit=explicit)
    here = lambda x, axes: jax.device_put(x, sharding.named_sharding(mesh, axes[: x.ndim], x.shape))
    split, direction = (jax.tree.map(lambda x: here(x, ("embed", "mlp")), x) for x in (params, v))
    gather = jax.sharding.reshard if explicit else jax.lax.with_sharding_constraint
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    twin = model._replace(logits=lambda p, x: model.logits(jax.tree.map(lambda w: gather(w, whole), p), x))
    for recipe in (KFAC(), EKFAC(microbatch=4)):
        run = jax.jit(lambda model, p, b, v, r=recipe: r(model, p, b).damped(0.1).power(-1.0)(v), static_argnums=0)
        expected = run(model, params, batch, v)
        got = run(twin, split, sharding.shard_batch(batch, mesh), direction)
        np.testing.assert_allclose(flat(jax.device_get(got)), flat(expected), atol=1e-10)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(split), strict=True):
            assert a.sharding.is_equivalent_to(b.sharding, a.ndim), f"{a.sharding} is not {b.sharding}"
