"""Two pictures: the forget-versus-keep plane, and what happened step by step.

The plane answers the question of unlearning at a glance: how far is each model from the retrained one on what was to
be forgotten (left is better) and on what was to be kept (down is better)? The shaded corner is the seed floor, within
which a model is no further from the retrained one than another retraining would be.

Drawn with matplotlib's object interface, so no global state of the caller's plots is touched.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from jaxunlearn.reports.canvas import INK, PALETTE, deliver, sheet
from jaxunlearn.reports.labels import Box, place_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    "before": PALETTE["red"],
    "method": PALETTE["blue"],
    "lead": PALETTE["violet"],
    "retrained": PALETTE["green"],
}
MARKERS = {"before": "s", "method": "o", "lead": "D", "retrained": "*"}
_SERIES = tuple(PALETTE.values())
# Colour is not the only difference (WCAG 2, 1.4.1): lines are told apart in grey print as well, and 24 runs in all.
_DASHES = ("solid", (0, (5, 2)), (0, (1, 1.3)), (0, (7, 2, 1, 2)))
_DOTS = ("o", "s", "^", "D")


class Point(NamedTuple):
    """One model in the plane.

    Attributes:
        label: its name.
        x, y: KL to the retrained model on forget and on retain, nats per token.
        kind: "before", "method", "lead" (the method the page is about) or "retrained".
    """

    label: str
    x: float
    y: float
    kind: Literal["before", "method", "lead", "retrained"] = "method"


def forget_keep_plane(
    points: Sequence[Point],
    path: str | Path | None = None,
    *,
    floor: tuple[float, float] | None = None,
    format: Literal["svg", "png"] = "svg",
) -> bytes:
    """Scatter of models by their KL to the retrained model on forget (x) and on retain (y), both logarithmic.

    Args:
        points: the models. Those that are not finite are named under the plot, those at 0 stand on the edge.
        path: also write the picture there (a new file; its suffix decides the format).
        floor: KL between two retrained seeds, (forget, retain), nats per token.
        format: "svg" or "png" (1200 x 800 pixels).

    Returns:
        The picture's bytes.

    Errors:
        ValueError: no point to draw, an unknown format, or an existing file at `path`.

    Example:
        >>> points = [Point("before", 7.6, 0.01, "before"), Point("after", 2.1, 0.02)]
        >>> picture = forget_keep_plane(points, floor=(2.6, 0.01))
        >>> picture.lstrip().startswith(b"<?xml")
        True
    """
    shown = [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]
    if not shown:
        raise ValueError("there is no model with a finite divergence to draw")
    figure, axes = sheet(1, 1, (9.0, 6.0))
    ax = axes[0]
    xs, ys = (_log_range([p[i] for p in shown] + ([floor[i - 1]] if floor else [])) for i in (1, 2))
    _log_axes(ax, xs, ys)
    placed = [(max(point.x, xs[0]), max(point.y, ys[0])) for point in shown]
    for point, (x, y) in zip(shown, placed, strict=True):
        size = 150 if point.kind == "retrained" else 70
        ax.scatter([x], [y], s=size, c=COLOURS[point.kind], marker=MARKERS[point.kind], zorder=3, clip_on=False)
    ax.set_xlabel("KL to the retrained model on the forget set, nats per token   (left: forgotten)", color=INK)
    ax.set_ylabel("KL to the retrained model on the retain set   (down: kept)", color=INK)
    hidden = [point.label for point in points if point not in shown]
    if hidden:
        figure.text(0.01, 0.01, f"Not finite, not drawn: {', '.join(hidden)}", color=INK, fontsize=9, parse_math=False)
    figure.subplots_adjust(left=0.1, right=0.97, top=0.97, bottom=0.12)
    obstacles = [] if floor is None else _draw_floor(ax, floor, xs, ys)
    place_labels(ax, placed, [p.label for p in shown], [COLOURS[p.kind] for p in shown], ink=INK, avoid=obstacles)
    return deliver(figure, path, format)


def curves(
    history: Mapping[str, Sequence[Mapping[str, float]]],
    path: str | Path | None = None,
    *,
    targets: Mapping[str, float] | None = None,
    target_label: str = "retrained",
    titles: Mapping[str, str] | None = None,
    format: Literal["svg", "png"] = "svg",
) -> bytes:
    """One small panel a quantity, one line a run, against the step.

    Args:
        history: run name to its steps, each `{"step": 3, "forget_loss": 1.2, "retain_loss": .1, "kl": .01, ...}`;
            a quantity a run lacks is left out of its line. "step" defaults to the position.
        path: also write the picture there (a new file).
        targets: a value of a quantity worth comparing with, drawn as a dashed line.
        target_label: what that value is, such as "retrained" for the retrained model's.
        titles: panel titles by quantity; default its name with spaces.
        format: "svg" or "png".

    Errors:
        ValueError: nothing to draw.

    Example:
        >>> len(curves({"npo": [{"forget_loss": 0.1}, {"forget_loss": 2.0}]})) > 1000
        True
    """
    from matplotlib.ticker import MaxNLocator

    names = list(dict.fromkeys(key for steps in history.values() for step in steps for key in step if key != "step"))
    if not names:
        raise ValueError("the history holds no step with a value to draw")
    across = min(3, len(names))
    down = -(-len(names) // across)
    # A letter is about 5.5 points wide, and a column of the legend has a line and a margin of 66 besides.
    columns = min(4, max(1, int(640 / (66 + 5.5 * max(map(len, history))))))
    legend_rows = -(-len(history) // columns) if len(history) > 1 else 0
    figure, axes = sheet(down, across, (9.0, 2.7 * down + 0.27 * legend_rows))
    for ax, name in zip(axes, names, strict=False):
        for index, (run, steps) in enumerate(history.items()):
            at = [step.get("step", i) for i, step in enumerate(steps) if name in step]
            values = [float(step[name]) for step in steps if name in step]
            marker = "." if len(at) < 2 else "" if index % 8 < 4 else _DOTS[index % 4]
            ax.plot(
                at, values, color=_SERIES[index % len(_SERIES)], linestyle=_DASHES[index % 4], linewidth=1.8, label=run,
                marker=marker, markersize=4 if len(at) > 1 else None, markevery=max(1, len(at) // 8),
            )  # fmt: skip
        if targets and name in targets:
            ax.axhline(targets[name], color=INK, linewidth=1, linestyle=(0, (4, 3)), alpha=0.7)
            ax.annotate(
                target_label,
                (1, targets[name]),
                xycoords=("axes fraction", "data"),
                xytext=(-3, 3),
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color=INK,
            )
        ax.set_title(
            (titles or {}).get(name, name.replace("_", " ")), loc="left", fontsize=10, color=INK, parse_math=False
        )
        ax.set_xlabel("step", color=INK, fontsize=9)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    for ax in axes[len(names) :]:
        ax.set_visible(False)
    top = 1.0
    if len(history) > 1:
        legend = figure.legend(
            axes[0].get_lines()[: len(history)], list(history), ncols=columns, handlelength=3.6, frameon=False,
            loc="upper left",
        )  # fmt: skip
        for text in legend.get_texts():
            text.set(parse_math=False, color=INK)
        top = 1 - (0.1 + 0.24 * legend_rows) / figure.get_figheight()
    figure.tight_layout(rect=(0, 0, 1, top))
    return deliver(figure, path, format)


def _log_axes(ax: "Axes", xs: tuple[float, float], ys: tuple[float, float]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    for scale, limits, axis, (low, high) in (
        (ax.set_xscale, ax.set_xlim, ax.xaxis, xs),
        (ax.set_yscale, ax.set_ylim, ax.yaxis, ys),
    ):
        scale("log")
        limits(low, high)
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1e4 else (1,), numticks=20))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())


def _draw_floor(ax: "Axes", floor: tuple[float, float], xs: tuple[float, float], ys: tuple[float, float]) -> list[Box]:
    """The floor's lines and corner; returns what labels should stay off, in pixels."""
    x, y = floor
    if x > 0 and y > 0:
        ax.fill_between([xs[0], x], ys[0], y, color=COLOURS["retrained"], alpha=0.12, linewidth=0)
    if x > 0:
        ax.axvline(x, color=COLOURS["retrained"], linewidth=1, linestyle=(0, (4, 3)))
    if y > 0:
        ax.axhline(y, color=COLOURS["retrained"], linewidth=1, linestyle=(0, (4, 3)))
    edge = ax.transData.transform((max(x, xs[0]), max(y, ys[0])))
    frame = ax.get_window_extent()
    leftwards = edge[0] - frame.x0 > 0.35 * frame.width
    note = ax.annotate(
        "seed floor: two retrained models\nare this far apart",
        (max(x, xs[0]), ys[1]),
        xytext=(-6 if leftwards else 6, -6),
        textcoords="offset points",
        va="top",
        ha="right" if leftwards else "left",
        fontsize=9,
        color=COLOURS["retrained"],
    )
    text = note.get_window_extent(ax.figure.canvas.get_renderer())
    half = 3.0
    return [
        (edge[0] - half, frame.y0, edge[0] + half, frame.y1),
        (frame.x0, edge[1] - half, frame.x1, edge[1] + half),
        (text.x0, text.y0, text.x1, text.y1),
    ]


def _log_range(values: Sequence[float]) -> tuple[float, float]:
    """Limits around the positive values, with room for labels; a zero stands on the lower edge."""
    positive = [value for value in values if value > 0] or [1.0]
    low, high = math.log10(min(positive)), math.log10(max(positive))
    margin = max(0.2 * (high - low), 0.25)
    return 10 ** (low - margin), 10 ** (high + margin)
