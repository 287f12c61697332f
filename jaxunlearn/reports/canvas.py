"""The sheet both pictures are drawn on: colours, an empty figure, and its way into bytes or a file.

The colours are few and named, since a page that shows the picture sets them anew for its dark theme.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxunlearn.files import write_new

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, PAPER = "#24292f", "#ffffff"
PALETTE = {
    "blue": "#3573b1",
    "red": "#b4472f",
    "green": "#2f8254",
    "violet": "#7a4fb0",
    "ochre": "#a0761c",
    "teal": "#2b8a94",
}


def sheet(down: int, across: int, size: tuple[float, float]) -> tuple["Figure", list["Axes"]]:
    """An empty figure, 1200 pixels wide when 9 inches are asked for, and its axes, row by row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=1200 / 9.0, facecolor=PAPER)
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    for ax in axes:
        ax.set_facecolor("none")
        ax.grid(visible=True, color=INK, alpha=0.12, linewidth=0.7)
        ax.tick_params(which="both", colors=INK, labelsize=9)
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(INK)
    return figure, axes


@contextmanager
def any_script() -> Iterator[None]:
    """No warnings of glyphs: a model may be named in a script that matplotlib's own font lacks, and the letters of an
    SVG are drawn by the reader's fonts."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def deliver(figure: "Figure", path: str | Path | None, format: str) -> bytes:
    """The drawn figure as bytes, and as a new file when a path is given; its suffix then decides the format."""
    kind = Path(path).suffix.lstrip(".").lower() if path is not None else format
    if kind not in ("svg", "png"):
        raise ValueError(f"pictures are written as svg or png, not {kind!r}; give the file one of these suffixes")
    from matplotlib import rc_context

    buffer = io.BytesIO()
    empty: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None} if kind == "svg" else {}
    # Letters stay letters: they can be found, copied, and drawn in any script that the reader has a font for.
    with any_script(), rc_context({"svg.fonttype": "none"}):
        figure.savefig(buffer, format=kind, metadata=empty)
    content = buffer.getvalue()
    if path is not None:
        write_new(path, content)
    return content
