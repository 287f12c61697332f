"""Every curvature on eight devices equals one device, products and powers, and stays laid out like the parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import flat, gathering, labelled, mlp, shard

import jaxunlearn as ju
from jaxunlearn import losses, tree
from jaxunlearn.curvature import (
    EmpiricalFisher,
    GaussNewton,
    GaussNewtonBartlett,
    Hessian,
    HutchinsonDiagonal,
    SquaredGradients,
    TrueFisher,
    empirical_fisher_factor,
    gauss_newton_factor,
)
from jaxunlearn.sharding import make_mesh

RECIPES = {
    "hessian": Hessian(4),
    "hessian, linearised": Hessian(mode="linearize"),
    "hessian, linearised in microbatches": Hessian(4, "linearize"),
    "hessian, by differences": Hessian(mode="finite_difference"),
    "gauss_newton": GaussNewton(),
    "empirical_fisher": EmpiricalFisher(6),
    "empirical_fisher, three at once": EmpiricalFisher(6, microbatch=3),
    "empirical_fisher, recomputed": EmpiricalFisher(6, stored=False, microbatch=2, block=4),
    "empirical_fisher, all recomputed": EmpiricalFisher(None, stored=False),
    "true_fisher": TrueFisher(4, draws=2),
    "true_fisher, recomputed": TrueFisher(None, stored=False),
    "hutchinson": HutchinsonDiagonal(Hessian(), 2),
    "bartlett": GaussNewtonBartlett(2, microbatch=4),
    "squared_gradients": SquaredGradients(microbatch=4),
    "squared_gradients, drawn": SquaredGradients(labels="drawn"),
}


def products(model, params, batch, v):
    """The product of every curvature, the inverse where it has one, and both halves of the factors."""
    out = {}
    for name, recipe in RECIPES.items():
        A = recipe(model, params, batch)
        out[name] = A(v)
        if "hessian" not in name and "gauss" not in name:
            out[f"{name}, inverse"] = A.damped(0.1).power(-1.0)(v)
    predict = lambda p, b: b.predict(model, p)
    example_nll = lambda p, b: losses.example_nll(model, p, b)
    out["gauss_newton factor"] = gauss_newton_factor(predict, params, batch, microbatch=8).operator()(v)
    out["empirical_fisher factor"] = empirical_fisher_factor(example_nll, params, batch, microbatch=8).operator()(v)
    return out


@pytest.fixture(scope="module")
def alone():
    model, params = mlp()
    batch, v = labelled(16), tree.normal_like(jax.random.key(0), params)
    return model, params, batch, v, jax.jit(products, static_argnums=0)(model, params, batch, v)


@pytest.mark.slow
@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
def test_eight_devices_equal_one(alone, explicit):
    model, params, batch, v, expected = alone
    mesh = make_mesh(data=2, fsdp=2, tensor=2, explicit=explicit)
    (params, batch), (v, _) = shard(params, batch, mesh), shard(v, batch, mesh)
    if explicit:
        model = ju.Model(logits=gathering(model.logits, mesh))
    got = jax.jit(products, static_argnums=0)(model, params, batch, v)
    for name, one in expected.items():
        bound = 2e-3 if "differences" in name else 1e-4 if "inverse" in name else 1e-5
        scale = float(jnp.abs(flat(one)).max())
        np.testing.assert_allclose(flat(jax.device_get(got[name])), flat(one), rtol=0, atol=bound * scale, err_msg=name)
        for a, b in zip(jax.tree.leaves(got[name]), jax.tree.leaves(params), strict=True):
            assert a.sharding.is_equivalent_to(b.sharding, a.ndim), f"{name}: {a.sharding} is not {b.sharding}"
