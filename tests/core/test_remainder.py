"""Steps of bfloat16 parameters add up as those of a float32 copy would."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import flat, gathering, labelled, mlp, shard

import jaxunlearn as ju
from jaxunlearn import methods, remainder, tree
from jaxunlearn.sharding import make_mesh
from jaxunlearn.types import Model

RATE = 1e-4  # a step that bfloat16 rounds away for every weight above .05
METHOD = methods.grad_diff(optimizer=optax.adam(RATE))._replace(certify=False)


def steps(model, params, batch, count):
    step = jax.jit(ju.unlearn_step, static_argnums=(0, 1))
    state = ju.init(METHOD, model, params, key=jax.random.key(0))
    for _ in range(count):
        state, _ = step(METHOD, model, state, batch)
    return state


def rounded(model, params):
    """The model that computes with bfloat16 parameters, as a function of float32 ones."""
    return Model(logits=lambda p, x: model.logits(jax.tree.map(jnp.bfloat16, p), x)), tree.to_vector(params)


def test_sums_are_those_of_float32_whatever_is_added():
    rng = np.random.default_rng(0)
    p = jnp.asarray(rng.normal(size=4000) * 10.0 ** rng.integers(-20, 20, 4000), jnp.bfloat16)
    ties = np.arange(4000, dtype=np.uint32) << 20 | 0x8000  # halfway between two bfloat16 numbers
    x, kept = np.asarray(p, np.float32), remainder.start(p)
    for scale in (0.0, 1e-9, 1e-5, 1e-3, -1e-3, 0.5, -1.0, 3.0):
        update = np.float32(scale) * np.abs(x) * rng.random(4000, np.float32)
        x = x + update
        p, kept = jax.jit(remainder.apply_updates)(p, kept, update)
        np.testing.assert_array_equal(np.asarray(remainder._join(p, kept)), x)
        half_a_unit = 2.0**-8 * np.abs(x) + 1e-45
        assert np.all(np.abs(np.asarray(p, np.float32) - x) <= half_a_unit)
    for exact in (ties.view(np.float32), -ties.view(np.float32)):
        np.testing.assert_array_equal(np.asarray(remainder._join(*remainder._split(exact))), exact)


def test_only_bfloat16_parameters_have_one():
    params = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(3), "c": jnp.ones(3, jnp.float16)}
    kept = remainder.start(params)
    assert kept["a"].dtype == jnp.int16
    assert (kept["b"], kept["c"]) == (None, None)
    after, kept = remainder.apply_updates(params, kept, jax.tree.map(lambda p: jnp.full(3, 1e-3), params))
    assert [leaf.dtype.name for leaf in jax.tree.leaves(after)] == ["bfloat16", "float32", "float16"]
    assert float(after["b"][0]) == np.float32(1) + np.float32(1e-3)
    assert remainder.start({"b": params["b"]}) is None


def test_unlearning_in_bfloat16_goes_the_way_of_a_float32_copy():
    model, params = mlp(dtype=jnp.bfloat16)
    batch = ju.UnlearnBatch(labelled(8, 1), labelled(16, 2))
    state = steps(model, params, batch, 40)
    x = flat(tree.to_vector(steps(*rounded(model, params), batch, 40).params))
    joined = flat(jax.tree.map(remainder._join, state.params, state.remainder))
    way = np.abs(x - flat(tree.to_vector(params)))
    assert np.median(way) > 20 * RATE
    assert np.max(np.abs(joined - x)) < 0.05 * np.max(way)


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
def test_eight_devices_equal_one(explicit):
    model, params = mlp(dtype=jnp.bfloat16)
    batch = ju.UnlearnBatch(labelled(8, 1), labelled(16, 2))
    alone = steps(model, params, batch, 3)
    mesh = make_mesh(data=2, fsdp=2, tensor=2, explicit=explicit)
    spread, batch = shard(params, batch, mesh)
    if explicit:
        model = model._replace(logits=gathering(model.logits, mesh))
    state = steps(model, spread, batch, 3)
    joined = [jax.tree.map(remainder._join, *jax.device_get((s.params, s.remainder))) for s in (state, alone)]
    np.testing.assert_allclose(flat(joined[0]), flat(joined[1]), atol=RATE)
    for kept, leaf in zip(jax.tree.leaves(state.remainder), jax.tree.leaves(spread), strict=True):
        assert kept.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)
