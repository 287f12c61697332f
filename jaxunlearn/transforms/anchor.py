"""An anchor: the gradient of a quadratic penalty on how far the model has moved, in the metric of a curvature.

    g -> g + strength A (theta - theta_0),     theta_0 where the run began

A trust region bounds each step and forgets it; an anchor remembers all of them, so that many small steps cannot add up
to a large one in directions that matter to what is kept. With A the Fisher matrix of the retain set, stored beforehand,
the penalty is the Laplace approximation of all that the retain set has taught the model, and stands for it where no
retain example is at hand.

Requests in a row move the model on, and the place where the curvature was taken stays behind. `held_at` puts the anchor
back there: begun anew at every request, it would let each of them add its damage to that of the others.

References: Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 2017 (a diagonal A);
Ritter, Botev and Barber, "Online structured Laplace approximations for overcoming catastrophic forgetting", NeurIPS
2018 (Kronecker factors).
"""

from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import PyTree

from jaxunlearn import tree
from jaxunlearn.transforms.metric import STORED, Curvature, Metric, metric_of
from jaxunlearn.types import Model, Params, UnlearnBatch


class AnchorState(NamedTuple):
    """State of `anchor_by_curvature`.

    Attributes:
        start: theta_0, a copy in f32.
    """

    start: Params


def anchor_by_curvature(
    curvature: Curvature, *, strength: float, metric: Metric = STORED
) -> optax.GradientTransformationExtraArgs:
    """`g -> g + strength A (theta - theta_0)`, to be chained before any optimiser.

    Args:
        curvature: recipe `(model, params, data) -> LinearOperator`, for example `curvature.Stored()`.
        strength: of the penalty `strength/2 (theta - theta_0).A (theta - theta_0)`, in units of the objective per nat.
        metric: `(part of the batch, weight)` pairs whose curvatures are summed into A.

    Raises:
        ValueError: for a strength that is not positive, or a batch that lacks a part.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxunlearn.curvature import Identity
        >>> anchor = anchor_by_curvature(Identity(), strength=10.0, metric=(("retain", 1.0),))
        >>> state = anchor.init(jnp.zeros(2))
        >>> batch = UnlearnBatch(forget=None, retain=jnp.zeros(1))
        >>> updates, _ = anchor.update(jnp.ones(2), state, jnp.array([0.0, 0.5]), model=None, batch=batch)
        >>> updates.tolist()
        [1.0, 6.0]
    """
    if not strength > 0:
        raise ValueError(f"anchor_by_curvature(strength={strength}): give a positive strength, or leave the anchor out")

    def init(params: Params) -> AnchorState:
        # A copy of its own: a state is donated, and no buffer can be donated twice.
        return AnchorState(jax.tree.map(lambda p: p + 0, tree.to_vector(params)))

    def update(grads, state, params=None, *, model: Model, batch: UnlearnBatch, **_):
        A = metric_of(curvature, model, params, batch, metric)
        return tree.axpy(strength, A(tree.sub(tree.to_vector(params), state.start)), grads), state

    return optax.GradientTransformationExtraArgs(init, update)


def held_at(opt_state: PyTree, start: Params) -> PyTree:
    """The state of a transformation whose anchors hold to `start` instead of the parameters it was begun at.

    Args:
        opt_state: of a chain with `anchor_by_curvature` in it, as `unlearn.init` leaves it.
        start: theta_0, parameters like those that are trained.

    Raises:
        ValueError: nothing in it is an anchor.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxunlearn.curvature import Identity
        >>> anchor = anchor_by_curvature(Identity(), strength=10.0, metric=(("retain", 1.0),))
        >>> held_at(anchor.init(jnp.ones(2)), jnp.zeros(2)).start.tolist()
        [0.0, 0.0]
    """

    def is_anchor(node: Any) -> bool:
        return isinstance(node, AnchorState)

    if not any(map(is_anchor, jax.tree.leaves(opt_state, is_leaf=is_anchor))):
        raise ValueError("held_at: no anchor in this state; chain transforms.anchor_by_curvature into the method")
    return jax.tree.map(
        lambda node: AnchorState(jax.tree.map(lambda p: p + 0, tree.to_vector(start))) if is_anchor(node) else node,
        opt_state,
        is_leaf=is_anchor,
    )
