"""Identities of the decoder: its functions agree with each other, and its curvature with a dense Hessian."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_cases import gradient_and_product, hvp, largest_difference, loss, tokens_for, toy

from jaxunlearn import models, tree
from jaxunlearn.types import TokenBatch


def test_logits_at_is_logits_gathered():
    model, params = toy()
    tokens = tokens_for(model.source.config)
    positions = jnp.array([[0, 5, 23], [7, 7, 1]])
    expected = jnp.take_along_axis(model.logits(params, tokens), positions[..., None], axis=1)
    np.testing.assert_allclose(model.logits_at(params, tokens, positions), expected, atol=1e-5)


def test_token_batch_with_positions_gives_the_same_predictions():
    model, params = toy()
    tokens = tokens_for(model.source.config, length=9)
    mask = np.zeros((2, 9), np.float32)
    mask[0, 4:6], mask[1, 2:4] = 1, 1
    dense = TokenBatch(tokens, mask).predict(model, params)
    sparse = TokenBatch(tokens, mask, jnp.array([[4, 5], [2, 3]])).predict(model, params)

    def total(p):
        log_probs = jax.nn.log_softmax(p.logits)
        return jnp.sum(p.weights * jnp.take_along_axis(log_probs, jnp.asarray(p.targets)[..., None], -1)[..., 0])

    assert float(total(dense)) == pytest.approx(float(total(sparse)), rel=1e-6)


def test_hidden_states_lead_from_embedding_to_logits():
    model, params = toy(tie_word_embeddings=True)
    tokens = tokens_for(model.source.config)
    table = params["embed_tokens"]["embedding"]
    np.testing.assert_array_equal(model.hidden(params, tokens, 0), table[tokens])
    last = model.hidden(params, tokens, 2)
    unit = last / jnp.sqrt(jnp.mean(last**2, -1, keepdims=True) + model.source.config.rms_norm_eps)
    normalised = model.hidden(params, tokens)
    np.testing.assert_allclose(normalised, unit * params["norm"]["scale"], atol=1e-5)
    np.testing.assert_allclose(model.logits(params, tokens), normalised @ table.T, atol=1e-5)


def test_hidden_of_a_lower_layer_does_not_depend_on_higher_ones():
    model, params = toy()
    tokens = tokens_for(model.source.config)
    gradient = jax.grad(lambda p: jnp.sum(model.hidden(p, tokens, 1) ** 2))(params)
    kernel = gradient["layers"]["mlp"]["up_proj"]["kernel"]
    assert float(jnp.abs(kernel[0]).max()) > 0
    assert float(jnp.abs(kernel[1]).max()) == 0
    with pytest.raises(ValueError, match="layer=3; this model has layers 0"):
        model.hidden(params, tokens, 3)


def test_right_padding_does_not_reach_real_tokens():
    model, params = toy()
    tokens = tokens_for(model.source.config)
    changed = tokens.copy()
    changed[:, 10:] = 0
    np.testing.assert_array_equal(model.logits(params, tokens)[:, :10], model.logits(params, changed)[:, :10])


def test_how_it_is_run_does_not_change_value_gradient_or_curvature():
    model, params = toy()
    tokens = tokens_for(model.source.config, length=11)
    v = tree.normal_like(jax.random.key(1), params)

    @partial(jax.jit, static_argnums=0)
    def all_orders(model):
        return loss(model, params, tokens), *gradient_and_product(model, params, tokens, v)

    expected = all_orders(model)
    for variant in ({"remat": "full"}, {"remat": "none"}, {"attention": "blockwise"}):
        assert largest_difference(expected, all_orders(toy(**variant)[0])) < 2e-5, variant


@pytest.mark.parametrize("variant", [{}, {"attention": "blockwise", "tie_word_embeddings": True}])
def test_hessian_vector_product_equals_the_dense_float64_hessian(variant):
    sizes = {"vocab_size": 7, "hidden_size": 4, "intermediate_size": 5, "num_attention_heads": 2, "head_dim": 2}
    sizes |= {"num_key_value_heads": 1, "attention_bias": True}
    model, params = toy(**sizes, **variant)
    tokens = tokens_for(model.source.config, length=5)
    v = tree.normal_like(jax.random.key(1), params)
    product_of = jax.jit(lambda p, v: hvp(model, p, tokens, v))
    product = jax.tree.leaves(product_of(params, v))
    with jax.enable_x64(True):
        leaves, structure = jax.tree.flatten(jax.tree.map(lambda a: np.asarray(a, np.float64), params))
        bounds = np.cumsum([0] + [leaf.size for leaf in leaves])

        def flat_loss(x):
            parts = [x[a:b].reshape(leaf.shape) for a, b, leaf in zip(bounds[:-1], bounds[1:], leaves, strict=True)]
            return loss(model, jax.tree.unflatten(structure, parts), tokens)

        def flat(xs):
            return np.concatenate([np.asarray(x, np.float64).ravel() for x in xs])

        H = np.asarray(jax.jit(jax.hessian(flat_loss))(flat(leaves)))
        assert H.dtype == np.float64
        exact = H @ flat(jax.tree.leaves(v))
        wide = product_of(jax.tree.unflatten(structure, leaves), jax.tree.map(lambda a: a.astype("f8"), v))
    np.testing.assert_allclose(H, H.T, atol=1e-12)
    assert np.linalg.norm(flat(jax.tree.leaves(wide)) - exact) < 1e-12 * np.linalg.norm(exact)
    assert np.linalg.norm(flat(product) - exact) < 1e-5 * np.linalg.norm(exact)


def test_bfloat16_products_have_bfloat16_tangents_and_the_right_size():
    model, params = toy()
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    tokens = tokens_for(model.source.config)
    v = tree.normal_like(jax.random.key(1), params)
    v = tree.cast_like(v, half)
    product_of = jax.jit(lambda params, v: hvp(model, params, tokens, v))
    product = product_of(half, v)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(product)} == {"bfloat16"}
    assert model.logits(half, tokens).dtype == jnp.float32
    exact = product_of(tree.to_vector(half), tree.to_vector(v))
    error = tree.norm(tree.sub(tree.to_vector(product), exact)) / tree.norm(exact)
    assert float(error) < 0.1


def test_models_of_equal_configuration_share_one_compilation():
    traces = []

    def step(model, params, tokens):
        traces.append(1)
        return model.logits(params, tokens)

    step = jax.jit(step, static_argnums=0)
    for _ in range(2):
        model, params = toy()
        step(model, params, tokens_for(model.source.config))
    assert len(traces) == 1
    other, _ = toy(remat="full")
    assert other != model


def test_unknown_run_options_are_named():
    config = models.DecoderConfig()
    with pytest.raises(ValueError, match="attention='flash'; choose one of auto, xla, blockwise, fused"):
        models.Decoder(config, attention="flash")
    with pytest.raises(ValueError, match="remat='all'; choose one of dots"):
        models.Decoder(config, remat="all")
