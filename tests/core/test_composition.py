"""Any objective under any curvature over any choice of parameters: the cross product, jitted, on eight devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import mlp, shard, unlearn_batch

import jaxunlearn as ju
from jaxunlearn import methods, objectives, taps, tree
from jaxunlearn.curvature import EKFAC, EmpiricalFisher, GaussNewton, GaussNewtonBartlett, Hessian, Identity
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


@partial(jax.jit, static_argnums=(0, 1, 2))
def steps(model, curvature, scope, params, batch):
    """One step of every objective, in one program: the whole parameters afterwards, and the slope along the step."""
    done = {}
    for name, objective in OBJECTIVES.items():
        method = methods.compose(name, objective, *CURVATURES[curvature], damping=1.0, step_size=0.02)
        method = method._replace(certify=False)
        state = ju.init(method, model, params, key=jax.random.key(0), trainable=SCOPES[scope])
        state, info = ju.unlearn_step(method, model, state, batch)
        after = state.whole()
        slope = tree.vdot(objective.value_and_grad(model, params, batch)[1], tree.sub(after, params))
        done[name] = (after, info.applied, slope)
    return done


@partial(jax.jit, static_argnums=(0, 1))
def value(objective, model, params, batch):
    return objective.value(model, params, batch)


@pytest.fixture(scope="module")
def problem():
    model, params = adapted()
    return model, params, unlearn_batch(model, params)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("curvature", CURVATURES)
def test_every_objective_takes_a_step_in_its_direction(curvature, scope, problem):
    model, params, batch = problem
    leaves = jax.tree_util.tree_leaves_with_path(params)
    chosen = SCOPES[scope]
    on_mesh = shard(params, batch, make_mesh(1, 4, 2))
    for name, (after, applied, slope) in jax.device_get(steps(model, curvature, scope, *on_mesh)).items():
        assert bool(applied), name
        assert bool(tree.all_finite(after)), name
        assert float(slope) < 0, name
        if name != "weighted_ascent":  # its gradient is not that of its value: the weights are held fixed
            before, now = (float(value(OBJECTIVES[name], model, p, batch)) for p in (params, after))
            assert now < before, name
        for (path, old), new in zip(leaves, jax.tree.leaves(after), strict=True):
            where = jax.tree_util.keystr(path, simple=True, separator="/")
            inside = chosen is None or (chosen(where) if callable(chosen) else where.startswith("1/"))
            if not inside:
                np.testing.assert_array_equal(old, new, err_msg=f"{name} {where}")
