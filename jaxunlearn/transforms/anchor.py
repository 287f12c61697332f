"""An anchor: the gradient of a quadratic penalty on how far the model has moved, in the metric of a curvature.

    g -> g + strength A (theta - theta_0),     theta_0 where the run began

A trust region bounds each step and forgets it; an anchor remembers all of them, so that many small steps cannot add up
to a large one in directions that matter to what is kept. With A the Fisher matrix of the retain set, stored beforehand,
the penalty is the Laplace approximation of all that the retain set has taught the model, and stands for it where no
retain example is at hand.

References: Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 2017 (a diagonal A);
Ritter, Botev and Barber, "Online structured Laplace approximations for overcoming catastrophic forgetting", NeurIPS
2018 (Kronecker factors).
"""

from typing import NamedTuple

import jax
import optax

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
