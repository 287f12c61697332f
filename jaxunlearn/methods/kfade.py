"""Forgetting in the metric of Kronecker factors: one pass over the retain set, kept, in the place of all later ones.

    maximise g_f.d subject to d.F d / 2 <= max_kl,     d ~ (F + damping)^-1 g_f,     F block-diagonal, A (x) G a matrix

F is the K-FAC or EK-FAC approximation of the Fisher matrix of the retain set, which is its Gauss-Newton matrix: the
inverse is exact and costs a fraction of a gradient. The factors may be taken in every step, or beforehand and saved:
then a step needs no retain examples, and the update can be made anew for another request, or after more training.

    eigen = eigendecompose(kronecker_factors(model, params, retain, KFAC()), params)
    curvature.save("factors", eigen)
    method = kfade(factors="factors")
    batch = UnlearnBatch(forget, curvature=curvature.load("factors", params))

Every step is as long as the factors allow. On a model that has memorised, those at temperature 1 nearly vanish and
allow far too much; `anchored_matching` bounds the whole way instead, in the metric of softened answers.

`gauss_newton_ascent` is the same with the exact matrix and conjugate gradients.
"""

from collections.abc import Callable
from typing import Literal

from jaxunlearn.curvature import EKFAC, KFAC, Stored
from jaxunlearn.methods.first_order import ASCENT
from jaxunlearn.methods.method import Method, compose
from jaxunlearn.objectives import Objective
from jaxunlearn.solvers import ClosedForm
from jaxunlearn.transforms import RETAIN, STORED, Curvature, TrustRegion, damp_by_mean


def kfade(
    *,
    max_kl: float = 1e-3,
    damping: float = 0.1,
    curvature: Literal["ekfac", "kfac"] = "ekfac",
    factors: str | None = None,
    samples: int = 1,
    microbatch: int | None = None,
) -> Method:
    """Steepest ascent on the forget loss per nat of KL on retain, in the metric of K-FAC or EK-FAC factors.

    Parameters without a factor (`only=` of the stored settings) do not move.

    Args:
        max_kl: cost of a step, nats of KL on retain; every step goes to that boundary. With stored factors it is the
            KL that they predict, and nothing is measured.
        damping: share of the mean eigenvalue of each block that is added to it; re-chosen each step from predicted and
            measured KL, or kept with stored factors.
        curvature: "ekfac" or "kfac": the factors that a step takes.
        factors: folder that `curvature.save` wrote, read instead of taking factors; every batch then carries
            its content in `curvature`, and retain examples serve the certificate only.
        samples: draws of labels a token for the factors that a step takes.
        microbatch: examples at a time while factors are taken, and in the gradient.

    After K-FADE (arXiv 2602.10568), from secondary sources.

    Example:
        >>> kfade(max_kl=1e-4).factors is None, kfade(factors="folder").factors
        (True, 'folder')
    """
    recipes: dict[str, Callable[..., Curvature]] = {"ekfac": EKFAC, "kfac": KFAC}
    if curvature not in recipes:
        raise ValueError(f"kfade(curvature={curvature!r}): choose one of {', '.join(map(repr, recipes))}")
    stored = factors is not None
    return compose(
        "kfade",
        Objective((ASCENT,), microbatch),
        Stored() if stored else recipes[curvature](samples=samples, microbatch=microbatch),
        ClosedForm(-1.0),
        damping=damping,
        trust_region=TrustRegion(max_kl, fill=True, predict="metric" if stored else "retain"),
        metric=STORED if stored else RETAIN,
        damp=damp_by_mean,
        factors=factors,
    )
