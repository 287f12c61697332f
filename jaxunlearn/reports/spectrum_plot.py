"""The spectrum of a curvature: how many eigenvalues there are of every size, and those known one by one.

Eigenvalues of a language model's curvature span many decades, most of them next to zero and a few far out, so sizes
stand on a logarithmic axis and the height is the number of eigenvalues per decade of size, logarithmic as well: the
area over a decade is a count. The band is the standard error over the probes. An outlier that was found one by one is
a stem whose height is what a single eigenvalue contributes under the same blur, with its error bound as a whisker,
mostly too short to be seen.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxunlearn.reports.canvas import INK, PALETTE, deliver, sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEAST = 0.3
"""Eigenvalues per decade at the foot of the picture: less than one is none."""


class Counts(NamedTuple):
    """Eigenvalues per decade of size at the points of a grid, and the standard error of that."""

    value: Float[np.ndarray, " g"]
    standard_error: Float[np.ndarray, " g"]


class Panel(NamedTuple):
    """The spectrum on one set of records.

    Attributes:
        title: which set, and how much of it.
        note: what no curve shows, such as the trace.
        decades: the grid, log10 of sizes of eigenvalues.
        positive, negative: counts there; None where no eigenvalue can be or is negative.
        outliers, errors: values found one by one, and their error bounds.
        blur: standard deviation of the smoothing, decades.
    """

    title: str
    note: str
    decades: Float[np.ndarray, " g"]
    positive: Counts
    negative: Counts | None
    outliers: Float[np.ndarray, " m"]
    errors: Float[np.ndarray, " m"]
    blur: float


def spectrum_picture(
    panels: Sequence[Panel],
    *paths: str | Path,
    title: str = "Spectrum of the curvature",
    format: Literal["svg", "png"] = "svg",
) -> bytes:
    """One row a panel on common axes, negative eigenvalues to the left of positive ones where there are any.

    Args:
        panels: one or more.
        paths: new files to write the picture to; their suffixes decide the formats.
        title: of the whole.
        format: "svg" or "png": of the bytes that are returned when no file is asked for.

    Errors:
        ValueError: no panel, or an existing file among `paths`.

    Example:
        >>> counts = Counts(np.array([5.0, 9.0, 2.0]), np.array([1.0, 1.0, 0.5]))
        >>> panel = Panel("retain", "", np.array([-3.0, -2.0, -1.0]), counts, None, np.array([0.1]), np.zeros(1), 0.1)
        >>> b"<svg" in spectrum_picture([panel])
        True
    """
    if not panels:
        raise ValueError("there is no spectrum to draw")
    signs = (-1, 1) if any(panel.negative is not None for panel in panels) else (1,)
    figure, axes = sheet(len(panels), len(signs), (9.0, 0.6 + 3.1 * len(panels)))
    low = min(panel.decades[0] for panel in panels)
    high = max(panel.decades[-1] for panel in panels)
    heights = [side.value.max(initial=1.0) for panel in panels for side in (panel.positive, panel.negative) if side]
    top = 10 ** (np.log10(max(*heights, *(_single(panel) for panel in panels))) * 1.08 + 0.25)
    for number, ax in enumerate(axes):
        panel, sign = panels[number // len(signs)], signs[number % len(signs)]
        _draw(ax, panel, sign)
        ax.set(xscale="log", yscale="log", ylim=(LEAST, top))
        decades_only(ax)
        ax.set_xlim(*((10**high, 10**low) if sign < 0 else (10**low, 10**high)))
        if sign == signs[0]:
            ax.set_ylabel("eigenvalues per decade", color=INK, fontsize=9)
            ax.set_title(panel.title, loc="left", fontsize=10.5, color=INK, parse_math=False, fontweight="bold", pad=21)
            place = {"xycoords": "axes fraction", "xytext": (0, 7), "textcoords": "offset points"}
            ax.annotate(panel.note, (0, 1), fontsize=9, color=INK, parse_math=False, **place)
        else:
            ax.tick_params(labelleft=False)
        if number >= len(axes) - len(signs):
            side = "size of negative eigenvalues" if sign < 0 else "eigenvalue" + "s above zero" * (len(signs) > 1)
            unit = f"{', ' if len(signs) == 1 else chr(10)}nats per loss token and unit² of parameters"
            ax.set_xlabel(side + unit, color=INK, fontsize=9)
    legend = axes[len(signs) - 1].legend(loc="upper right", fontsize=8.5, framealpha=0.9, edgecolor="none")
    for text in legend.get_texts():
        text.set_color(INK)
    figure.suptitle(title, x=0.012, ha="left", fontsize=12, color=INK, parse_math=False)
    figure.tight_layout(rect=(0, 0, 1, 0.99))
    return [deliver(figure, path, format) for path in paths or (None,)][-1]


def decades_only(ax: "Axes") -> None:
    """Ticks at powers of ten alone: over many decades those between say nothing, and take longest to draw."""
    from matplotlib.ticker import NullLocator

    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_locator(NullLocator())


def _single(panel: Panel) -> float:
    """The height of one eigenvalue's bell."""
    return 1 / (panel.blur * np.sqrt(2 * np.pi))


def _draw(ax: "Axes", panel: Panel, sign: int) -> None:
    counts, sizes = panel.positive if sign > 0 else panel.negative, 10**panel.decades
    colour = PALETTE["blue"] if sign > 0 else PALETTE["red"]
    if counts is not None:
        value, error = counts
        ax.fill_between(sizes, LEAST, np.maximum(value, LEAST), color=colour, alpha=0.13, linewidth=0)
        ax.fill_between(
            sizes, np.maximum(value - error, LEAST), np.maximum(value + error, LEAST), color=colour, alpha=0.28,
            linewidth=0, label="standard error over probes",
        )  # fmt: skip
        ax.plot(
            sizes, np.where(value > LEAST, value, np.nan), color=colour, linewidth=1.6, label="density by quadrature"
        )
    here = np.sign(panel.outliers) == sign
    at, error = np.abs(panel.outliers[here]), panel.errors[here]
    ax.vlines(at, LEAST, _single(panel), color=PALETTE["ochre"], linewidth=1.2)
    ax.errorbar(
        at, np.full(at.size, _single(panel)), xerr=np.minimum(error, 0.999 * at), color=PALETTE["ochre"], fmt="d",
        markersize=5, capsize=3, linewidth=1.2, label="outlier found, with its error bound",
    )  # fmt: skip
