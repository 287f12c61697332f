"""The comparison as a table for the terminal (rich) and as Markdown; both draw the same `Layout`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jaxunlearn.evals.result import Result
from jaxunlearn.reports.layout import Cell, lay_out

if TYPE_CHECKING:
    from rich.table import Table

FLOOR = "seed floor"
_LEGEND = "↓ lower is better, ↑ higher is better, → wanted value."
_FLOOR_LEGEND = (
    f"{FLOOR}: distance between two models retrained with different seeds; values at or under it are marked."
)


def side_by_side(
    results: Mapping[str, Result],
    *,
    metrics: Sequence[str] | None = None,
    floor: Mapping[str, float] | None = None,
    extra: Mapping[str, Mapping[str, float | str]] | None = None,
    title: str | None = None,
) -> "Table":
    """A rich table of models (columns) and metrics (rows); print it with `rich.print`.

    Args:
        results: model name to result of `evaluate`, in the order of the columns.
        metrics: which metrics, in which order; default all.
        floor: seed floor by metric, e.g. `{"forget_kl": 2.6}`, in the metric's unit.
        extra: further rows, label to model to value.
        title: stands above the table.

    Example:
        >>> from rich.console import Console
        >>> results = {"before": {"forget_kl": {"agg_value": 7.6}}, "after": {"forget_kl": {"agg_value": 2.06}}}
        >>> Console(width=80).print(side_by_side(results))  # doctest: +ELLIPSIS
        ┏━...
    """
    from rich.table import Table
    from rich.text import Text

    layout = lay_out(results, metrics=metrics, floor=floor, extra=extra)
    caption = "\n".join([_LEGEND, *([_FLOOR_LEGEND] if layout.has_floor else []), *_missing(layout.notes)])
    # A title may be a model's name, and a caption an error's words: neither is markup.
    table = Table(
        title=None if title is None else Text(title, "table.title"),
        caption=Text(caption, "table.caption"),
        caption_justify="left",
        title_justify="left",
    )
    table.add_column("metric")
    table.add_column("", justify="center")
    for model in layout.models:
        table.add_column(Text(model), justify="right")
    if layout.has_floor:
        table.add_column(FLOOR, justify="right", style="dim")
    for index, row in enumerate(layout.rows):
        last = index + 1 < len(layout.rows) and layout.rows[index + 1].group != row.group
        name = f"{row.label}, {row.unit}" if row.unit else row.label
        styles = {"good": "bold green", "missing": "dim", "": ""}
        cells = [Text(cell.text, style=styles[cell.mark]) for cell in row.cells]
        floors = [Text(row.floor)] if layout.has_floor else []
        table.add_row(Text(name), Text(row.direction), *cells, *floors, end_section=last)
    return table


def to_markdown(
    results: Mapping[str, Result],
    *,
    metrics: Sequence[str] | None = None,
    floor: Mapping[str, float] | None = None,
    extra: Mapping[str, Mapping[str, float | str]] | None = None,
) -> str:
    """The same table as GitHub-flavoured Markdown; values at or under the seed floor are bold.

    Example:
        >>> results = {"before": {"forget_kl": {"agg_value": 7.6}}, "after": {"forget_kl": {"agg_value": 2.06}}}
        >>> print(to_markdown(results, floor={"forget_kl": 2.6}).splitlines()[2])
        | KL to retrained, forget, nats/token | ↓ | 7.600 | **2.060** | 2.600 |
    """
    layout = lay_out(results, metrics=metrics, floor=floor, extra=extra)
    heads = ["metric", "", *layout.models, *([FLOOR] if layout.has_floor else [])]
    lines = [_line(heads), "|" + "|".join(["---", ":-:"] + ["--:"] * (len(heads) - 2)) + "|"]
    for row in layout.rows:
        name = f"{row.label}, {row.unit}" if row.unit else row.label
        floors = [row.floor] if layout.has_floor else []
        lines.append(_line([name, row.direction, *map(_bold, row.cells), *floors]))
    legend = [_LEGEND, *([_FLOOR_LEGEND] if layout.has_floor else []), *_missing(layout.notes)]
    return "\n".join([*lines, "", *legend]) + "\n"


def _missing(notes: Sequence[str]) -> list[str]:
    return ["No value: " + note for note in notes]


def _bold(cell: Cell) -> str:
    return f"**{cell.text}**" if cell.mark == "good" else cell.text


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
