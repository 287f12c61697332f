"""The damping path of a Newton step, drawn: what it costs the retain set and gains on forget, against the damping.

Two panels over one axis. Lines are predictions of the full step; dots are the same step tried and measured, so that
where dots leave their line the quadratic model is no longer true. The diamond is the step that a trust region leaves
when it shortens (or lengthens) the step at the method's damping to what it allows; the dashed line is what every
damping gains when brought to the bound in this way: how much the choice of the damping matters, at equal cost.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxunlearn.reports.canvas import INK, PALETTE, deliver, sheet
from jaxunlearn.reports.spectrum_plot import decades_only

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UNSOLVED = 0.1
"""Relative residual above which a step is not the solution of its system."""


class Taken(NamedTuple):
    """A step that a method took: its damping, the factor that the trust region put on it, the products of its solve, KL
    on retain and gain on forget."""

    damping: float
    factor: float
    products: int
    kl: float
    gain: float
    kl_measured: float
    gain_measured: float


class Tried(NamedTuple):
    """Full steps that were tried: their dampings, and measured KL on retain and gain on forget."""

    damping: Float[np.ndarray, " n"]
    kl: Float[np.ndarray, " n"]
    gain: Float[np.ndarray, " n"]


class Curves(NamedTuple):
    """A damping path and what is marked on it.

    Attributes:
        damping: lambda, ascending.
        kl, gain: predicted for the full step, nats per loss token.
        residual: relative, of the solve.
        positive_definite: whether the damped curvature is.
        tried: measured steps.
        taken: the method's first step; None where there is none.
        max_kl: bound of the trust region; None for none.
        damping_at_bound: at which the full step costs just that; None where every step costs less.
        method: its name.
    """

    damping: Float[np.ndarray, " d"]
    kl: Float[np.ndarray, " d"]
    gain: Float[np.ndarray, " d"]
    residual: Float[np.ndarray, " d"]
    positive_definite: Bool[np.ndarray, " d"]
    tried: Tried
    taken: Taken | None
    max_kl: float | None
    damping_at_bound: float | None
    method: str


def damping_picture(
    curves: Curves, *paths: str | Path, title: str = "", format: Literal["svg", "png"] = "svg"
) -> bytes:
    """Cost on the left, gain on the right.

    Args:
        curves: what to draw.
        paths: new files to write the picture to; their suffixes decide the formats.
        title: of the whole.
        format: "svg" or "png": of the bytes that are returned when no file is asked for.

    Errors:
        ValueError: no damping has a positive definite curvature with a finite prediction, or an existing file.
    """
    drawn = curves.positive_definite & np.isfinite(curves.kl) & (curves.kl > 0) & (curves.gain > 0)
    if not drawn.any():
        raise ValueError("no damping of the path makes the curvature positive definite; look at larger dampings")
    figure, axes = sheet(1, 2, (9.0, 5.2))
    cost, gain = axes
    for ax, predicted, tried in ((cost, curves.kl, curves.tried.kl), (gain, curves.gain, curves.tried.gain)):
        colour = PALETTE["blue"] if ax is cost else PALETTE["red"]
        ax.set(xscale="log", yscale="log", xlim=(curves.damping[0], curves.damping[-1]))
        decades_only(ax)
        what = "KL" if ax is cost else "gain"
        ax.plot(
            curves.damping[drawn], predicted[drawn], color=colour, linewidth=1.8, label=f"{what}, full step, predicted"
        )
        seen = np.isfinite(tried) & (tried > 0)
        ax.plot(
            curves.tried.damping[seen], tried[seen], "o", color=colour, mfc="white", ms=6, clip_on=False, zorder=3,
            label=f"{what}, full step, tried and measured",
        )  # fmt: skip
        ax.set_xlabel("damping λ", color=INK, fontsize=9)
    cost.set_title("what it costs: KL on retain", loc="left", fontsize=10.5, color=INK, fontweight="bold")
    gain.set_title("what it gains: loss on forget", loc="left", fontsize=10.5, color=INK, fontweight="bold")
    cost.set_ylabel("nats per retain loss token", color=INK, fontsize=9)
    gain.set_ylabel("rise, nats per forget loss token", color=INK, fontsize=9)
    if curves.max_kl is not None:
        cost.axhline(
            curves.max_kl,
            color=INK,
            linewidth=1,
            linestyle=(0, (4, 3)),
            alpha=0.75,
            label=f"KL allowed to a step, {curves.max_kl:g} nats",
        )
        scaled = curves.gain[drawn] * np.sqrt(curves.max_kl / curves.kl[drawn])
        gain.plot(
            curves.damping[drawn], scaled, color=INK, linewidth=1.2, linestyle=(0, (4, 3)), alpha=0.75,
            label="gain, any step brought to that KL, predicted",
        )  # fmt: skip
    _mark(cost, gain, curves)
    for ax in axes:
        _shade(ax, curves, drawn)
    named = {name: handle for ax in axes for handle, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    legend = figure.legend(named.values(), named, loc="lower left", ncols=2, fontsize=9, frameon=False)
    for text in legend.get_texts():
        text.set(color=INK, parse_math=False)
    figure.suptitle(title, x=0.012, ha="left", fontsize=12, color=INK, parse_math=False)
    figure.tight_layout(rect=(0, (0.12 + 0.19 * -(-len(named) // 2)) / figure.get_figheight(), 1, 0.99))
    return [deliver(figure, path, format) for path in paths or (None,)][-1]


def _mark(cost: "Axes", gain: "Axes", curves: Curves) -> None:
    at, taken = curves.damping_at_bound, curves.taken
    if at is not None:
        value = _at(curves, curves.gain, at)
        for ax, height in ((cost, curves.max_kl), (gain, value)):
            ax.plot(
                [at], [height], "s", color=PALETTE["green"], ms=8, zorder=4,
                label=f"full step with just that KL: λ = {at:.3g}",
            )  # fmt: skip
    if taken is None:
        return
    label = (
        f"first step of {curves.method}: λ = {taken.damping:.3g}, {taken.products} products, times {taken.factor:.2g}"
    )
    for ax, height, curve in ((cost, taken.kl, curves.kl), (gain, taken.gain, curves.gain)):
        if not height > 0:
            continue
        if np.interp(taken.damping, curves.damping, curves.positive_definite) == 1:
            ax.plot([taken.damping] * 2, [_at(curves, curve, taken.damping), height], color=PALETTE["violet"], zorder=3)
        ax.plot([taken.damping], [height], "D", color=PALETTE["violet"], ms=8, zorder=5, label=label)


def _at(curves: Curves, values: Float[np.ndarray, " d"], damping: float) -> float:
    """A curve between its points, on logarithmic axes."""
    return float(np.exp(np.interp(np.log(damping), np.log(curves.damping), np.log(np.maximum(values, 1e-300)))))


def _shade(ax: "Axes", curves: Curves, drawn: Bool[np.ndarray, " d"]) -> None:
    """Where there is no Newton step, or where the run was too short to find it."""
    low, indefinite = curves.damping[0], ~curves.positive_definite
    if indefinite.any():
        edge = curves.damping[np.flatnonzero(indefinite)[-1]]
        ax.axvspan(
            low, edge, color=PALETTE["red"], alpha=0.08, linewidth=0, label="curvature + λ not positive definite"
        )
        low = edge
    rough = drawn & (curves.residual > UNSOLVED)
    if rough.any():
        edge = curves.damping[np.flatnonzero(rough)[-1]]
        label = f"full step not solved for: residual above {UNSOLVED:.0%}"
        ax.axvspan(low, edge, color=INK, alpha=0.07, linewidth=0, label=label)
