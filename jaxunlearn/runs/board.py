"""The live display of a stage: a bar with steps and the time left, and the numbers of the last step under it."""

from collections.abc import Iterable

from rich.columns import Columns
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from jaxunlearn.runs.facts import in_words


class Board(Progress):
    """Tasks carry `facts`, the numbers of their last step, which wrap where the terminal is narrow."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            parts = in_words(task.fields.get("facts") or {})
            if parts:
                cells = [Text.assemble((f"{label} ", "dim"), (value, _style(label, value))) for label, value in parts]
                yield Columns(cells, padding=(0, 3))


def board(console: Console) -> Board:
    """An empty board that disappears at its end."""
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), MofNCompleteColumn(),
        TimeRemainingColumn(), TextColumn("left", style="dim"),
    )  # fmt: skip
    return Board(*columns, console=console, transient=True)


def _style(label: str, value: str) -> str:
    """A solve that broke down, and a step that was thrown away, are to be seen."""
    broken = value.startswith("NOT APPLIED") or (label == "solver" and value in ("negative curvature", "non finite"))
    return "bold yellow" if broken else "bold"
