"""Selective synaptic dampening against its formula in NumPy, from gradients of single examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import labelled

import jaxunlearn as ju
from jaxunlearn import methods


def importance(w, batch):
    """Mean squared gradient of an example's mean loss, rows without loss left out."""
    x, real = np.asarray(batch.inputs, np.float64), np.asarray(batch.loss_mask) > 0
    z = x @ w
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    gradients = x[:, :, None] * (p - np.eye(3)[np.asarray(batch.labels)])[:, None]
    return (gradients[real] ** 2).mean(0)


@pytest.mark.parametrize(("alpha", "beta", "microbatch"), [(1.1, 1.0, 1), (2.0, 0.5, 3), (1.1, 3.0, 1)])
def test_weights_are_multiplied_by_what_the_formula_says(alpha, beta, microbatch):
    w = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    forget, retain = labelled(6, 1, features=4), labelled(12, 2, features=4)
    forget = forget._replace(
        inputs=forget.inputs * jnp.array([4.0, 1.0, 1.0, 0.2]), loss_mask=forget.loss_mask.at[1].set(0.0)
    )
    share = 0.2
    E_f, E_r = importance(w, forget), importance(w, retain)
    E_D = share * E_f + (1 - share) * E_r
    chosen = E_f > alpha * E_D
    expected = np.where(chosen, np.minimum(beta * E_D / E_f, 1.0) * w, w)
    assert 0 < chosen.sum() < chosen.size
    method = methods.ssd(alpha=alpha, beta=beta, forget_share=share, microbatch=microbatch)
    model = ju.Model(logits=lambda w, x: x @ w)
    state = ju.init(method, model, jnp.asarray(w), key=jax.random.key(0))
    after, info = jax.jit(ju.unlearn_step, static_argnums=(0, 1))(method, model, state, ju.UnlearnBatch(forget, retain))
    np.testing.assert_allclose(after.params, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(after.params)[~chosen], w[~chosen])
    assert float(info.certificate.kl_measured) >= 0


def test_the_squares_are_those_of_examples_and_not_of_the_batch():
    """Two examples whose gradients cancel in the batch: importance is unmoved by that."""
    model = ju.Model(logits=lambda w, x: x @ w)
    forget = ju.LabelledBatch(jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([0, 1]))
    retain = ju.LabelledBatch(jnp.array([[0.0, 1.0]]), jnp.array([0]))
    w = jnp.array([[1.0, 1.0], [1.0, 1.0]])  # p = (1/2, 1/2): the gradients are (-1/2, 1/2) and (1/2, -1/2)
    method = methods.ssd(alpha=2.0, beta=1.0, forget_share=0.25)
    state = ju.init(method, model, w, key=jax.random.key(0))
    after, _ = jax.jit(ju.unlearn_step, static_argnums=(0, 1))(method, model, state, ju.UnlearnBatch(forget, retain))
    np.testing.assert_allclose(after.params, [[0.25, 0.25], [1.0, 1.0]], rtol=1e-6)


def test_bad_settings_and_a_missing_retain_set_are_refused():
    with pytest.raises(ValueError, match="no weight can be chosen"):
        methods.ssd(alpha=10.0, forget_share=0.1)
    with pytest.raises(ValueError, match="beta=0"):
        methods.ssd(beta=0.0)
    model, w, method = ju.Model(logits=lambda w, x: x @ w), jnp.zeros((4, 3)), methods.ssd()
    state = ju.init(method, model, w, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"UnlearnBatch\.retain"):
        ju.unlearn_step(method, model, state, ju.UnlearnBatch(labelled(4, features=4)))
