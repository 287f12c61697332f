"""One-shot edits as optax transformations, so that they run, certify, save and compare like every other method.

Some methods are no steps along a gradient: they read statistics of the data and write new parameters. Their update is
the difference

    u = edit(model, params, batch, key) - params

whatever the gradient is; the objective of such a method only says how the edit is judged.
"""

from collections.abc import Callable

import jax
import optax
from jaxtyping import Array

from jaxunlearn import tree
from jaxunlearn.types import Model, Params, UnlearnBatch

Edit = Callable[[Model, Params, UnlearnBatch, Array], Params]


def edit_params(edit: Edit) -> optax.GradientTransformationExtraArgs:
    """A transformation whose update leads to `edit(model, params, batch, key)`.

    Args:
        edit: pure; gives f32 parameters laid out like those it takes. The key is that of the step.

    Example:
        >>> import jax.numpy as jnp
        >>> halve = edit_params(lambda model, params, batch, key: params / 2)
        >>> params = jnp.array([2.0, 4.0])
        >>> updates, _ = halve.update(params, halve.init(params), params, model=None, batch=None, key=None)
        >>> optax.apply_updates(params, updates).tolist()
        [1.0, 2.0]
    """

    def update(grads, state, params=None, *, model: Model, batch: UnlearnBatch, key: Array, **_):
        new = edit(model, params, batch, key)
        difference = jax.tree.map(lambda a, b: a - b, tree.to_vector(new), tree.to_vector(params))
        return difference, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
