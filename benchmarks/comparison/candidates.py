"""Which methods are compared, and what is tried of each: the same number of trials for all.

A candidate is a recipe with a grid of hyperparameters of exactly `BUDGET` points; what is not in the grid is at its
published default, or said in `fixed` where the default belongs to another size of model. The grids are laid around
what suits models of this size, before any result was seen, and are as wide for baselines as for our own; only those of
`anchored_matching` (with either steps), `matching_pulled_back` and of matching both ways came after results on the
tuning seed.

Three regimes say what of the retain set is at hand. Without any of it a candidate must have a form that needs none:
its retain term left out, or curvature that was stored beforehand.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from jaxunlearn.curvature import Identity, Stored
from jaxunlearn.methods import CATALOGUE, Method, compose, matching
from jaxunlearn.methods.first_order import Retain
from jaxunlearn.objectives import NLL, CounterfactualKL, Divergence, Objective
from jaxunlearn.solvers import ClosedForm
from jaxunlearn.transforms import STORED, TrustRegion, anchor_by_curvature, damp_by_mean

BUDGET = 6
REGIMES = {"whole": 1.0, "five percent": 0.05, "none": 0.0}

Options = dict[str, Any]


class Candidate(NamedTuple):
    """A method as it is compared.

    Attributes:
        make: the recipe.
        grid: values to try by option; their product has `BUDGET` points.
        fixed: other options.
        without: options that make it need no retain example; None where there are none.
        order: "first", "second" or "edit": how it stands in the tables.
        gradients: gradients a step, curvature products apart.
        ascends: whether it is stopped where the forget loss reaches that of unseen text.
        steps: most steps.
        trains: "all", "lora" or "layers" (unlearning layers).
        stored: whether it reads curvature taken beforehand, whatever the regime.
        softened: whether that is curvature of softened answers.
        rows: forget and retain records a step, where it must see more than others.
    """

    make: Callable[..., Method]
    grid: dict[str, tuple]
    fixed: Options
    without: Options | None
    order: str
    gradients: float
    ascends: bool = True
    steps: int = 60
    trains: str = "all"
    stored: bool = False
    softened: bool = False
    rows: tuple[int, int] = (24, 32)

    @property
    def trials(self) -> list[Options]:
        """The points of the grid."""
        names, values = list(self.grid), itertools.product(*self.grid.values())
        return [dict(zip(names, point, strict=True)) for point in values]

    def runs_in(self, regime: str) -> bool:
        """Whether the method can do without what the regime lacks."""
        return regime != "none" or self.without is not None


RATES = {"learning_rate": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)}
REGION = {"max_kl": (1e-4, 1e-3, 1e-2), "damping": (0.01, 0.1)}
ALONE = {"retain": "none"}


def _first(name: str, gradients: float, without: Options | None = ALONE, **changes: Any) -> Candidate:
    entry = CATALOGUE[name]
    fields = {"grid": RATES, "fixed": {}, "ascends": entry.ascends} | changes
    return Candidate(entry.make, without=without, order="first", gradients=gradients, **fields)


def _second(name: str, gradients: float, **changes: Any) -> Candidate:
    entry = CATALOGUE[name]
    fields = {"grid": REGION, "fixed": {}, "without": None, "ascends": entry.ascends} | changes
    return Candidate(entry.make, order="second", gradients=gradients, **fields)


def matching_by_stored(*, max_kl: float, damping: float, factors: str) -> Method:
    """The same objective in the metric of stored EK-FAC factors: no retain example is read."""
    return compose(
        "matching_by_stored",
        Objective(((1.0, CounterfactualKL("forward")),)),
        Stored(),
        ClosedForm(-1.0),
        damping=damping,
        trust_region=TrustRegion(max_kl, predict="metric"),
        metric=STORED,
        damp=damp_by_mean,
        factors=factors,
        needs=("counterfactual_top",),
    )


def matching_pulled_back(
    *,
    optimizer: optax.GradientTransformation,
    strength: float,
    retain: Retain = "nll",
    divergence: Divergence = "forward",
) -> Method:
    """The same objective pulled back to where it began by a plain `strength/2 |theta - theta_0|^2`: what the curvature
    of an anchor has to beat."""
    method = matching(optimizer=optimizer, retain=retain, divergence=divergence)
    anchor = anchor_by_curvature(Identity(), strength=strength, metric=(("forget", 1.0),))
    return method._replace(name="matching_pulled_back", transform=optax.chain(anchor, method.transform))


def retain_only(*, optimizer: optax.GradientTransformation) -> Method:
    """Fine-tuning on what is kept, the forget set untouched: forgetting by neglect."""
    return Method("retain_only", Objective(((1.0, NLL("retain")),)), optax.with_extra_args_support(optimizer))


CANDIDATES: dict[str, Candidate] = {
    "retain_only": Candidate(retain_only, RATES, {}, None, "first", 1, ascends=False),
    "grad_ascent": _first("grad_ascent", 1, {}),
    "grad_diff": _first("grad_diff", 2, None),
    "grad_ascent_kl": _first("grad_ascent_kl", 2, None),
    "wga": _first("wga", 2),
    "satimp": _first("satimp", 2),
    "npo": _first("npo", 2),
    "simnpo": _first("simnpo", 2),
    "dpo": _first("dpo", 3),
    "idk_dpo": _first("idk_dpo", 3),
    "altpo": _first("altpo", 3),
    "refusal": _first("refusal", 2),
    "random_label": _first("random_label", 2),
    "adversarial_label": _first("adversarial_label", 2),
    "undial": _first("undial", 2, fixed={"retain": "nll"}),
    "max_entropy": _first("max_entropy", 3),
    "ce_u": _first("ce_u", 1, {}),
    "inverted_hinge": _first("inverted_hinge", 2),
    "pdu": _first("pdu", 2, None, fixed={"eps": 0.05}),
    "rmu": _first(
        "rmu",
        2,
        None,
        grid={"learning_rate": (1e-4, 1e-3, 1e-2), "coefficient": (2.0, 6.5)},
        fixed={"layer": 1, "retain_weight": 100.0},
    ),
    "memflex": _first("memflex", 2, None, trains="lora"),
    "eul": _first("eul", 4, None, trains="layers", grid={"learning_rate": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)}),
    "sam": _first("sam", 3),
    "smoothed": _first("smoothed", 6),
    "matching": _first("matching", 2, fixed={"divergence": "forward"}, steps=40),
    "matching_pulled_back": Candidate(
        matching_pulled_back,
        {"learning_rate": (3e-4, 1e-3), "strength": (0.01, 0.1, 1.0)},
        {},
        ALONE,
        "first",
        2,
        ascends=False,
    ),
    "soul": Candidate(CATALOGUE["soul"].make, RATES, {}, None, "second", 2.2),
    "newton_removal": _second("newton_removal", 1, fixed={"cg_steps": 10}),
    "fisher_removal": _second("fisher_removal", 2, fixed={"samples": 32}),
    "influence": _second("influence", 3, fixed={"samples": 32}),
    "gauss_newton_ascent": _second("gauss_newton_ascent", 1),
    "counterfactual_matching": _second("counterfactual_matching", 2, steps=40, fixed={"divergence": "forward"}),
    "win_u": _second("win_u", 2, fixed={"draws": 1}),
    "cubic_newton": _second("cubic_newton", 1, grid={"max_kl": (1e-4, 1e-3, 1e-2), "L": (40.0, 400.0)}),
    "kfade": _second("kfade", 3),
    "kfade, stored": _second("kfade", 1, without={}, stored=True),
    "win_u, stored": _second("win_u", 2, fixed={"draws": 1}, without={}, stored=True),
    "matching, stored": Candidate(
        matching_by_stored, REGION, {}, {}, "second", 1, ascends=False, steps=40, stored=True
    ),
    "anchored_matching, stored": Candidate(
        CATALOGUE["anchored_matching"].make,
        {"learning_rate": (3e-4, 1e-3), "strength": (100.0, 300.0, 1000.0)},
        {"retain_weight": 1.0, "divergence": "forward"},
        {"retain_weight": 0.0},
        "second",
        2,
        ascends=False,
        stored=True,
        softened=True,
    ),
    "anchored_matching by stored steps, both ways": Candidate(
        CATALOGUE["anchored_matching"].make,
        {"max_kl": (1e-4, 3e-4), "strength": (3.0, 10.0, 30.0)},
        {"retain_weight": 1.0},
        {"retain_weight": 0.0},
        "second",
        2,
        ascends=False,
        stored=True,
        softened=True,
    ),
    "noisy_newton": _second("noisy_newton", 2, fixed={"samples": 32, "cg_steps": 10}),
    "fisher_forgetting": Candidate(
        CATALOGUE["fisher_forgetting"].make,
        {"sigma": (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)},
        {"samples": 64},
        None,
        "edit",
        1,
        ascends=False,
        steps=1,
        rows=(24, 64),
    ),
    "ssd": Candidate(
        CATALOGUE["ssd"].make,
        {"alpha": (1.5, 3.0, 5.0), "beta": (0.3, 1.0)},
        {},
        None,
        "edit",
        3,
        ascends=False,
        steps=1,
        rows=(128, 256),
    ),
    "kfac_edit, stored": Candidate(
        CATALOGUE["kfac_edit"].make,
        {"rho": (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)},
        {},
        {},
        "edit",
        0,
        ascends=False,
        steps=1,
        stored=True,
    ),
}

# Forward, as published, and in both directions: the same methods. The best points of the grids above lay on their
# edges, so all four are moved by one or two places.
MOVED = {
    "matching": {"learning_rate": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)},
    "matching_pulled_back": {"learning_rate": (1e-3, 3e-3), "strength": (0.001, 0.01, 0.1)},
    "counterfactual_matching": {"max_kl": (1e-3, 1e-2, 1e-1), "damping": (0.01, 0.1)},
    "anchored_matching, stored": {"learning_rate": (1e-3, 3e-3), "strength": (10.0, 30.0, 100.0)},
}
CANDIDATES |= {
    f"{name}, both ways": CANDIDATES[name]._replace(
        grid=grid, fixed=CANDIDATES[name].fixed | {"divergence": "jeffreys"}
    )
    for name, grid in MOVED.items()
}

QUICK = ("grad_diff", "npo", "matching", "gauss_newton_ascent", "counterfactual_matching", "kfade, stored")
