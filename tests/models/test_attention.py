"""Blockwise attention equals plain attention to second order; the fused kernel is for first order, and says so."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_cases import SMALL, largest_difference, tokens_for, toy

from jaxunlearn import losses, models, sharding
from jaxunlearn.curvature import ForwardModeError, GaussNewton, Hessian
from jaxunlearn.models import fused_attention, splash_attention
from jaxunlearn.models.attention import causal_attention, masked_attention
from jaxunlearn.packed import PackedTokens
from jaxunlearn.types import TokenBatch


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


@pytest.fixture
def a_gpu(monkeypatch):
    """What JAX asks of the machine before it writes cuDNN's kernel into a program."""
    from jax._src.cudnn import fused_attention_stablehlo as kernel

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(kernel, "check_cudnn_version", lambda: 91200)
    monkeypatch.setattr(kernel, "check_compute_capability", lambda wanted: True)
    monkeypatch.setattr(kernel, "is_cuda_compute_capability_equal", lambda wanted: False)


def test_fused_attention_serves_first_order_passes_and_stops_curvature_while_tracing(a_gpu):
    config = models.DecoderConfig(
        **SMALL | {"head_dim": 8, "num_key_value_heads": 2, "sliding_windows": (5,) * 3, "model_type": "mistral"}
    )
    model = models.as_model(models.Decoder(config, attention="fused"))
    shape = jax.eval_shape(lambda: models.init(config, jax.random.key(0), dtype="bfloat16")[1])
    batch = TokenBatch(*(jax.ShapeDtypeStruct((2, 16), dtype) for dtype in (jnp.int32, jnp.float32)))
    program = str(jax.make_jaxpr(jax.grad(lambda p, b: losses.nll(model, p, b)[0]))(shape, batch))
    assert "dot_product_attention_bwd" in program
    assert "sliding_window_length=5" in program
    for recipe in (Hessian(), GaussNewton()):
        with pytest.raises(ForwardModeError, match="dot_product_attention.* choose attention=.blockwise"):
            jax.eval_shape(lambda p, b, r=recipe: r(model, p, b)(p), shape, batch)
    wide = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), shape)
    with pytest.raises(ValueError, match="computes in bfloat16 or float16 on GPUs, and the model is float32; load it"):
        jax.eval_shape(model.logits, wide, batch.tokens)
    with pytest.raises(ValueError, match="cannot take packed rows on GPUs; choose attention=.auto"):
        jax.eval_shape(model.logits, shape, PackedTokens(batch.tokens, batch.tokens))
    for switch, message in (
        ({"attn_logit_softcapping": 2.0}, "has no soft cap on GPUs, and this model has attn_logit_softcapping=2.0"),
        ({"sliding_windows": (3, None, None)}, "takes one window for all layers"),
    ):
        with pytest.raises(ValueError, match=message):
            models.Decoder(models.DecoderConfig(**SMALL | switch), attention="fused")


@pytest.fixture
def a_tpu(monkeypatch):
    """The kernel of TPUs as a program of plain operations, which every device can run."""
    monkeypatch.setattr(fused_attention, "platform", lambda mesh: "tpu")
    monkeypatch.setattr(splash_attention, "INTERPRET", True)


@pytest.mark.parametrize(
    "mesh", [None, {"data": 2, "fsdp": 2, "tensor": 2, "explicit": True}, {"fsdp": 2, "tensor": 4}]
)
def test_the_kernel_of_tpus_gives_logits_and_gradients_of_packed_windowed_capped_attention(mesh, a_tpu):
    """Also where more devices share the heads than there are heads of keys."""
    fields = {"num_key_value_heads": 2, "vocab_size": 64, "sliding_windows": (5, 5), "attn_logit_softcapping": 2.0}
    mesh = None if mesh is None else sharding.make_mesh(**mesh)
    (alone, params), (model, split) = toy(**fields), toy(**fields, mesh=mesh, attention="fused")
    batch = PackedTokens(tokens_for(alone.source.config, batch=4, length=12), np.repeat([[1, 2]] * 4, [5, 7], axis=1))

    @partial(jax.jit, static_argnums=0)
    def both(model, params, batch):
        gradient = jax.grad(lambda params: jnp.sum(jnp.sin(model.logits(params, batch))))
        return model.logits(params, batch), gradient(params)

    expected = both(alone, params, batch)
    found = both(model, split, batch if mesh is None else sharding.shard_batch(batch, mesh))
    assert largest_difference(expected, found) < 1e-4
    assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected)) > 1e-3


def test_the_kernel_of_tpus_stops_curvature_while_tracing(a_tpu):
    model, params = toy(attention="fused")
    batch = TokenBatch(*(jax.ShapeDtypeStruct((2, 16), dtype) for dtype in (jnp.int32, jnp.float32)))
    for recipe in (Hessian(), GaussNewton()):
        with pytest.raises(ForwardModeError, match="splash.* choose attention=.blockwise"):
            jax.eval_shape(lambda p, b, r=recipe: r(model, p, b)(p), params, batch)
    with pytest.raises(ValueError, match="takes one window for all layers"):
        models.Decoder(models.DecoderConfig(**SMALL, sliding_windows=(3, None, None)), attention="fused")


def test_fused_attention_is_refused_where_there_is_no_gpu_before_anything_is_read(tmp_path):
    model, params = toy()
    models.save(tmp_path / "model", model, params)
    for mesh in (None, sharding.make_mesh(fsdp=8)):
        with pytest.raises(ValueError, match="kernel of NVIDIA GPUs and TPUs, and the devices here are cpu; choose"):
            models.load(tmp_path / "model", attention="fused", mesh=mesh)


def test_a_product_over_8192_tokens_needs_less_than_2_gib():
    """One layer of width 512; plain attention would hold matrices of scores of 2 GiB each."""
    sizes = {"vocab_size": 256, "hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8}
    config = models.DecoderConfig(**sizes, num_hidden_layers=1, max_position_embeddings=8192)
    model = models.as_model(models.Decoder(config))
    params = jax.eval_shape(lambda: models.init(config, jax.random.key(0))[1])
    batch = TokenBatch(*(jax.ShapeDtypeStruct((1, 8192), dtype) for dtype in (jnp.int32, jnp.float32)))
    product = jax.jit(lambda p, b: Hessian()(model, p, b)(p))
    assert product.lower(params, batch).compile().memory_analysis().temp_size_in_bytes < 2 * 2**30
