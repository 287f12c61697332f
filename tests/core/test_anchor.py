"""An anchor is the gradient of its penalty; with stored factors it holds a model that has no retain set."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import flat, gathering, labelled, mlp, shard, unlearn_batch

import jaxunlearn as ju
from jaxunlearn import methods, operators
from jaxunlearn.curvature import EKFAC, GaussNewton, Stored
from jaxunlearn.curvature.kronecker import eigendecompose, kronecker_factors, second_moments
from jaxunlearn.methods import Method
from jaxunlearn.objectives import NLL, CounterfactualKL, Objective
from jaxunlearn.sharding import make_mesh
from jaxunlearn.transforms import anchor_by_curvature, held_at

STRENGTH, RATE = 5.0, 0.05
step = jax.jit(ju.unlearn_step, static_argnums=(0, 1))


@pytest.fixture(scope="module")
def problem():
    """A toy model, a batch with references, and the softened factors of its retain part."""
    model, params = mlp()
    batch = unlearn_batch(model, params)
    return model, params, batch, eigen_of(model, params, batch.retain)


def eigen_of(model, params, retain):
    recipe = EKFAC(temperature=3.0)
    eigen = eigendecompose(kronecker_factors(model, params, retain, recipe), params)
    return eigen.with_moments(second_moments(model, params, retain, recipe, eigen.vectors))


def walk(method, model, params, batch, steps):
    state, infos = ju.init(method, model, params, key=jax.random.key(0)), []
    for _ in range(steps):
        state, info = step(method, model, state, batch)
        infos.append(info)
    return state, infos


def test_steps_descend_the_objective_and_its_penalty_in_dense_algebra(problem):
    model, params, batch, eigen = problem
    alone = batch._replace(retain=None, curvature=eigen)
    method = methods.anchored_matching(strength=STRENGTH, factors="-", optimizer=optax.sgd(RATE))
    got, _ = walk(method, model, params, alone, 3)
    F = np.asarray(operators.to_dense(Stored()(model, params, eigen)), np.float64)
    start = theta = np.asarray(flat(params), np.float64)
    unravel = jax.flatten_util.ravel_pytree(params)[1]
    for _ in range(3):
        g = flat(Objective(((1.0, CounterfactualKL()),)).value_and_grad(model, unravel(jnp.float32(theta)), alone)[1])
        theta = theta - RATE * (np.asarray(g) + STRENGTH * F @ (theta - start))
    np.testing.assert_allclose(flat(got.params), theta, atol=1e-5 * np.abs(theta - start).max())
    free = theta - start
    assert STRENGTH * np.linalg.norm(F @ free) > 1e-2 * np.linalg.norm(g)  # the penalty has a say in this test


def test_steps_in_the_metric_of_the_factors_in_dense_algebra(problem):
    """d = -(F + damping mean(F) I by block)^-1 (g + strength F (theta - theta_0)), shortened to d.F d / 2 <= max_kl."""
    model, params, batch, eigen = problem
    alone, max_kl, damping = batch._replace(retain=None, curvature=eigen), 2e-4, 0.5
    method = methods.anchored_matching(strength=STRENGTH, factors="-", max_kl=max_kl, damping=damping)
    got, infos = walk(method, model, params, alone, 3)
    F = np.asarray(operators.to_dense(Stored()(model, params, eigen)), np.float64)
    damped = np.asarray(operators.to_dense(Stored()(model, params, eigen).damped_by_mean(damping)), np.float64)
    start = theta = np.asarray(flat(params), np.float64)
    unravel = jax.flatten_util.ravel_pytree(params)[1]
    shortened = []
    for _ in range(3):
        g = flat(Objective(((1.0, CounterfactualKL()),)).value_and_grad(model, unravel(jnp.float32(theta)), alone)[1])
        d = -np.linalg.solve(damped, np.asarray(g) + STRENGTH * F @ (theta - start))
        shortened.append(min(1.0, np.sqrt(2 * max_kl / (d @ F @ d))))
        theta = theta + shortened[-1] * d
    np.testing.assert_allclose(flat(got.params), theta, atol=1e-4 * np.abs(theta - start).max())
    assert min(shortened) < 1.0  # the bound has a say in this test
    assert all(info.curvature is not None for info in infos)


def test_the_minimum_on_a_quadratic_is_that_of_newton():
    """minimise g.d + strength/2 d.A d: at the minimum d = -A^-1 g / strength."""
    with jax.enable_x64(True):
        model, params = mlp(sizes=(3, 3), dtype=jnp.float64)
        retain = labelled(20, features=3, dtype=jnp.float64)
        A = operators.to_dense(GaussNewton()(model, params, retain))
        A = A + 0.1 * np.eye(len(A))
        unravel = jax.flatten_util.ravel_pytree(params)[1]
        matrix = lambda model, at, data: operators.LinearOperator(
            lambda v: unravel(jnp.asarray(A) @ jax.flatten_util.ravel_pytree(v)[0]), at, psd=True
        )
        g = np.linspace(-1.0, 1.0, len(A))
        transform = optax.chain(
            anchor_by_curvature(matrix, strength=4.0, metric=(("forget", 1.0),)), optax.sgd(0.2 / np.linalg.norm(A, 2))
        )
        batch = ju.UnlearnBatch(retain)

        def body(_, carry):
            params, state = carry
            updates, state = transform.update(unravel(jnp.asarray(g)), state, params, model=model, batch=batch)
            return optax.apply_updates(params, updates), state

        end, _ = jax.jit(lambda c: jax.lax.fori_loop(0, 2000, body, c))((params, transform.init(params)))
        np.testing.assert_allclose(flat(end) - flat(params), -np.linalg.solve(A, g) / 4.0, rtol=1e-6)


def test_an_anchor_can_hold_to_another_place(problem):
    """strength F (theta - theta_0), F the Gauss-Newton matrix here, where theta_0 is not where the state was begun."""
    model, params, batch, _ = problem
    elsewhere = jax.tree.map(lambda p: p + 0.01, params)
    anchor = anchor_by_curvature(GaussNewton(), strength=3.0, metric=(("retain", 1.0),))
    chain = optax.chain(anchor, optax.sgd(1.0))
    state = held_at(chain.init(params), elsewhere)
    nothing = jax.tree.map(jnp.zeros_like, params)
    updates, _ = chain.update(nothing, state, params, model=model, batch=batch)
    A = operators.to_dense(GaussNewton()(model, params, batch.retain))
    np.testing.assert_allclose(flat(updates), -3.0 * A @ (flat(params) - flat(elsewhere)), rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="no anchor in this state"):
        held_at(optax.sgd(1.0).init(params), elsewhere)


def test_what_is_kept_moves_less_than_without_the_anchor(problem):
    model, params, batch, eigen = problem
    alone = batch._replace(curvature=eigen)  # retain for the certificate alone
    free = Method("free", Objective(((1.0, CounterfactualKL()),)), optax.with_extra_args_support(optax.sgd(0.1)))
    held = methods.anchored_matching(strength=STRENGTH, factors="-", optimizer=optax.sgd(0.1))
    nll = lambda state: float(Objective(((1.0, NLL("retain")),)).value(model, state.params, alone))
    before = float(Objective(((1.0, NLL("retain")),)).value(model, params, alone))
    moved = [abs(nll(walk(method, model, params, alone, 40)[0]) - before) for method in (free, held)]
    assert moved[1] < 0.5 * moved[0]


def test_without_stored_factors_the_retain_batch_gives_them(problem):
    model, params, batch, eigen = problem
    options = {"strength": STRENGTH, "optimizer": optax.sgd(RATE)}
    taken, _ = walk(methods.anchored_matching(**options), model, params, batch, 1)
    stored, _ = walk(
        methods.anchored_matching(factors="-", **options), model, params, batch._replace(curvature=eigen), 1
    )
    np.testing.assert_array_equal(flat(taken.params), flat(stored.params))  # nothing has moved yet: no penalty
    again, infos = walk(methods.anchored_matching(**options), model, params, batch, 2)
    assert all(bool(info.applied) for info in infos)
    assert np.abs(flat(again.params) - flat(taken.params)).max() > 0


def test_bad_numbers_and_a_missing_store_are_refused(problem):
    model, params, batch, _ = problem
    for options in ({"strength": 0.0}, {"retain_weight": -1.0}, {"learning_rate": 0.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            methods.anchored_matching(**options)
    with pytest.raises(ValueError, match="one of them"):
        methods.anchored_matching(max_kl=1e-4, optimizer=optax.sgd(RATE))
    with pytest.raises(ValueError, match="curvature.load"):
        walk(methods.anchored_matching(factors="-"), model, params, batch, 1)


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
@pytest.mark.parametrize("steps", [{"optimizer": optax.sgd(RATE)}, {"max_kl": 1e-3}], ids=["sgd", "metric"])
def test_eight_devices_equal_one(problem, steps, explicit):
    model, params, batch, eigen = problem
    method = methods.anchored_matching(strength=STRENGTH, factors="-", **steps)
    expected, _ = walk(method, model, params, batch._replace(curvature=eigen), 2)
    mesh = make_mesh(data=2, fsdp=2, tensor=2, explicit=explicit)
    spread, parts = shard(params, batch, mesh)
    if explicit:
        model = model._replace(logits=gathering(model.logits, mesh))
    parts = parts._replace(curvature=eigen_of(model, spread, parts.retain))
    got, infos = walk(method, model, spread, parts, 2)
    assert all(bool(info.applied) for info in infos)
    np.testing.assert_allclose(flat(jax.device_get(got.params)), flat(expected.params), atol=2e-5)
    start = got.opt_state[0].start
    for new, old, at in zip(*map(jax.tree.leaves, (got.params, spread, start)), strict=True):
        assert new.sharding.is_equivalent_to(old.sharding, old.ndim)
        assert at.sharding.is_equivalent_to(old.sharding, old.ndim)
