"""Layers in several stacks: the same model, and curvature of the upper stack at the price of the upper stack."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_cases import largest_difference, tokens_for, toy

from jaxunlearn import models, tree
from jaxunlearn.curvature import GaussNewton, Hessian, subset
from jaxunlearn.sharding.program import matmul_flops
from jaxunlearn.types import TokenBatch


def problem(layers=4, **changes):
    model, params = toy(num_hidden_layers=layers, **changes)
    tokens = jnp.asarray(tokens_for(model.source.config))
    return model, params, TokenBatch(tokens, jnp.ones(tokens.shape).at[:, 0].set(0.0))


@pytest.mark.parametrize("sizes", [(4,), (3, 1), (1, 1, 2)])
def test_a_cut_changes_nothing_but_the_form(sizes):
    model, params, batch = problem()
    cut = models.split_layers(params, sizes)
    assert largest_difference(models.join_layers(cut), params) == 0.0
    np.testing.assert_allclose(model.logits(cut, batch.tokens), model.logits(params, batch.tokens), atol=1e-5)
    for layer in range(5):
        ours, whole = (model.hidden(p, batch.tokens, layer) for p in (cut, params))
        np.testing.assert_allclose(ours, whole, atol=1e-5)


def test_generation_and_saving_take_either_form(tmp_path):
    model, params, _ = problem(2)
    cut = models.split_layers(params, (1, 1))
    prompts = [[1, 2, 3], [4, 5]]
    same = [models.generate(model, p, prompts, max_new_tokens=4) for p in (cut, params)]
    assert str(same[0]) == str(same[1])
    _, loaded = models.load(models.save(tmp_path / "cut", model, cut))
    assert largest_difference(loaded, params) == 0.0


@pytest.mark.parametrize("recipe", [Hessian(), GaussNewton()])
def test_the_block_of_the_last_layer_is_exact_and_cheap(recipe):
    model, params, batch = problem()
    cut = models.split_layers(params, (3, 1))
    v = tree.normal_like(jax.random.key(1), cut["layers"]["1"])
    elsewhere = tree.zeros_like(params)
    widened = models.split_layers(elsewhere, (3, 1))
    widened["layers"]["1"] = v

    def of_last(params, batch, v):
        last, chosen = subset(model, params, ("layers", "1"))
        named = dict(zip(chosen, jax.tree.leaves(v), strict=True))
        return recipe(last, chosen, batch)(named)

    block = jax.jit(of_last).lower(cut, batch, v).compile()
    whole = jax.jit(lambda p, b, v: recipe(model, p, b)(v)).lower(params, batch, params).compile()
    expected = models.split_layers(whole(params, batch, models.join_layers(widened)), (3, 1))["layers"]["1"]
    got = block(cut, batch, v)
    scale = float(tree.norm(expected))
    for a, b in zip(got.values(), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * scale)
    assert matmul_flops(block) < 0.6 * matmul_flops(whole)
    assert block.memory_analysis().temp_size_in_bytes < 0.75 * whole.memory_analysis().temp_size_in_bytes


def test_sizes_must_add_up():
    _, params, _ = problem(2)
    with pytest.raises(ValueError, match=r"sizes=\(1, 2\): .* 2 in all"):
        models.split_layers(params, (1, 2))
