"""Products over batches that the host walks through equal one big batch, and say what is wrong with the data."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import flat, gathering, labelled, mlp, shard

import jaxunlearn as ju
from jaxunlearn import operators, tree
from jaxunlearn.curvature import (
    EmpiricalFisher,
    GaussNewton,
    Hessian,
    HutchinsonDiagonal,
    Identity,
    SquaredGradients,
    TrueFisher,
    streamed,
    streamed_diagonal,
    streamed_product,
)
from jaxunlearn.curvature.streamed import add_batch
from jaxunlearn.sharding import make_mesh

RECIPES = {
    "hessian": (Hessian(), Hessian()),
    "hessian in microbatches": (Hessian(2), Hessian()),
    "hessian by differences": (Hessian(mode="finite_difference"), Hessian(mode="finite_difference")),
    "gauss_newton": (GaussNewton(), GaussNewton()),
    "empirical_fisher": (EmpiricalFisher(), EmpiricalFisher(None)),
}


def pieces(batch, *sizes):
    edges = np.cumsum([0, *sizes])
    return [jax.tree.map(lambda x, a=a, b=b: x[a:b], batch) for a, b in pairwise(edges)]


def problem(dtype=jnp.float32):
    model, params = mlp(sizes=(3, 4, 3), dtype=dtype)
    return model, params, labelled(12, features=3, dtype=dtype)


@pytest.mark.parametrize("name", RECIPES)
def test_many_batches_equal_one(name):
    model, params, batch = problem()
    recipe, whole = RECIPES[name]
    v = tree.normal_like(jax.random.key(0), params)
    A = streamed(recipe, model, params, pieces(batch, 4, 4, 2, 2))
    expected = flat(jax.jit(lambda v: whole(model, params, batch)(v))(v))
    bound = 2e-3 if "differences" in name else 2e-6
    np.testing.assert_allclose(flat(A(v)), expected, rtol=0, atol=bound * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("recipe", [Hessian(), GaussNewton()])
def test_many_batches_equal_one_to_f64(recipe):
    with jax.enable_x64(True):
        model, params, batch = problem(jnp.float64)
        v = tree.normal_like(jax.random.key(0), params)
        A = streamed(recipe, model, params, pieces(batch, 6, 6))
        np.testing.assert_allclose(flat(A(v)), flat(recipe(model, params, batch)(v)), rtol=0, atol=1e-13)


def test_true_fisher_draws_the_same_labels_in_every_pass():
    model, params, batch = problem()
    v = tree.normal_like(jax.random.key(0), params)
    A = streamed(TrueFisher(), model, params, pieces(batch, 6, 6))
    np.testing.assert_array_equal(flat(A(v)), flat(A(v)))
    one = streamed(TrueFisher(), model, params, [batch])(v)
    np.testing.assert_allclose(flat(one), flat(TrueFisher(None)(model, params, batch)(v)), atol=1e-6)


def test_positive_semidefinite_where_the_recipe_is():
    model, params, batch = problem()
    assert streamed(EmpiricalFisher(), model, params, [batch]).psd
    assert streamed(TrueFisher(), model, params, [batch]).psd
    assert not streamed(Hessian(), model, params, [batch]).psd


def test_batches_may_come_from_a_function_or_any_collection():
    model, params, batch = problem()
    parts = pieces(batch, 6, 6)
    v = tree.normal_like(jax.random.key(0), params)
    results = [flat(streamed(Hessian(), model, params, b)(v)) for b in (parts, tuple(parts), lambda: iter(parts))]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_one_compilation_serves_all_passes_and_points():
    model, params, batch = problem()
    parts = pieces(batch, 6, 6)
    before = add_batch._cache_size()
    for scale in (1.0, 0.5):  # a new point, as in every step of unlearning
        A = streamed(Hessian(6), model, tree.scale(scale, params), parts)
        for seed in (0, 1):
            A(tree.normal_like(jax.random.key(seed), params))
    assert add_batch._cache_size() == before + 1


def test_a_product_of_ones_own():
    """Any sum over batches streams: here second moments of the data."""
    x = jnp.arange(12.0).reshape(6, 2)
    A = streamed_product(moments, jnp.zeros(2), [x[:4], x[4:]], psd=True)
    assert A.psd
    np.testing.assert_allclose(A(jnp.array([1.0, -1.0])), x.T @ (x @ jnp.array([1.0, -1.0])) / 6)


def moments(params, x, v):
    return x.T @ (x @ v), len(x)


def test_an_iterator_is_refused_at_once():
    model, params, batch = problem()
    with pytest.raises(TypeError, match="used up after one pass.*lambda: make_batches"):
        streamed(Hessian(), model, params, iter([batch]))
    with pytest.raises(TypeError, match="used up after one pass"):
        streamed(Hessian(), model, params, (b for b in [batch]))


def test_a_function_that_returns_the_same_iterator_is_found_out_in_the_second_pass():
    model, params, batch = problem()
    used_up = iter([batch])
    A = streamed(Hessian(), model, params, lambda: used_up)
    A(params)
    with pytest.raises(ValueError, match="pass 2 over batches found none.*new iterator"):
        A(params)


def test_an_empty_collection_and_a_changing_one_are_named():
    model, params, batch = problem()
    with pytest.raises(ValueError, match="batches is empty"):
        streamed(Hessian(), model, params, [])(params)
    growing = [batch]
    A = streamed(Hessian(), model, params, growing)
    A(params)
    growing.append(batch)
    with pytest.raises(ValueError, match="pass 2 over batches found 2 of them, the one before 1"):
        A(params)


def test_it_cannot_be_compiled_into_a_function():
    model, params, batch = problem()
    A = streamed(Hessian(), model, params, [batch])
    with pytest.raises(TypeError, match="driven from the host"):
        jax.jit(A)(params)


def test_a_recipe_whose_products_do_not_add_up_is_refused():
    model, params, batch = problem()
    with pytest.raises(TypeError, match="Identity.*has no product"):
        streamed(Identity(), model, params, [batch])


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
def test_eight_devices_equal_one(explicit, caplog):
    model, params = mlp()
    parts = [labelled(8, seed) for seed in (0, 1)]
    v = tree.normal_like(jax.random.key(0), params)
    expected = flat(streamed(Hessian(), model, params, parts)(v))
    mesh = make_mesh(data=2, fsdp=2, tensor=2, explicit=explicit)
    placed, _ = shard(params, parts[0], mesh)
    v, _ = shard(v, parts[0], mesh)
    if explicit:
        model = ju.Model(logits=gathering(model.logits, mesh))
    with jax.log_compiles():
        out = streamed(Hessian(), model, placed, [shard(params, part, mesh)[1] for part in parts])(v)
    compiled = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Compiling")]
    assert sum("add_batch" in message for message in compiled) == 1
    np.testing.assert_allclose(flat(jax.device_get(out)), expected, atol=2e-6 * float(jnp.abs(expected).max()))
    for a, b in zip(jax.tree.leaves(out), jax.tree.leaves(placed), strict=True):
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim)


@pytest.mark.parametrize("labels", ["true", "drawn"])
def test_squared_gradients_of_several_batches_are_those_of_one(labels):
    """Drawn labels differ from batch to batch, so their diagonals are compared with the sum made by hand."""
    model, params = mlp()
    data = labelled(10)
    recipe = SquaredGradients(labels)
    parts = [jax.tree.map(lambda x: x[rows], data) for rows in (slice(0, 4), slice(4, 10))]  # noqa: B023
    got = streamed_diagonal(recipe, model, params, iter(parts))
    if labels == "true":
        expected = recipe(model, params, data).entries
    else:
        keys = [jax.random.fold_in(jax.random.key(0), i) for i in range(2)]
        n = [float(part.loss_mask.sum()) for part in parts]
        each = [recipe.entries(model, params, part, key) for part, key in zip(parts, keys, strict=True)]
        expected = tree.scale(1 / sum(n), tree.add(tree.scale(n[0], each[0]), tree.scale(n[1], each[1])))
    np.testing.assert_allclose(flat(got.entries), flat(expected), rtol=2e-5, atol=1e-7)
    assert got.psd


def test_a_streamed_hutchinson_diagonal_is_unbiased_and_made_positive_at_the_end():
    model, params = mlp()
    parts = [labelled(6, seed) for seed in range(2)]
    signed = streamed_diagonal(HutchinsonDiagonal(probes=400, absolute=False), model, params, parts)
    exact = sum(
        float(p.loss_mask.sum()) * np.diag(operators.to_dense(Hessian()(model, params, p))) for p in parts
    ) / sum(float(p.loss_mask.sum()) for p in parts)
    error = np.abs(np.asarray(flat(signed.entries)) - exact)
    assert error.max() < 0.15 * np.abs(exact).max()
    positive = streamed_diagonal(HutchinsonDiagonal(probes=400), model, params, parts)
    np.testing.assert_allclose(flat(positive.entries), np.abs(flat(signed.entries)), rtol=1e-5, atol=1e-7)


def test_diagonals_that_do_not_add_up_are_refused():
    model, params = mlp()
    with pytest.raises(TypeError, match="SquaredGradients"):
        streamed_diagonal(Hessian(), model, params, [labelled(2)])
    with pytest.raises(ValueError, match="at least one batch"):
        streamed_diagonal(SquaredGradients(), model, params, [])
