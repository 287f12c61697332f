"""Labels beside points without overlap: try the nearest free place around each point, in order of crowding.

A greedy search over a ring of candidate places; a place costs what it covers (other labels, points, the edge of the
plot) and a little for its distance. Labels that had to move away get a thin line to their point. Few points, so the
quadratic cost does not matter.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxunlearn.reports.canvas import any_script

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

Box = tuple[float, float, float, float]
_DIRECTIONS = [math.radians(angle) for angle in (0, 45, 315, 90, 270, 135, 225, 180)]
_DISTANCES = (11.0, 22.0, 36.0, 52.0, 72.0, 96.0)
_LEADER_FROM = 24.0


def place_labels(
    ax: "Axes",
    points: Sequence[tuple[float, float]],
    labels: Sequence[str],
    colours: Sequence[str],
    *,
    ink: str,
    avoid: Sequence[Box] = (),
) -> list["Annotation"]:
    """Annotates each point (data coordinates) with its label and returns the annotations.

    Limits and margins of the axes must be final: places are found in pixels, as are the boxes in `avoid`.
    """
    figure = ax.figure
    renderer = figure.canvas.get_renderer()
    per_point = figure.dpi / 72.0
    pixels = [tuple(ax.transData.transform(point)) for point in points]
    marks = [_around(x, y, 7 * per_point) for x, y in pixels]
    frame = ax.get_window_extent(renderer)
    bounds = (frame.x0, frame.y0, frame.x1, frame.y1)
    taken: list[Box] = list(avoid)
    out = [None] * len(labels)
    crowding = [sum(math.dist(a, b) < 120 * per_point for b in pixels) for a in pixels]
    for index in sorted(range(len(labels)), key=lambda i: -crowding[i]):
        note = ax.annotate(
            labels[index],
            points[index],
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=10,
            color=ink,
            zorder=4,
            parse_math=False,
        )
        with any_script():
            size = note.get_window_extent(renderer)
        best = None
        for distance in _DISTANCES:
            for angle in _DIRECTIONS:
                box = _beside(pixels[index], size.width, size.height, distance * per_point, angle)
                covered = sum(
                    _overlap(box, other) for other in [*taken, *(m for i, m in enumerate(marks) if i != index)]
                )
                outside = _area(box) - _overlap(box, bounds)
                cost = covered + outside + 0.5 * distance * per_point
                if best is None or cost < best[0]:
                    best = (cost, box, distance)
        _, box, distance = best
        taken.append(box)
        x, y = pixels[index]
        note.set_position(((box[0] - x) / per_point, (box[1] - y) / per_point))
        if distance > _LEADER_FROM:
            end = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
            (x0, y0), (x1, y1) = ax.transData.inverted().transform([(x, y), end])
            ax.plot([x0, x1], [y0, y1], color=colours[index], linewidth=0.8, alpha=0.7, zorder=2, clip_on=False)
        out[index] = note
    return out


def _beside(point: tuple[float, float], width: float, height: float, distance: float, angle: float) -> Box:
    """The box whose nearest edge or corner lies `distance` from the point in the given direction."""
    across, up = math.cos(angle), math.sin(angle)
    x = point[0] + across * distance + round(across) * width / 2
    y = point[1] + up * distance + round(up) * height / 2
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _around(x: float, y: float, radius: float) -> Box:
    return x - radius, y - radius, x + radius, y + radius


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _overlap(a: Box, b: Box) -> float:
    return _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
