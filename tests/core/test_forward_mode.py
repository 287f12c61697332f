"""What has no forward rule is named while tracing, before anything is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from toys import labelled, mlp

import jaxunlearn as ju
from jaxunlearn.curvature import ForwardModeError, Hessian, check_forward_mode, hessian
from jaxunlearn.curvature.forward_mode import jvp


@jax.custom_vjp
def fused_sine(x):
    return jnp.sin(x)


fused_sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.cos(x),))


def copy_kernel(x_ref, o_ref):
    o_ref[...] = x_ref[...]


def kernel_call(x):
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return pl.pallas_call(copy_kernel, out_shape=shape, input_output_aliases={0: 0}, interpret=True, name="flash")(x)


@jax.custom_vjp
def fused_kernel(x):
    return kernel_call(x)


fused_kernel.defvjp(lambda x: (kernel_call(x), None), lambda _, g: (kernel_call(g),))


def host_call(x):
    return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


ruleless = jax.extend.core.Primitive("dot_product_attention_fwd_wrapper")
ruleless.def_abstract_eval(lambda x: x)

WRAPS = {
    "plain": lambda f: f,
    "jit": jax.jit,
    "scan": lambda f: lambda x: jax.lax.scan(lambda c, _: (f(c), None), x, None, length=2)[0],
    "remat": jax.checkpoint,
    "scan of remat": lambda f: lambda x: jax.lax.scan(lambda c, _: (jax.checkpoint(f)(c), None), x, None, length=2)[0],
}
OPAQUE = {
    "fused_sine": fused_sine,
    "pallas_call: flash": kernel_call,
    "pure_callback": host_call,
    "dot_product_attention_fwd_wrapper": ruleless.bind,
}
X = jax.ShapeDtypeStruct((3,), jnp.float32)


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("name", OPAQUE)
def test_the_culprit_is_named(name, wrap):
    wrapped = WRAPS[wrap](OPAQUE[name])
    with pytest.raises(ForwardModeError, match=name) as caught:
        check_forward_mode(lambda x: wrapped(jnp.cos(x)), X)
    for remedy in ('attention="blockwise"', 'mode="finite_difference"'):
        assert remedy in str(caught.value)


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_product_raises_while_it_is_traced(wrap):
    wrapped = WRAPS[wrap](fused_sine)
    with pytest.raises(ForwardModeError, match="fused_sine"):
        jax.make_jaxpr(lambda x: jvp(wrapped, x, x)[1])(X)


def total(f):
    return lambda w, x: (jnp.sum(f(x @ w) ** 2), len(x))


@pytest.mark.parametrize("mode", ["forward_over_reverse", "linearize"])
def test_a_hessian_through_a_fused_kernel_is_refused_under_jit(mode):
    x = jnp.ones((2, 3))
    with pytest.raises(ForwardModeError, match="flash"):
        jax.jit(lambda w: hessian(total(fused_kernel), w, x, mode=mode)(w))(jnp.ones((3, 2)))


def test_a_hessian_through_a_plain_custom_vjp_is_exact():
    """Its gradient is an ordinary program, so forward over reverse needs no forward rule of the function itself."""
    x, w, v = jnp.ones((2, 3)), jnp.full((3, 2), 0.3), jnp.ones((3, 2))
    plain = hessian(total(jnp.sin), w, x)(v)
    for mode in ("forward_over_reverse", "linearize"):
        np.testing.assert_allclose(hessian(total(fused_sine), w, x, mode=mode)(v), plain, rtol=1e-6)


def test_what_has_forward_rules_passes():
    model, params = mlp()
    batch = labelled(4)
    check_forward_mode(lambda p: model.logits(p, batch.inputs), params)
    check_forward_mode(jax.grad(lambda p: jnp.sum(model.logits(p, batch.inputs) ** 2)), params)
    check_forward_mode(jax.nn.relu, X)  # a custom_jvp function


def test_other_errors_stay_what_they_are():
    with pytest.raises(TypeError, match="dot_general") as caught:
        check_forward_mode(lambda x: x @ jnp.ones((4, 4)), X)
    assert not isinstance(caught.value, ForwardModeError)
    with pytest.raises(ValueError, match="jvp called with different primal and tangent shapes"):
        jvp(jnp.sin, jnp.ones(3), jnp.ones(4))


def test_the_decoder_has_every_forward_rule_in_each_attention():
    config = ju.models.DecoderConfig(vocab_size=16, hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
    for attention in ("xla", "blockwise"):
        model, params = ju.models.init(config, jax.random.key(0), attention=attention)
        tokens = jnp.zeros((1, 4), jnp.int32)
        check_forward_mode(lambda p, model=model, tokens=tokens: model.logits(p, tokens), params)


def test_replaying_the_trace_is_jax_jvp():
    model, params = mlp()
    batch = labelled(4)
    f = lambda p: (model.logits(p, batch.inputs), {"n": jnp.float32(4.0)})
    ours = jvp(f, params, params, has_aux=True)
    theirs = jax.jvp(f, (params,), (params,), has_aux=True)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="mode='exact'; choose one of forward_over_reverse, linearize"):
        Hessian(mode="exact")
