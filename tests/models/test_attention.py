"""Blockwise attention equals plain attention in value and in first and second derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.models.attention import causal_attention, masked_attention


def inputs(T, H=4, K=2, d=8, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(T), 3)
    shapes = ((2, T, H, d), (2, T, K, d), (2, T, K, d))
    return tuple(2 * jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True))


@pytest.mark.parametrize(("T", "block"), [(13, 4), (8, 4), (5, 8)])
def test_blockwise_equals_plain_to_second_order(T, block):
    def derivatives(x, implementation):
        def f(x):
            return jnp.sum(jnp.sin(causal_attention(*x, implementation, block)))

        gradient, product = jax.jvp(jax.grad(f), (x,), (jax.tree.map(jnp.cos, x),))
        return causal_attention(*x, implementation, block), gradient, product

    derivatives = jax.jit(derivatives, static_argnums=1)
    narrow = inputs(T)
    forms = [causal_attention(*narrow, form, block) for form in ("xla", "blockwise")]
    np.testing.assert_allclose(*forms, atol=1e-5)
    with jax.enable_x64(True):
        wide = inputs(T, dtype=jnp.float64)
        plain, tiled = derivatives(wide, "xla"), derivatives(wide, "blockwise")
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(tiled), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-11)


def test_attention_is_exactly_causal_softmax_averaging():
    q, k, v = (np.asarray(x, np.float64) for x in inputs(7, H=2, K=2))
    scores = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(8)
    scores[..., np.triu_indices(7, 1)[0], np.triu_indices(7, 1)[1]] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("bhts,bshd->bthd", weights / weights.sum(-1, keepdims=True), v)
    for implementation in ("xla", "blockwise"):
        got = causal_attention(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)), implementation, block=4)
        np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(("window", "softcap"), [(3, None), (6, 1.5), (1, None), (50, 0.7)])
def test_window_cap_and_scale_are_their_definitions_in_both_forms_to_second_order(window, softcap):
    T = 13
    q, k, v = (np.asarray(x, np.float64) for x in inputs(T, H=2, K=2))
    scores = 0.4 * np.einsum("bthd,bshd->bhts", q, k)
    scores = scores if softcap is None else softcap * np.tanh(scores / softcap)
    behind = np.arange(T)[:, None] - np.arange(T)
    weights = np.where((behind >= 0) & (behind < window), np.exp(scores), 0.0)
    expected = np.einsum("bhts,bshd->bthd", weights / weights.sum(-1, keepdims=True), v)

    def derivatives(x, implementation, window):
        def f(x):
            options = {"scale": 0.4, "softcap": softcap, "window": window}
            return causal_attention(*x, implementation, 4, **options)

        gradient = jax.grad(lambda x: jnp.sum(jnp.sin(f(x))))
        return f(x), *jax.jvp(gradient, (x,), (jax.tree.map(jnp.cos, x),))

    with jax.enable_x64(True):
        x = tuple(jnp.asarray(y) for y in (q, k, v))
        plain = jax.jit(lambda x: derivatives(x, "xla", window))(x)
        tiled = jax.jit(lambda x, w: derivatives(x, "blockwise", w))(x, jnp.asarray(window))
    for found in (plain, tiled):
        np.testing.assert_allclose(found[0], expected, atol=1e-12)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(tiled), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)


def test_auto_never_makes_all_scores_of_a_long_sequence():
    T = 768
    x = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), inputs(T))
    assert f"{T},{T}" in str(jax.make_jaxpr(lambda *x: causal_attention(*x, "xla"))(*x))
    assert f"{T},{T}" not in str(jax.make_jaxpr(lambda *x: causal_attention(*x, "auto"))(*x))


def test_huge_scores_give_no_nan_in_value_or_derivatives():
    q, k, v = inputs(12)

    def f(q):
        return jnp.sum(causal_attention(1e4 * q, k, v, "blockwise", 4) ** 2)

    gradient, product = jax.jvp(jax.grad(f), (q,), (q,))
    assert bool(jnp.isfinite(gradient).all() & jnp.isfinite(product).all())


def test_query_with_nothing_to_see_stays_finite():
    q, k, v = inputs(3)
    out = masked_attention(q, k, v, jnp.zeros((3, 3), bool))
    np.testing.assert_allclose(out[:, :, 0], jnp.broadcast_to(v.mean(1, keepdims=True)[:, :, 0], (2, 3, 8)), atol=1e-6)
