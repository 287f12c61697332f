"""The metric of a step: curvatures of the parts of a batch, summed and damped.

    A = sum_i w_i A_i,     A_i = curvature(model, params, part i of the batch)

A part is named as in `UnlearnBatch`: `"retain"`, `"forget"`, or `"curvature"`, which carries curvature that was taken
beforehand (`curvature.Stored`), so that a step needs no retain examples.
"""

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, PyTree

from jaxunlearn import operators
from jaxunlearn.operators import LinearOperator
from jaxunlearn.solvers import SolveInfo
from jaxunlearn.types import Model, Params, UnlearnBatch

Curvature = Callable[[Model, Params, Any], LinearOperator]
"""Of a part of the batch: examples, or for `curvature.Stored` what was stored."""
Solver = Callable[..., tuple[PyTree, SolveInfo]]
Metric = tuple[tuple[str, float], ...]
Damp = Callable[[LinearOperator, Array], LinearOperator]

RETAIN: Metric = (("retain", 1.0),)
STORED: Metric = (("curvature", 1.0),)

_REMEDIES = {
    "curvature": "pass what was stored, for example curvature.load(folder, params), in every batch",
}


def metric_of(
    curvature: Curvature, model: Model, params: Params, batch: UnlearnBatch, metric: Metric = RETAIN
) -> LinearOperator:
    """`sum_i w_i A_i` over the `(part of the batch, weight)` pairs of `metric`, undamped.

    Raises:
        ValueError: when the batch lacks a part.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxunlearn.curvature import Identity
        >>> batch = UnlearnBatch(forget=jnp.zeros(2), retain=jnp.zeros(3))
        >>> metric_of(Identity(), None, jnp.zeros(2), batch, (("retain", 1.0), ("forget", 0.5)))(jnp.ones(2)).tolist()
        [1.5, 1.5]
    """
    terms = []
    for part, weight in metric:
        data = getattr(batch, part)
        if data is None:
            remedy = _REMEDIES.get(part, f"pass {part} examples in every batch")
            raise ValueError(
                f"curvature is taken on UnlearnBatch.{part}, which is None: {remedy}, or "
                "use a first-order method (methods.grad_ascent needs only forget)"
            )
        A = curvature(model, params, data)
        terms.append(A if weight == 1.0 else operators.scaled(weight, A, psd=A.psd and weight > 0))
    return terms[0] if len(terms) == 1 else operators.summed(*terms)


def damp_by(A: LinearOperator, damping: Array) -> LinearOperator:
    """`A + damping I`: damping in the units of the curvature."""
    return A.damped(damping)


def damp_by_mean(A: LinearOperator, damping: Array) -> LinearOperator:
    """Each block of a Kronecker-factored A damped by `damping` times the mean of its own eigenvalues: a share.

    Reference: Grosse et al., "Studying large language model generalization with influence functions", 2023.

    Raises:
        ValueError: when A is no `curvature.KroneckerOperator`, alone or in a sum.
    """
    if not hasattr(A, "damped_by_mean"):
        raise ValueError(
            f"{type(A).__name__} has no blocks to be damped by the mean of their eigenvalues; take one part's KFAC, "
            "EKFAC or Stored curvature as the metric, or damp=damp_by"
        )
    return A.damped_by_mean(damping)
