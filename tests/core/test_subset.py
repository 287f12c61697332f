"""Curvature of some parameters: the block of the whole, without paying for the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import dense_problem, flat, labelled, mlp

import jaxunlearn as ju
from jaxunlearn import operators
from jaxunlearn.curvature import EmpiricalFisher, GaussNewton, Hessian, combine, partition, subset


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


SELECTIONS = {"prefix": ("1",), "leaf": (0, "b"), "predicate": lambda path: path.endswith("w")}


@pytest.mark.parametrize("recipe", [Hessian(), GaussNewton(), EmpiricalFisher(None)])
@pytest.mark.parametrize("name", SELECTIONS)
def test_a_subset_has_the_block_of_the_whole(name, recipe):
    model, params, batch = dense_problem()
    small, chosen = subset(model, params, SELECTIONS[name])
    paths = [
        jax.tree_util.keystr(k, simple=True, separator="/") for k, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    leaves, structure = jax.tree.flatten(params)
    inside = jax.tree.unflatten(
        structure, [jnp.full(x.shape, path in chosen) for x, path in zip(leaves, paths, strict=True)]
    )
    inside = np.asarray(flat(inside))
    assert 0 < inside.sum() < inside.size
    whole = operators.to_dense(recipe(model, params, batch))
    block = operators.to_dense(recipe(small, chosen, batch))
    # Chosen leaves lie in the order of their sorted paths, which here is also the order of the whole.
    np.testing.assert_allclose(block, whole[np.ix_(inside, inside)], atol=1e-12)


def test_a_subset_never_pays_for_the_rest():
    with jax.enable_x64(False):
        model, params = mlp(sizes=(64, 64, 64, 64, 64))
        batch = labelled(64, features=64, classes=64)

        def flops(recipe, select):
            def product(params, v):
                small, chosen = subset(model, params, select)
                return recipe(small, chosen, batch)({path: v[path] for path in chosen})

            v = partition(params, lambda path: True)[0]
            return jax.jit(product).lower(params, v).compile().cost_analysis()["flops"]

        for recipe in (Hessian(), GaussNewton()):
            assert flops(recipe, ("3",)) < 0.5 * flops(recipe, lambda path: True)


def test_a_whole_method_runs_on_a_subset_and_leaves_the_rest_alone():
    with jax.enable_x64(False):
        model, params = mlp()
        batch = ju.UnlearnBatch(labelled(4, 1), labelled(8, 2))
        method = ju.methods.gauss_newton_ascent(max_kl=1e-3)

        @jax.jit
        def step(params):
            small, chosen = subset(model, params, ("1",))
            state = ju.init(method, small, chosen, key=jax.random.key(0))
            state, info = ju.unlearn_step(method, small, state, batch)
            return combine(state.params, partition(params, ("1",))[1]), info

        after, info = step(params)
        assert bool(info.applied)
        np.testing.assert_array_equal(flat(after[0]), flat(params[0]))
        assert float(jnp.abs(flat(after[1]) - flat(params[1])).max()) > 0


def test_an_empty_selection_lists_the_paths():
    model, params, _ = dense_problem()
    with pytest.raises(ValueError, match="chooses none of the parameters 0/b, 0/w, 1/b, 1/w"):
        subset(model, params, ("lm_head",))


def test_paths_that_collide_are_refused():
    with pytest.raises(ValueError, match="share a path"):
        partition({"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}, lambda path: True)
