"""A sharded decoder whose leaves share one shape: products and methods equal one device, layouts included.

`test_methods.py` has every method on eight devices; here is one of each kind of work.

JAX 0.10 lowers `shard_alike` once per shape. With square projections all kernels of a layer have one shape but several
layouts, so this is the model on which tying one leaf to another leaf's layout would show.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import flat, token_batch

import jaxunlearn as ju
from jaxunlearn import methods, models, sharding, tree
from jaxunlearn.curvature import (
    EmpiricalFisher,
    GaussNewton,
    GaussNewtonBartlett,
    Hessian,
    TrueFisher,
)
from jaxunlearn.objectives import reference
from jaxunlearn.types import TopK

CONFIG = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
CURVATURES = {
    "hessian": Hessian(),
    "hessian, linearised": Hessian(mode="linearize"),
    "gauss_newton": GaussNewton(),
    "gauss_newton in microbatches": GaussNewton(4),
    "empirical_fisher": EmpiricalFisher(4),
    "empirical_fisher, recomputed": EmpiricalFisher(4, stored=False, microbatch=2),
    "true_fisher": TrueFisher(4),
    "bartlett": GaussNewtonBartlett(),
}
# Adam's usual epsilon would turn the rounding of vanishing gradients into steps of full length.
ADAM = optax.adam(1e-2, eps=1e-2)
METHODS = {
    "grad_diff": methods.grad_diff(optimizer=ADAM),
    "npo": methods.npo(optimizer=ADAM, retain="kl"),
    "rmu": methods.rmu(layer=1, optimizer=ADAM),
    "newton_removal": methods.newton_removal(damping=0.5, step_size=0.1, cg_steps=4),
    "fisher_removal": methods.fisher_removal(damping=0.5, samples=8, step_size=0.1),
    "counterfactual_matching": methods.counterfactual_matching(cg_steps=3),
}
CERTIFIED = "grad_diff"


def make_place(mesh):
    """`(model, params, batch, v)` of one seed, on one device or on a mesh."""
    model, params = models.init(models.DecoderConfig(**CONFIG), jax.random.key(0), mesh=mesh)
    rng = np.random.default_rng(0)
    forget, retain = token_batch(rng, 8), token_batch(rng, 8)
    ids = jnp.broadcast_to(jnp.arange(32, dtype=jnp.int32), (8, 8, 32))
    uniform = TopK(ids, jnp.full((8, 8, 32), -jnp.log(32.0)), jnp.ones((8, 8)))
    forget, retain, uniform = sharding.shard_batch(jax.device_get((forget, retain, uniform)), mesh)
    stored = ju.Reference(
        jax.jit(reference.forget_nll, static_argnums=0)(model, params, forget),
        jax.jit(reference.top, static_argnums=(0, 3))(model, params, retain, 4),
        uniform,
        retain_hidden=jax.jit(reference.hidden, static_argnums=(0, 3))(model, params, retain, 2),
    )
    waves = lambda p: jax.device_put(np.sin(np.arange(p.size, dtype=np.float32)).reshape(p.shape), p.sharding)
    return model, params, ju.UnlearnBatch(forget, retain, None, stored), jax.tree.map(waves, params)


@pytest.fixture(scope="session")
def alone():
    return make_place(None)


@pytest.fixture(scope="session", params=["auto", "explicit"])
def split(request):
    return make_place(sharding.make_mesh(2, 2, 2, explicit=request.param == "explicit"))


@pytest.fixture(scope="session")
def products():
    """The product of every curvature with a fixed vector, computed once a place."""

    def all_products(model, params, retain, v):
        return {name: recipe(model, params, retain)(v) for name, recipe in CURVATURES.items()}

    return jax.jit(all_products, static_argnums=0)


@pytest.fixture(scope="session")
def expected_products(alone, products):
    model, params, batch, v = alone
    return products(model, params, batch.retain, v)


def assert_laid_out_like(new, old):
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True):
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim), f"{a.sharding} is not {b.sharding}"
        assert jax.typeof(a).sharding == jax.typeof(b).sharding


def values(x):
    return np.asarray(flat(jax.device_get(x)))


def test_leaves_of_one_shape_have_several_layouts(split):
    layer = jax.tree.leaves(split[1]["layers"])
    layouts = {a.sharding.spec for a in layer if a.shape == (2, 16, 16)}
    assert len([a for a in layer if a.shape == (2, 16, 16)]) == 7
    assert len(layouts) > 1


def test_curvature_products_equal_one_device(split, products, expected_products):
    model, params, batch, v = split
    got = products(model, params, batch.retain, v)
    for name, expected in expected_products.items():
        expected = values(expected)
        np.testing.assert_allclose(values(got[name]), expected, atol=2e-5 * np.abs(expected).max(), err_msg=name)
        assert_laid_out_like(got[name], params)


def two_steps(name, place):
    model, params, batch, _ = place
    method = METHODS[name]._replace(certify=name == CERTIFIED)
    step = jax.jit(ju.unlearn_step, static_argnums=(0, 1), donate_argnums=2)
    state = ju.init(method, model, jax.tree.map(jnp.copy, params), key=jax.random.key(0))
    for _ in range(2):
        state, info = step(method, model, state, batch)
    return state, info


@pytest.fixture(scope="session")
def expected_steps(alone):
    done = {}
    return lambda name: done.get(name) or done.setdefault(name, two_steps(name, alone))


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_methods_equal_one_device(name, split, expected_steps):
    expected, expected_info = expected_steps(name)
    state, info = two_steps(name, split)
    assert bool(info.applied)
    moved = np.abs(values(expected.params) - values(split[1])).max()
    assert moved > 0
    np.testing.assert_allclose(values(state.params), values(expected.params), atol=max(1e-5, 0.01 * moved))
    assert_laid_out_like(state.params, split[1])
    if name in ("grad_diff", "npo"):
        for moments in (state.opt_state[0].mu, state.opt_state[0].nu):
            assert_laid_out_like(moments, split[1])
    if name == CERTIFIED:
        np.testing.assert_allclose(info.certificate, expected_info.certificate, rtol=2e-3, atol=1e-5)


def test_vector_algebra_gathers_nothing(split):
    """Inner products cost scalar all-reduces, sums of trees nothing: no leaf is gathered."""
    _, params, _, v = split

    def algebra(x, y):
        return tree.vdot(x, y), tree.axpy(0.5, x, y), tree.where(tree.norm(x) > 1, x, y), tree.shard_like(x, y)

    text = jax.jit(algebra).lower(params, v).compile().as_text()
    assert "all-reduce" in text
    assert text.count("all-gather") == 0


def test_a_cg_solve_gathers_no_more_than_its_products(split):
    """The loop's body holds one product; start and preparation of the solve hold at most another."""
    model, params, batch, v = split
    A = lambda p, r: GaussNewton()(model, p, r).damped(0.5)
    product = jax.jit(lambda p, r, x: A(p, r)(x)).lower(params, batch.retain, v).compile().as_text()
    solve = jax.jit(lambda p, r, x: ju.solvers.CG(4)(A(p, r), x)[0]).lower(params, batch.retain, v).compile().as_text()
    assert 0 < product.count(" all-gather(") <= solve.count(" all-gather(") <= 2 * product.count(" all-gather(")
