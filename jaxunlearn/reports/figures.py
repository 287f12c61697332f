"""The figures of a report, each with the words for those who cannot see it; `None` where its numbers are not there.

A picture on a page that is read aloud, printed in grey or quoted in a letter must not carry facts of its own. So every
alternative text states the numbers that the picture shows.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.evals.result import Result
from jaxunlearn.reports.distributions import Losses, loss_distributions, roc
from jaxunlearn.reports.layout import number
from jaxunlearn.reports.plots import Point, curves, forget_keep_plane
from jaxunlearn.reports.solves import solve_of, solve_record

Steps = Sequence[Mapping[str, float]]
CURVES = {
    "forget_nll": "NLL on forget",
    "retain_nll": "NLL on retain",
    "retain_kl": "KL on retain, per step",
    "damping": "damping",
    "update_norm": "length of the step",
}
COMMON = ("forget_nll", "retain_nll", "retain_kl")


class Figure(NamedTuple):
    """A picture with its caption.

    Attributes:
        svg: bytes of one of the plots, format "svg".
        title: heading.
        caption: how to read it.
        alt: what it shows, for those who cannot see it.
        anchor: name in the page's address, unique; default by its number.
    """

    svg: bytes
    title: str
    caption: str
    alt: str
    anchor: str = ""


def plane(columns: Mapping[str, Result], lead: str, floor: Mapping[str, float]) -> Figure | None:
    """Every model by its distance from the retrained one on forget and on retain."""
    points = plane_points(columns, lead)
    if not any(math.isfinite(point.x) and math.isfinite(point.y) for point in points):
        return None
    known = (floor["forget_kl"], floor["retain_kl"]) if {"forget_kl", "retain_kl"} <= set(floor) else None
    corner = "" if known is None else " The shaded corner is how far two retrained models lie apart."
    said = [f"{p.label}: {number(p.x)} on forget, {number(p.y)} on retain" for p in points]
    said += [] if known is None else [f"seed floor: {number(known[0])} on forget, {number(known[1])} on retain"]
    return Figure(
        forget_keep_plane(points, floor=known),
        "Forgetting against keeping",
        "Left is forgotten, down is kept; both are distances to the model retrained without the forget set." + corner,
        "KL to the retrained model, nats per token. " + "; ".join(said) + ".",
        "plane",
    )


def plane_points(columns: Mapping[str, Result], lead: str) -> list[Point]:
    """The points of the plane; the retrained model, which is its origin, and models without a distance have none.

    Example:
        >>> plane_points({"before": {"forget_kl": {"agg_value": 2.0}, "retain_kl": {"agg_value": 0.1}}}, "after")
        [Point(label='before', x=2.0, y=0.1, kind='before')]
    """
    points = []
    for name, result in columns.items():
        x, y = (_aggregate(result, metric) for metric in ("forget_kl", "retain_kl"))
        if name != "retrained" and x is not None and y is not None:
            points.append(Point(name, x, y, "lead" if name == lead else "before" if name == "before" else "method"))
    return points


def losses(columns: Mapping[str, Result], lead: str) -> Figure | None:
    """Losses of forget and unseen texts before, after and retrained, with the ROC of the attack on them."""
    wanted = dict.fromkeys(["before", lead, "retrained"])
    found = {name: pair for name in wanted if (pair := _losses(columns.get(name, {}))) is not None}
    if not found:
        return None
    parts = [
        f"{name}: forget {np.mean(pair.forget):.2f}, unseen {np.mean(pair.unseen):.2f}, area {roc(pair)[2]:.2f}"
        for name, pair in found.items()
    ]
    one = next(iter(found.values()))
    return Figure(
        loss_distributions(found),
        "What an attacker sees",
        f"The loss of each of {one.forget.size} texts that were to be forgotten and of {one.unseen.size} that no model "
        "saw. Where the two lie apart, the loss gives away what was learned. The last panel says how well: the "
        "diagonal, an area of one half, is blind guessing.",
        "Mean losses in nats per token, and area under the ROC of the loss attack. " + "; ".join(parts) + ".",
        "losses",
    )


def steps(run: Steps, stop: float | None = None) -> Figure | None:
    """What the run of the page recorded step by step; `stop` is the forget loss at which it was to end."""
    shown = _shown(run, [*CURVES, *_watched(run)])
    if not shown:
        return None
    titles = CURVES | {key: _title(key) for key in _watched(run)}
    # A place that no run comes near, such as the 1e9 of recipes that take all their steps, would flatten the curve.
    drawn = stop is not None and stop <= 2 * max(abs(step.get("forget_nll", 0.0)) for step in shown)
    where = ""
    if drawn:
        where = f" The dashed line is the loss at which the run was to stop, {stop:.3f}."
    elif stop is not None:
        where = f" The run was to stop at a loss on forget of {stop:.4g}, far above what it came to."
    return Figure(
        curves({"": shown}, titles=titles, targets={"forget_nll": stop} if drawn else None, target_label="stop"),
        "Step by step",
        "Measured on the batch of each step, before any evaluation." + where,
        f"From the first step to the last of {_ends(shown, titles)}.",
        "steps",
    )


def runs(history: Mapping[str, Steps], lead: str) -> Figure | None:
    """Several runs beside each other, by what all methods have in common; None where there are no two."""
    shown = {name: found for name, run in history.items() if (found := _shown(run, COMMON))}
    if len(shown) < 2:
        return None
    said = [f"{name}, {_ends(run, CURVES)}" for name, run in shown.items()]
    own = f" This page is about “{lead}”." if lead in shown else ""
    return Figure(
        curves(shown, titles=CURVES),
        f"{len(shown)} runs, step by step",
        "Every run from its own first step, measured on its own batches: compare where lines go rather than small "
        "differences between them." + own,
        "From the first step to the last. " + "; ".join(said) + ".",
        "runs",
    )


def solves(history: Steps, certificate: Mapping[str, Any]) -> Figure | None:
    """Residuals of the linear solves, and the Ritz values of the last one; None for a first-order method."""
    found = solve_of(history, certificate)
    if found is None:
        return None
    said = []
    if found.by_step.size:
        said.append(
            f"Relative residual {found.by_step[0]:.2e} at the first step and {found.by_step[-1]:.2e} at the last"
        )
    if found.by_product.size > 1:
        ends = f"from 1 to {found.by_product[-1]:.2e} in {found.by_product.size - 1} products"
        said.append(f"residual during the last solve {ends}")
    if found.ritz.size:
        said.append(f"{found.ritz.size} Ritz values between {found.ritz[0]:.2e} and {found.ritz[-1]:.2e}")
    damping = certificate.get("damping")
    return Figure(
        solve_record(found, damping=damping if _finite(damping) and damping > 0 else None),
        "How the equations were solved",
        "A residual well under 1 is a solved system; one near or above 1 is a step that was cut short, as trust "
        "regions and negative curvature do on purpose. Ritz values are the curvature in the directions the solve "
        "looked at; below 0 the loss curves downwards.",
        "; ".join(said) + ".",
        "solves",
    )


def _losses(result: Result) -> Losses | None:
    """Of the loss attack: its scores are minus the losses."""
    measure = result.get("forget_loss_auc", {})
    sides = [list((measure.get(key) or {}).values()) for key in ("value_by_index", "holdout_by_index")]
    if not all(sides) or any(value is None for side in sides for value in side):
        return None
    return Losses(*(-np.array(side, np.float64) for side in sides))


def _aggregate(result: Result, metric: str) -> float | None:
    return result.get(metric, {}).get("agg_value")


def _shown(run: Steps, keys: Sequence[str]) -> list[dict[str, float]]:
    """Steps with the numbers that can be drawn; empty where there is none."""
    found = [
        {"step": i, **{key: step[key] for key in keys if _finite(step.get(key))}} for i, step in enumerate(run, start=1)
    ]
    return found if any(len(step) > 1 for step in found) else []


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _watched(run: Steps) -> list[str]:
    return list(dict.fromkeys(key for step in run for key in step if key.startswith("watched_")))


def _title(key: str) -> str:
    return key.removeprefix("watched_").replace("_", " ") + ", evaluated"


def _ends(run: Steps, titles: Mapping[str, str]) -> str:
    """First and last value of each quantity, in words."""
    keys = list(dict.fromkeys(key for step in run for key in step if key != "step"))
    values = {key: [step[key] for step in run if key in step] for key in keys}
    ends = [f"{titles.get(key, key)} {number(found[0])} to {number(found[-1])}" for key, found in values.items()]
    return f"{len(run)} steps: " + ", ".join(ends)
