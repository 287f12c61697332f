"""A method: a named recipe over objective, curvature, solver and noise."""

from typing import NamedTuple

import optax

from jaxunlearn.objectives import Objective, reads
from jaxunlearn.transforms import (
    RETAIN,
    Curvature,
    Damp,
    Metric,
    Solver,
    TrustRegion,
    damp_by,
    precondition_by_curvature,
)


class Method(NamedTuple):
    """What `unlearn_step` runs. Hashable: a static argument of `jax.jit`.

    Attributes:
        name: recipe name.
        objective: the loss that is minimised.
        transform: optax transformation from its gradient to the parameter update.
        needs: stored parts of the original model's answers that every batch must carry in `reference` (and
            "retain_alternative", where the batch must carry that).
        certify: measure the certificate at every step (about two retain gradients, one forget gradient, one
            Gauss-Newton product and a few forwards); `method._replace(certify=False)` leaves it out.
        factors: folder of `curvature.save` whose content every batch must carry in `curvature`; a run loads
            it, a program does it with `curvature.load(method.factors, params)`.
        alternative: where a run takes `UnlearnBatch.alternative` from: "given" (each record's own `alternative`),
            "refusal", "mismatched" (answers of other forget records) or "sampled" (the original model's).
        retain: whether every batch must carry retain examples; False where the objective reads none and curvature, if
            any, was stored.
    """

    name: str
    objective: Objective
    transform: optax.GradientTransformationExtraArgs
    needs: tuple[str, ...] = ()
    certify: bool = True
    factors: str | None = None
    alternative: str | None = None
    retain: bool = True


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
    damp: Damp = damp_by,
    factors: str | None = None,
) -> Method:
    """Any objective under any curvature: `theta - step_size (A + damping I)^-1 grad objective`.

    `preconditioner`, a curvature with a closed-form inverse, speeds up an iterative solver; `damp` says in which units
    the damping is; see `transforms.precondition_by_curvature` for all arguments. `factors`: see `Method`.

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
        damp=damp,
    )
    measured = trust_region is not None and trust_region.predict == "retain"
    retain = measured or "retain" in dict(metric) or reads(objective.terms, "retain")
    transform = optax.chain(precondition, optax.scale(-1.0))
    return Method(name, objective, transform, needs, factors=factors, retain=retain)


def trust(max_kl: float | None, *, fill: bool = False, adapt: bool = True) -> TrustRegion | None:
    """The trust region a recipe's `max_kl` asks for, or none."""
    return None if max_kl is None else TrustRegion(max_kl, fill=fill, adapt=adapt)
