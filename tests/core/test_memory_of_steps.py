"""Microbatches bound the memory of a whole step, certificate and trust region included, and change no number."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import methods, models
from jaxunlearn.types import TokenBatch, UnlearnBatch
from jaxunlearn.unlearn import init, unlearn_step

ROWS, LENGTH, VOCABULARY = 16, 16, 2048


def test_a_step_in_microbatches_is_the_same_step_in_less_memory():
    config = models.DecoderConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model, params = models.init(config, jax.random.key(0), head_rows=None)
    shape = (ROWS, LENGTH)
    tokens = jax.random.randint(jax.random.key(1), (2, *shape), 0, VOCABULARY)
    # Rows of different weights: a mean of microbatches' means would differ from the mean.
    mask = (jnp.arange(LENGTH) < jnp.arange(2, ROWS + 2)[:, None]).astype(jnp.float32).at[:, 0].set(0.0)
    batch = UnlearnBatch(TokenBatch(tokens[0], mask), TokenBatch(tokens[1], mask[::-1]))
    found, sizes = [], []
    for microbatch in (None, 4):
        method = methods.gauss_newton_ascent(max_kl=1e-3, cg_steps=3, microbatch=microbatch)
        state = init(method, model, params, key=jax.random.key(2))
        step = jax.jit(lambda s, b, m=method: unlearn_step(m, model, s, b)).lower(state, batch).compile()
        sizes.append(step.memory_analysis().temp_size_in_bytes)
        found.append(step(state, batch))
    (whole, told), (cut, said) = found
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(cut.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    for name, a, b in zip(told.certificate._fields, told.certificate, said.certificate, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7, err_msg=name)
    # What counts here are logits of all rows, of which a quarter is there at a time.
    assert sizes[1] < 0.45 * sizes[0]
