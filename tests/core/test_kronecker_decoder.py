"""K-FAC and EK-FAC of the real decoder: any way to run it gives the same factors, and so do eight devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from toys import flat, token_batch

import jaxunlearn as ju
from jaxunlearn import models, sharding, tree
from jaxunlearn.curvature.kronecker import (
    EKFAC,
    KFAC,
    eigendecompose,
    gradient_and_factors,
    kronecker_factors,
    make_table,
    second_moments,
)

pytestmark = pytest.mark.slow

CONFIG = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attention_bias": True,
}


def place(mesh=None, tied=False, rows=4, **how):
    config = models.DecoderConfig(**CONFIG, tie_word_embeddings=tied)
    model, params = models.init(config, jax.random.key(0), mesh=mesh, **how)
    batch = sharding.shard_batch(jax.device_get(token_batch(np.random.default_rng(0), rows)), mesh)
    waves = lambda p: jax.device_put(np.sin(np.arange(p.size, dtype=np.float32)).reshape(p.shape), p.sharding)
    return model, params, batch, jax.tree.map(waves, params)


def results(settings, model, params, batch, v, vectors):
    """K-FAC's product and inverse, and EK-FAC's second moments in a given basis."""
    A = KFAC(**dict(settings))(model, params, batch)
    return (
        A(v),
        A.damped(1e-2).power(-1.0)(v),
        second_moments(model, params, batch, EKFAC(**dict(settings)), vectors).sums,
    )


run = jax.jit(results, static_argnums=(0, 1))


@pytest.fixture(scope="module")
def vectors():
    """Eigenvectors of some factors, by whether the head is tied: those of nearly equal eigenvalues are free to turn."""
    found = {}
    for tied in (False, True):
        model, params, batch, _ = place(tied=tied)
        found[tied] = jax.device_get(eigendecompose(kronecker_factors(model, params, batch), params).vectors)
    return found


@pytest.fixture(scope="module")
def expected(vectors):
    return {tied: run((), *place(tied=tied), vectors[tied]) for tied in (False, True)}


def assert_close(got, expected, rtol=1e-4):
    for a, b in zip(got, expected, strict=True):
        a, b = (np.asarray(flat(jax.device_get(x))) for x in (a, b))
        np.testing.assert_allclose(a, b, atol=rtol * np.abs(b).max())


def test_every_parameter_has_a_block():
    model, params, batch, _ = place(tied=True)
    table = make_table(model, params, batch)
    assert {row.block for row in table.rows} == {"kronecker", "sum", "diagonal"}
    assert all(row.terms for row in table.rows)
    assert table["layers/self_attn/v_proj/kernel"].terms[0].owner == "layers/self_attn/q_proj/kernel"
    assert table["layers/mlp/up_proj/kernel"].terms[0].owner == "layers/mlp/gate_proj/kernel"
    text = str(table)
    assert "embed_tokens/embedding" in text
    assert "32x32 + diag 32" in text or "diag 32 + 32x32" in text
    assert make_table(*place()[:3])["embed_tokens/embedding"].block == "embedding"


@pytest.mark.parametrize("recipe", [KFAC(), EKFAC()])
def test_operators_are_symmetric_and_psd(recipe):
    model, params, batch, _ = place(tied=True)
    A = recipe(model, params, batch)
    apply = jax.jit(A.mv)
    u, v = tree.normal_like(jax.random.key(1), params), tree.normal_like(jax.random.key(2), params)
    Au, Av = apply(u), apply(v)
    scale = float(tree.norm(Au) * tree.norm(v))
    assert abs(float(tree.vdot(Au, v) - tree.vdot(u, Av))) < 1e-5 * scale
    assert float(tree.vdot(u, Au)) > 0
    assert A.psd


@pytest.mark.parametrize("how", [{"remat": "full"}, {"remat": "none", "attention": "blockwise"}])
def test_any_way_to_run_the_layers_gives_the_same(how, expected, vectors):
    assert_close(run((), *place(**how), vectors[False]), expected[False])


def test_microbatches_change_nothing(expected, vectors):
    assert_close(run((("microbatch", 2),), *place(tied=True), vectors[True]), expected[True])


@pytest.mark.parametrize("devices", ["one", "auto", "explicit"])
def test_gradient_and_factors_of_one_pass_are_those_of_two(devices):
    mesh = None if devices == "one" else sharding.make_mesh(2, 2, 2, explicit=devices == "explicit")
    settings = KFAC(fisher="empirical", microbatch=None if devices == "one" else 2)
    model, params, batch, _ = place(mesh, tied=True)
    loss, gradient, factors = gradient_and_factors(model, params, batch, settings)
    want = kronecker_factors(model, params, batch, settings)
    (total, count), grad = jax.jit(jax.value_and_grad(partial(ju.losses.nll, model), has_aux=True))(params, batch)
    assert float(loss) == pytest.approx(float(total / count), rel=1e-5)
    assert_close((factors.sums, factors.count), (want.sums, want.count))
    assert_close([gradient], [tree.scale(1 / count, grad)])
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(params), strict=True):
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
    with pytest.raises(ValueError, match="labels of the data"):
        gradient_and_factors(model, params, batch, KFAC())


def test_bfloat16_parameters_have_f32_factors():
    """With the labels of the data: rounded logits would draw others."""
    products = []
    for dtype in (jnp.float32, jnp.bfloat16):
        model, params, batch, v = place()
        params = jax.tree.map(lambda x: x.astype(dtype), params)  # noqa: B023
        A = KFAC(fisher="empirical")(model, params, batch)
        assert {x.dtype for x in jax.tree.leaves(A.sides)} == {jnp.dtype("float32")}
        products.append(jax.jit(A.mv)(v))
        assert {x.dtype for x in jax.tree.leaves(products[-1])} == {jnp.dtype("float32")}
    assert float(tree.norm(tree.sub(*products)) / tree.norm(products[0])) < 0.05


@pytest.mark.parametrize(("tied", "explicit"), [(True, False), (False, True)], ids=["auto, tied", "explicit"])
def test_eight_devices_equal_one(tied, explicit, expected, vectors):
    mesh = sharding.make_mesh(2, 2, 2, explicit=explicit)
    model, params, batch, v = place(mesh, tied)
    everywhere = jax.device_put(vectors[tied], NamedSharding(mesh, PartitionSpec()))
    got = run((), model, params, batch, v, everywhere)
    assert_close(got, expected[tied])
    for result in got[:2]:
        for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(params), strict=True):
            assert a.sharding.is_equivalent_to(b.sharding, a.ndim), f"{a.sharding} is not {b.sharding}"


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
def test_factors_are_spread_over_the_axes_of_their_parameter(explicit):
    model, params, batch, _ = place(sharding.make_mesh(2, 2, 2, explicit=explicit))
    factors = kronecker_factors(model, params, batch)
    eigen = eigendecompose(factors, params)
    kept = factors.sums["layers/mlp/gate_proj/kernel"]["matmul"]
    Q = eigen.vectors["layers/mlp/gate_proj/kernel"]
    for array in (kept["A"], kept["G"], Q["left"], Q["right"]):
        assert tuple(array.sharding.spec) == (None, "fsdp", "tensor")
    kernel = params["layers"]["mlp"]["gate_proj"]["kernel"]
    assert eigen.values["layers/mlp/gate_proj/kernel"].sharding.is_equivalent_to(kernel.sharding, 3)


def test_ordinary_use_pays_nothing():
    """On plain arrays no tap is traced: the gradient's program has the products it always had and no custom rule."""
    model, params, batch, _ = place()
    text = str(jax.make_jaxpr(lambda p: ju.losses.nll(model, p, batch)[0])(params))
    assert "custom_vjp" not in text
