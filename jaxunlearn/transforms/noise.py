"""Noise shaped by curvature: much where what is kept would not notice, little where it would.

    u -> u + scale (A + lambda I)^p eps,     eps ~ N(0, I),     covariance scale^2 (A + lambda I)^(2 p)

A closed form makes the power exact (the dual form of the empirical Fisher, K-FAC, diagonals). For any other curvature,
such as the Gauss-Newton matrix, Lanczos does, with a bound on its error: `solvers.Lanczos(steps, power=-0.25)`.

Reference: Golatkar et al., "Eternal sunshine of the spotless net", CVPR 2020, where p = -1/4.
"""

from typing import NamedTuple

import jax
import optax
from jaxtyping import Array

from jaxunlearn import tree
from jaxunlearn.solvers import ClosedForm, SolveInfo
from jaxunlearn.transforms.metric import RETAIN, Curvature, Metric, Solver, metric_of
from jaxunlearn.transforms.precondition import blank_record, keep_types
from jaxunlearn.types import Model, Params, UnlearnBatch


class NoiseState(NamedTuple):
    """`add_curvature_noise` keeps a record between steps, no more; randomness comes from the `key` argument.

    Attributes:
        solve: how the power was taken in the last step.
    """

    solve: SolveInfo


def add_curvature_noise(
    curvature: Curvature, *, scale: float, damping: float, solver: Solver | None = None, metric: Metric = RETAIN
) -> optax.GradientTransformationExtraArgs:
    """`u -> u + scale (A + damping I)^p eps`, eps standard normal: large where the retain loss is flat.

    Args:
        curvature: recipe `(model, params, batch) -> LinearOperator`.
        scale: factor on the noise.
        damping: lambda > 0, in the units of the curvature.
        solver: applies the power p; default `solvers.ClosedForm(-0.25)`. `solvers.Lanczos(steps, power=-0.25)` for
            curvature without a closed form.
        metric: `(part of the batch, weight)` pairs whose curvatures are summed into A.

    Reference: Golatkar et al., "Eternal sunshine of the spotless net", CVPR 2020.

    Example:
        >>> from jaxunlearn.curvature import GaussNewton
        >>> from jaxunlearn.solvers import Lanczos
        >>> noise = add_curvature_noise(GaussNewton(), scale=1e-3, damping=0.1, solver=Lanczos(20, power=-0.25))
    """
    if not damping > 0:
        raise ValueError(f"damping={damping}: a negative power of a singular metric needs positive damping")
    solver = ClosedForm(-0.25) if solver is None else solver

    def init(params: Params) -> NoiseState:
        return NoiseState(blank_record(solver, params))

    def update(updates, state, params=None, *, model: Model, batch: UnlearnBatch, key: Array, **_):
        A = metric_of(curvature, model, params, batch, metric).damped(damping)
        noise, solve = solver(A, tree.normal_like(key, params))
        return jax.tree.map(lambda u, n: u + scale * n, updates, noise), NoiseState(keep_types(solve, state.solve))

    return optax.GradientTransformationExtraArgs(init, update)
