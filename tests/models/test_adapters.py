"""Flax models of other authors become models of this library."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jaxunlearn import models
from jaxunlearn.types import LabelledBatch


class Classifier(nnx.Module):
    def __init__(self, rngs, dropout=None):
        self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)])
        self.dropout = None if dropout is None else nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x):
        h = jnp.tanh(self.layers[0](x))
        return self.layers[1](h if self.dropout is None else self.dropout(h))


X = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


@pytest.mark.parametrize("dropout", [None, 0.5])
def test_nnx_module_gives_its_own_logits_and_plain_parameters(dropout):
    module = Classifier(nnx.Rngs(0), dropout)
    module.eval()
    model, params = models.from_nnx(module)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    assert jax.tree.all(jax.tree.map(lambda leaf: leaf.dtype == jnp.float32, params))
    np.testing.assert_allclose(jax.jit(model.logits)(params, X), module(X), atol=1e-6)
    predictions = LabelledBatch(X, jnp.zeros(5, jnp.int32)).predict(model, params)
    assert predictions.logits.shape == (5, 1, 2)


def test_nnx_models_are_static_arguments_and_differentiable():
    model, params = models.from_nnx(Classifier(nnx.Rngs(0)))
    again, _ = models.from_nnx(Classifier(nnx.Rngs(1)))
    assert model == again
    assert hash(model) == hash(again)

    def product(model, params, v):
        return jax.jvp(jax.grad(lambda p: jnp.sum(model.logits(p, X) ** 2)), (params,), (v,))[1]

    # The loss is quadratic in the last layer, so that block of the Hessian is positive on it.
    v = jax.tree.map(jnp.zeros_like, params)
    v["layers"][1] = jax.tree.map(jnp.ones_like, v["layers"][1])
    Hv = jax.jit(product, static_argnums=0)(model, params, v)
    assert sum(float(jnp.sum(a * b)) for a, b in zip(jax.tree.leaves(v), jax.tree.leaves(Hv), strict=True)) > 0


@pytest.mark.parametrize("module", [linen.Dense(2), linen.Sequential([linen.Dense(4), jnp.tanh, linen.Dense(2)])])
def test_linen_module_gives_its_own_logits(module):
    variables = module.init(jax.random.key(0), X)
    model = models.from_linen(module)
    logits = jax.jit(lambda model, params: model.logits(params, X), static_argnums=0)(model, variables["params"])
    np.testing.assert_allclose(logits, module.apply(variables, X), atol=1e-6)


def test_equal_linen_modules_are_equal_models():
    assert models.from_linen(linen.Dense(2)) == models.from_linen(linen.Dense(2))
    assert models.from_linen(linen.Dense(2)) != models.from_linen(linen.Dense(3))


def test_what_is_no_flax_module_is_refused():
    with pytest.raises(ValueError, match=r"from_nnx\(\) takes a flax\.nnx\.Module, not function"):
        models.from_nnx(lambda x: x)
    with pytest.raises(ValueError, match=r"from_linen\(\) takes a flax\.linen\.Module, not int"):
        models.from_linen(3)
    with pytest.raises(ValueError, match=r"has no nnx\.Param"):
        models.from_nnx(nnx.Dropout(0.5))
    with pytest.raises(ValueError, match=r"made by models\.load or models\.init"):
        models.save("never-written", *models.from_nnx(Classifier(nnx.Rngs(0))))
