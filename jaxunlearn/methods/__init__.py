"""Methods by name. Each is a function of its hyperparameters that returns a `Method`; one family a file."""

from collections.abc import Callable
from typing import NamedTuple

from jaxunlearn.methods.first_order import grad_ascent, grad_diff, npo
from jaxunlearn.methods.fisher import fisher_forgetting, fisher_removal
from jaxunlearn.methods.gauss_newton import counterfactual_matching, gauss_newton_ascent
from jaxunlearn.methods.method import Method, compose
from jaxunlearn.methods.newton import newton_removal

__all__ = [
    "CATALOGUE",
    "Entry",
    "Method",
    "compose",
    "counterfactual_matching",
    "fisher_forgetting",
    "fisher_removal",
    "gauss_newton_ascent",
    "grad_ascent",
    "grad_diff",
    "newton_removal",
    "npo",
]


class Entry(NamedTuple):
    """A line of `jaxunlearn methods`.

    Attributes:
        make: the recipe.
        family: where it belongs.
        needs: what it must be given besides the forget set.
        cost: gradients (g), Hessian-vector (H) and Gauss-Newton (G) products a step, without the certificate.
        source: where the method comes from.
        ascends: True when it has no minimum to stop at, so that a run needs a stop rule.
        steps: default of a run.
        batch_size: forget records a step, default of a run.
        retain_size: retain records a step, default of a run.
        run_options: hyperparameters a run adds unless told otherwise. A recipe's own defaults are the bare formula;
            on a model that has memorised, its step needs a trust region.
    """

    make: Callable[..., Method]
    family: str
    needs: str
    cost: str
    source: str
    ascends: bool = True
    steps: int = 60
    batch_size: int = 32
    retain_size: int = 64
    run_options: tuple[tuple[str, float], ...] = ()


_TRUST = (("max_kl", 1e-3),)

CATALOGUE: dict[str, Entry] = {
    "grad_ascent": Entry(grad_ascent, "first order", "nothing", "1 g", "Jang et al. 2023"),
    "grad_diff": Entry(grad_diff, "first order", "retain", "2 g", "Liu et al. 2022; TOFU"),
    "npo": Entry(npo, "first order", "retain, stored log-probs", "2 g", "Zhang et al. 2024"),
    "newton_removal": Entry(
        newton_removal, "second order", "retain", "1 g + cg_steps H", "Guo et al. 2020", run_options=_TRUST
    ),
    "fisher_removal": Entry(
        fisher_removal, "second order", "retain", "(1 + samples/batch) g", "after Gu et al. 2024", run_options=_TRUST
    ),
    "fisher_forgetting": Entry(
        fisher_forgetting, "noise", "retain", "(samples/batch) g", "after Gu et al. 2024", ascends=False, steps=1
    ),
    "gauss_newton_ascent": Entry(
        gauss_newton_ascent, "second order", "retain", "1 g + (cg_steps + 1) G", "exact form of K-FADE 2026"
    ),
    "counterfactual_matching": Entry(
        counterfactual_matching,
        "second order",
        "retain, entity names",
        "2 g + (2 cg_steps + 1) G",
        "objective after Liu et al. 2024",
        ascends=False,
        steps=40,
    ),
}
