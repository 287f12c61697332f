"""Differences of gradients against exact products, through functions that have no forward rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import flat, labelled, mlp

from jaxunlearn import tree
from jaxunlearn.curvature import ForwardModeError, Hessian, hessian
from jaxunlearn.curvature.finite_difference import central_difference


def relative_error(model, params, batch, v, **settings):
    product = lambda mode, k: jax.jit(lambda v: Hessian(k, mode)(model, params, batch)(v))(v)
    exact, ours = product("forward_over_reverse", None), product("finite_difference", settings.get("microbatch"))
    return float(tree.norm(tree.sub(ours, exact)) / tree.norm(exact))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(("dtype", "bound"), [(jnp.float32, 1e-3), (jnp.float64, 1e-8)])
def test_error_is_small_and_free_of_the_length_of_v(dtype, bound, scale):
    with jax.enable_x64(dtype == jnp.float64):
        model, params = mlp(sizes=(3, 4, 3), dtype=dtype)
        batch = labelled(6, features=3, dtype=dtype)
        v = tree.scale(scale, tree.normal_like(jax.random.key(0), params))
        assert relative_error(model, params, batch, v) < bound
        assert relative_error(model, params, batch, v, microbatch=2) < bound


def test_a_quadratic_has_no_truncation_error():
    with jax.enable_x64(True):
        M = jnp.array([[2.0, 1.0], [1.0, -3.0]])
        got = central_difference(lambda w: M @ w, jnp.array([1.0, 5.0]), jnp.array([1.0, 2.0]))
        np.testing.assert_allclose(got, [4.0, -5.0], rtol=1e-10)


def test_a_zero_vector_gives_zero():
    got = central_difference(jnp.sin, jnp.ones(3), jnp.zeros(3))
    np.testing.assert_array_equal(got, 0.0)


ruleless = jax.extend.core.Primitive("fused_attention")
ruleless.def_impl(jnp.sin)
ruleless.def_abstract_eval(lambda x: x)
jax.interpreters.mlir.register_lowering(ruleless, jax.interpreters.mlir.lower_fun(jnp.sin, multiple_results=False))


@jax.custom_vjp
def fused(x):
    return ruleless.bind(x)


fused.defvjp(lambda x: (ruleless.bind(x), x), lambda x, g: (g * jnp.cos(x),))


def test_it_differentiates_what_forward_mode_cannot():
    x, w, v = jnp.linspace(-1, 1, 6).reshape(2, 3), jnp.full((3, 2), 0.3), jnp.arange(6.0).reshape(3, 2)
    total = lambda f: lambda w, x: (jnp.sum(f(x @ w) ** 2), len(x))
    with pytest.raises(ForwardModeError, match="fused_attention"):
        hessian(total(fused), w, x)(v)
    ours = jax.jit(lambda v: hessian(total(fused), w, x, mode="finite_difference")(v))(v)
    exact = hessian(total(jnp.sin), w, x)(v)
    np.testing.assert_allclose(ours, exact, atol=1e-3 * float(jnp.abs(exact).max()))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sixteen_bits_are_refused_with_the_leaf_and_the_remedy(dtype):
    model, params = mlp(sizes=(3, 4, 3))
    params[1]["b"] = params[1]["b"].astype(dtype)
    with pytest.raises(ValueError, match=r"params\[1\]\['b'\] is (bfloat16|float16).*cast the parameters"):
        Hessian(mode="finite_difference")(model, params, labelled(4, features=3))


def test_products_are_symmetric_to_the_same_accuracy():
    model, params = mlp(sizes=(3, 4, 3))
    batch = labelled(6, features=3)
    u, v = (tree.normal_like(jax.random.key(i), params) for i in (0, 1))
    Hu, Hv = jax.jit(lambda: [Hessian(mode="finite_difference")(model, params, batch)(x) for x in (u, v)])()
    scale = float(tree.norm(Hu) * tree.norm(v))
    assert float(tree.vdot(Hu, v)) == pytest.approx(float(tree.vdot(u, Hv)), abs=1e-3 * scale)
    assert flat(Hu).dtype == jnp.float32
