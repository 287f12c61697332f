"""Selective synaptic dampening: shrink the weights that matter far more to the forget set than to everything.

With `E_S = mean_{i in S} g_i^2` the mean squared gradient of an example of S, entry by entry, and D all the data,

    theta_j <- min(beta E_D,j / E_f,j, 1) theta_j     where  E_f,j > alpha E_D,j

and all other weights stay as they are. One pass over each set, no gradient step, no training. The squares are those of
single examples, as the Fisher information asks; released code squares the gradients of batches, which mixes in the
products of different examples.

Reference: Foster, Schoepf and Brintrup, "Fast machine unlearning without retraining through selective synaptic
dampening", AAAI 2024.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxunlearn import tree
from jaxunlearn.curvature import SquaredGradients
from jaxunlearn.methods.first_order import ASCENT
from jaxunlearn.methods.method import Method
from jaxunlearn.objectives import Objective
from jaxunlearn.objectives.objective import need
from jaxunlearn.transforms import edit_params
from jaxunlearn.types import Model, Params, UnlearnBatch


def ssd(*, alpha: float = 10.0, beta: float = 1.0, forget_share: float = 0.05, microbatch: int = 1) -> Method:
    """Selective synaptic dampening on the forget and retain examples of the batch; one step is the whole method.

    `E_D = forget_share E_f + (1 - forget_share) E_r`: the batch need not hold the two sets in their true proportion.

    Args:
        alpha: how many times more than to all the data a weight must matter to forget to be dampened.
        beta: how strongly it is dampened: smaller is stronger.
        forget_share: n_f / n, the share of the training examples that is to be forgotten, between 0 and 1. It must be
            below `1 / alpha`, or no weight can be chosen: `E_D >= forget_share E_f`.
        microbatch: examples whose gradients are held at a time.

    Reference: Foster et al., AAAI 2024.

    Example:
        >>> ssd(alpha=5.0).name
        'ssd'
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not value > 0:
            raise ValueError(f"ssd({name}={value}): give a positive number")
    if not 0 < forget_share < 1 or alpha * forget_share >= 1:
        raise ValueError(
            f"ssd(alpha={alpha}, forget_share={forget_share}): the share must be above 0 and below 1 / alpha, "
            "beyond which no weight can be chosen; lower alpha"
        )
    squares = SquaredGradients(microbatch=microbatch)

    def edit(model: Model, params: Params, batch: UnlearnBatch, key: Array) -> Params:
        retain = need(batch.retain, "retain", "pass retain examples in every batch")
        E_f, E_r = (squares(model, params, part).entries for part in (batch.forget, retain))
        E_D = jax.tree.map(lambda f, r: forget_share * f + (1 - forget_share) * r, E_f, E_r)
        factors = dampening_factors(E_f, E_D, alpha, beta)
        return tree.shard_like(jax.tree.map(jnp.multiply, factors, tree.to_vector(params)), params)

    return Method("ssd", Objective((ASCENT,)), edit_params(edit))


def dampening_factors(E_f: PyTree, E_D: PyTree, alpha: float, beta: float) -> PyTree:
    """What each weight is multiplied by, from the importances on forget and on all the data.

    Example:
        >>> dampening_factors(jnp.array([1.0, 1.0, 0.0]), jnp.array([0.5, 0.05, 0.0]), alpha=10.0, beta=1.0).tolist()
        [1.0, 0.05..., 1.0]
    """

    def factor(f: Array, d: Array) -> Array:
        chosen = f > alpha * d
        return jnp.where(chosen, jnp.minimum(beta * d / jnp.where(chosen, f, 1.0), 1.0), 1.0)

    return jax.tree.map(factor, E_f, E_D)
