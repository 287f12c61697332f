"""Any objective under any curvature over any choice of parameters: the cross product, jitted, on eight devices."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
import pytest
from toys import mlp, shard, unlearn_batch

import jaxunlearn as ju
from jaxunlearn import methods, objectives, taps, tree
from jaxunlearn.curvature import (
    EKFAC,
    EmpiricalFisher,
    GaussNewton,
    GaussNewtonBartlett,
    Hessian,
    Identity,
    combine,
    over_chosen,
    partition,
)
from jaxunlearn.objectives import NLL, KLRetain, Objective
from jaxunlearn.sharding import make_mesh
from jaxunlearn.solvers import CG, ClosedForm

FORGET = {
    "ascent": (-1.0, NLL("forget")),
    "npo": (1.0, objectives.NPO()),
    "simnpo": (1.0, objectives.SimNPO()),
    "dpo": (1.0, objectives.DPO()),
    "refusal": (1.0, NLL("alternative")),
    "adversarial_label": (1.0, objectives.AdversarialNLL()),
    "undial": (1.0, objectives.UNDIAL()),
    "ce_u": (1.0, objectives.CrossEntropyUnlearning()),
    "weighted_ascent": (1.0, objectives.WeightedAscent()),
    "flattening": (1.0, objectives.LogitFlattening()),
    "max_entropy": (1.0, objectives.MaxEntropy()),
    "hinge": (1.0, objectives.InvertedHinge()),
    "matching": (1.0, objectives.CounterfactualKL()),
}
KEEP = {"nll": ((0.1, NLL("retain")),), "kl": ((0.1, KLRetain()),), "none": ()}
OBJECTIVES = {
    name: Objective((term, *KEEP[keep]))
    for (name, term), keep in zip(FORGET.items(), ("none", "nll", "kl") * len(FORGET), strict=False)
}
CURVATURES = {
    "identity": (Identity(), CG(2)),
    "hessian": (Hessian(), CG(6)),
    "gauss_newton": (GaussNewton(), CG(6)),
    "empirical_fisher": (EmpiricalFisher(8), ClosedForm()),
    "ekfac": (EKFAC(), ClosedForm()),
    "bartlett": (GaussNewtonBartlett(), ClosedForm()),
}
SCOPES = {"full": None, "lora": lambda path: "lora" in path, "last layer": ("1",)}


def adapted():
    """The toy classifier with a low-rank correction of each matrix."""
    _, params = mlp()
    keys = iter(jax.random.split(jax.random.key(3), 4))
    draw = lambda *shape: 0.3 * jax.random.normal(next(keys), shape)
    params = [
        layer | {"lora_a": draw(layer["w"].shape[0], 2), "lora_b": draw(2, layer["w"].shape[1])} for layer in params
    ]

    def product(x, layer):
        return taps.matmul(x, layer["w"]) + taps.matmul(taps.matmul(x, layer["lora_a"]), layer["lora_b"]) + layer["b"]

    return ju.Model(logits=lambda params, x: product(jnp.tanh(product(x, params[0])), params[1])), params


@partial(jax.jit, static_argnums=(0, 1))
def gradients(model, scope, params, batch):
    """Of every objective, over the chosen parameters."""
    chosen, over = choice(model, scope, params)
    return {name: objective.value_and_grad(over, chosen, batch)[1] for name, objective in OBJECTIVES.items()}


@partial(jax.jit, static_argnums=(0, 1, 2))
def step(model, curvature, scope, grads, params, batch):
    """What `unlearn_step` does with a gradient: the method's transformation, one program for all objectives."""
    method = methods.compose(curvature, OBJECTIVES["ascent"], *CURVATURES[curvature], damping=1.0, step_size=0.02)
    chosen, over = choice(model, scope, params)
    state = method.transform.init(chosen)
    updates, _ = method.transform.update(grads, state, chosen, model=over, batch=batch, key=jax.random.key(0))
    return optax.apply_updates(chosen, updates), tree.vdot(updates, grads)


def choice(model, scope, params):
    if SCOPES[scope] is None:
        return params, model
    chosen, rest = partition(params, SCOPES[scope])
    return chosen, over_chosen(model, rest)


@partial(jax.jit, static_argnums=(0, 1))
def value(objective, model, params, batch):
    return objective.value(model, params, batch)


@pytest.fixture(scope="module")
def problem():
    model, params = adapted()
    return model, params, unlearn_batch(model, params)


@pytest.fixture(scope="module", params=SCOPES)
def place(request, problem):
    """A choice of parameters, the sharded problem, and the gradient of every objective there."""
    model, params, batch = problem
    params, batch = shard(params, batch, make_mesh(1, 4, 2))
    return request.param, params, batch, gradients(model, request.param, params, batch)


@pytest.mark.parametrize("curvature", CURVATURES)
def test_every_objective_takes_a_step_in_its_direction(curvature, place, problem):
    model, params, batch = problem
    scope, sharded_params, sharded_batch, grads = place
    before = choice(model, scope, params)[0]
    if scope != "full":
        assert len(before) < len(jax.tree.leaves(params))
    for name, gradient in grads.items():
        after, slope = step(model, curvature, scope, gradient, sharded_params, sharded_batch)
        assert jax.tree.structure(after) == jax.tree.structure(before)
        assert bool(tree.all_finite(after)), name
        assert float(slope) < 0, name
        if name == "weighted_ascent":  # its gradient is not that of its value: the weights are held fixed
            continue
        after = jax.device_get(after)
        whole = after if scope == "full" else combine(after, partition(params, SCOPES[scope])[1])
        old, new = (float(value(OBJECTIVES[name], model, p, batch)) for p in (params, whole))
        assert new < old, name
