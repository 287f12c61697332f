"""A method: a named recipe over objective, curvature, solver and noise."""

from typing import NamedTuple

import optax

from jaxunlearn.objectives import Objective
from jaxunlearn.transforms import RETAIN, Curvature, Metric, Solver, TrustRegion, precondition_by_curvature


class Method(NamedTuple):
    """What `unlearn_step` runs. Hashable: a static argument of `jax.jit`.

    Attributes:
        name: recipe name.
        objective: the loss that is minimised.
        transform: optax transformation from its gradient to the parameter update.
        needs: stored parts of the original model's answers that every batch must carry in `reference`.
        certify: measure the certificate at every step (about two retain gradients, one forget gradient, one
            Gauss-Newton product and a few forwards); `method._replace(certify=False)` leaves it out.
    """

    name: str
    objective: Objective
    transform: optax.GradientTransformationExtraArgs
    needs: tuple[str, ...] = ()
    certify: bool = True


def compose(
    name: str,
    objective: Objective,
    curvature: Curvature,
    solver: Solver,
    *,
    damping: float,
    step_size: float = 1.0,
    trust_region: TrustRegion | None = None,
    metric: Metric = RETAIN,
    needs: tuple[str, ...] = (),
    preconditioner: Curvature | None = None,
) -> Method:
    """Any objective under any curvature: `theta - step_size (A + damping I)^-1 grad objective`.

    `preconditioner`, a curvature with a closed-form inverse, speeds up an iterative solver; see
    `transforms.precondition_by_curvature` for all arguments.

    Example:
        >>> from jaxunlearn import curvature, objectives, solvers
        >>> npo = objectives.Objective(((1.0, objectives.NPO(beta=0.1)),))
        >>> method = compose("npo under Gauss-Newton", npo, curvature.GaussNewton(), solvers.CG(), damping=0.1)
        >>> method.name
        'npo under Gauss-Newton'
    """
    precondition = precondition_by_curvature(
        curvature,
        solver,
        damping=damping,
        step_size=step_size,
        trust_region=trust_region,
        metric=metric,
        preconditioner=preconditioner,
    )
    return Method(name, objective, optax.chain(precondition, optax.scale(-1.0)), needs)


def trust(max_kl: float | None, *, fill: bool = False, adapt: bool = True) -> TrustRegion | None:
    """The trust region a recipe's `max_kl` asks for, or none."""
    return None if max_kl is None else TrustRegion(max_kl, fill=fill, adapt=adapt)
