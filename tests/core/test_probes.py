"""The determinism probe passes what only rounds differently and refuses what is another matrix each time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import labelled, mlp

import jaxunlearn as ju
from jaxunlearn.curvature import GaussNewton, Hessian, check_deterministic, streamed


def problem(dtype=jnp.float32):
    model, params = mlp(sizes=(3, 4, 3), dtype=dtype)
    batches = [labelled(4, seed, features=3, dtype=dtype) for seed in range(6)]
    return model, params, batches


def test_one_matrix_gives_zero():
    model, params, batches = problem()
    assert check_deterministic(streamed(Hessian(), model, params, batches)) == 0.0
    assert check_deterministic(GaussNewton()(model, params, batches[0])) == 0.0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_same_batches_in_another_order_are_only_rounding(dtype):
    model, params, batches = problem(dtype)
    rng = np.random.default_rng(0)
    shuffled = lambda: iter([batches[i] for i in rng.permutation(6)])
    gap = check_deterministic(streamed(Hessian(), model, params, shuffled))
    assert gap < 1e-5


def test_examples_regrouped_in_f32_are_only_rounding():
    model, params, batches = problem()
    rng = np.random.default_rng(0)
    everything = jax.tree.map(lambda *x: jnp.concatenate(x), *batches)

    def regrouped():
        order = rng.permutation(24)
        return iter([jax.tree.map(lambda x, i=i: x[order[i : i + 4]], everything) for i in range(0, 24, 4)])

    assert 0.0 < check_deterministic(streamed(Hessian(), model, params, regrouped)) < 1e-5


def test_another_sample_in_each_pass_is_refused():
    model, params, _ = problem()
    seeds = iter(range(100))
    fresh = lambda: iter([labelled(4, next(seeds), features=3)])
    with pytest.raises(ValueError, match="differ by .* of their size.*dropout"):
        check_deterministic(streamed(Hessian(), model, params, fresh))


@pytest.mark.parametrize("recipe", [Hessian(), GaussNewton()])
def test_dropout_that_is_left_on_is_refused(recipe):
    model, params, batches = problem()
    rng = np.random.default_rng(0)

    def noisy(p, x):  # draws anew whenever it is traced, as a layer with a counter of its own does
        keep = jnp.asarray(rng.random(x.shape) < 0.9)
        return model.logits(p, jnp.where(keep, x, 0.0))

    A = lambda v: recipe(ju.Model(logits=noisy), params, batches[0])(v)
    with pytest.raises(ValueError, match="not one matrix"):
        check_deterministic(ju.operators.LinearOperator(A, params))


def test_nan_is_refused_and_jit_is_explained():
    model, params, batches = problem()
    broken = ju.operators.LinearOperator(lambda v: jax.tree.map(lambda x: x * jnp.nan, v), params)
    with pytest.raises(ValueError, match="differ by nan"):
        check_deterministic(broken)
    with pytest.raises(ValueError, match="call it outside"):
        jax.jit(lambda p: check_deterministic(Hessian()(model, p, batches[0])))(params)
