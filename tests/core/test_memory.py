"""How much memory a product plans beside a gradient, as XLA reports it: a ceiling on each, under scan and remat."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from jaxunlearn import losses, models
from jaxunlearn.curvature import GaussNewton, Hessian
from jaxunlearn.types import TokenBatch

CONFIG = models.DecoderConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=176,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)
CEILINGS = {"Hessian": (Hessian(), 2.3), "Gauss-Newton": (GaussNewton(), 1.2)}


def temporaries(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def problem(remat="dots", head_rows=1024, vocab=512):
    config = replace(CONFIG, vocab_size=vocab)
    model, params = models.init(config, jax.random.key(0), remat=remat, head_rows=head_rows)
    shape = (4, 64)
    tokens = jax.random.randint(jax.random.key(1), shape, 0, vocab)
    return model, params, TokenBatch(tokens, jnp.ones(shape).at[:, 0].set(0.0))


def mean(model, params, batch):
    total, count = losses.nll(model, params, batch)
    return total / count


def gradient_bytes(model, params, batch):
    return temporaries(lambda p, b: jax.grad(lambda q: mean(model, q, b))(p), params, batch)


def product_bytes(recipe, model, params, batch):
    return temporaries(lambda p, b, v: recipe(model, p, b)(v), params, batch, params)


@pytest.mark.parametrize("name", CEILINGS)
def test_a_product_stays_under_its_ceiling(name):
    recipe, ceiling = CEILINGS[name]
    model, params, batch = problem()
    assert product_bytes(recipe, model, params, batch) <= ceiling * gradient_bytes(model, params, batch)


@pytest.mark.parametrize("name", ["gradient", *CEILINGS])
def test_a_chunked_head_never_holds_all_logits(name):
    sizes = []
    for rows in (None, 32):
        point = problem("full", rows, vocab=8192)
        sizes.append(gradient_bytes(*point) if name == "gradient" else product_bytes(CEILINGS[name][0], *point))
    logits = 4 * 4 * 64 * 8192
    assert sizes[1] <= sizes[0] - 0.8 * logits
