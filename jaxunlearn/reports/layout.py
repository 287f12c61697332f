"""Results side by side, as rows of text: the one layout that the terminal, Markdown and the report page all show.

Columns are models (before, after each method, retrained), rows are metrics. A divergence from the retrained model can
only be judged against the *seed floor*, the divergence between two models retrained with different seeds, so the floor
stands in a column of its own and values at or under it are marked. A row nobody could compute is not shown but noted
with the reason; a single missing value is a dash with a note.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from jaxunlearn.evals.catalogue import METRICS, about, family, ordered
from jaxunlearn.evals.result import Measure, Result, why_missing

MISSING = "–"
Mark = Literal["", "good", "missing"]


class Cell(NamedTuple):
    """One value as text; `mark` is "good" at or under the seed floor, "missing" where there is none."""

    text: str
    mark: Mark = ""


class Row(NamedTuple):
    """One metric.

    Attributes:
        label, unit, meaning: what it is.
        direction: "↓", "↑", "→ 0.5" or empty.
        cells: one for each model.
        floor: the seed floor, empty where there is none.
        group: rows of one group stand together.
    """

    label: str
    unit: str
    meaning: str
    direction: str
    cells: tuple[Cell, ...]
    floor: str
    group: str


class Layout(NamedTuple):
    """A table: column heads, rows, and notes on what is missing."""

    models: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def has_floor(self) -> bool:
        return any(row.floor for row in self.rows)


def lay_out(
    results: Mapping[str, Result],
    *,
    metrics: Sequence[str] | None = None,
    floor: Mapping[str, float] | None = None,
    extra: Mapping[str, Mapping[str, float | str]] | None = None,
) -> Layout:
    """Arranges results for reading.

    Args:
        results: model name to result, in the order of the columns.
        metrics: which metrics, in which order; default: all of the catalogue that any model has or misses.
        floor: seed floor of a metric, in its unit, e.g. `{"forget_kl": 2.6}`.
        extra: further rows, label to model to value, e.g. the products or the time spent.

    Errors:
        ValueError: no results, or a metric that is not in the catalogue.

    Example:
        >>> layout = lay_out({"before": {"forget_kl": {"agg_value": 7.6}}}, floor={"forget_kl": 2.6})
        >>> layout.rows[0].direction, layout.rows[0].cells[0].text, layout.rows[0].floor
        ('↓', '7.600', '2.600')
    """
    if not results:
        raise ValueError("a table needs the result of at least one model")
    unknown = [name for name in metrics or () if family(name) is None]
    if unknown:
        raise ValueError(f"no metric is called {unknown[0]!r}; there are {', '.join(METRICS)}")
    rows, notes = [], {}
    for name in metrics or ordered(name for result in results.values() for name in result):
        measures = {model: result[name] for model, result in results.items() if name in result}
        reasons = {model: why_missing(measure) for model, measure in measures.items()}
        if not measures:
            continue
        for model, reason in reasons.items():
            if reason is not None:
                notes.setdefault((name, reason), []).append(model)
        if all(reasons.values()) and all("skipped" in measure for measure in measures.values()):
            continue
        rows.append(_row(name, [measures.get(model) for model in results], (floor or {}).get(name)))
    for label, values in (extra or {}).items():
        cells = tuple(_extra(values.get(model)) for model in results)
        rows.append(Row(label, "", "", "", cells, "", "cost"))
    return Layout(tuple(results), tuple(rows), tuple(_notes(notes, len(results))))


def number(value: float) -> str:
    """A value for a column of aligned figures: three decimals, powers of ten where those would say nothing.

    Example:
        >>> number(0.26666), number(0.0), number(1.834e-21), number(12345.6)
        ('0.267', '0', '1.8e-21', '12346')
    """
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:.0f}" if abs(value) < 1e7 else f"{value:.1e}"
    return f"{value:.3f}" if abs(value) >= 0.0005 else f"{value:.1e}"


def _row(name: str, measures: Sequence[Measure | None], floor: float | None) -> Row:
    metric = about(name)
    arrow = {"better": "↑", "worse": "↓", "neither": ""}[metric.higher_is]
    direction = f"→ {metric.target:g}" if metric.target is not None else arrow
    cells = tuple(_cell(name, measure, floor) for measure in measures)
    shown = "" if floor is None else number(floor)
    return Row(metric.label, metric.unit, metric.meaning, direction, cells, shown, metric.group)


def _cell(name: str, measure: Measure | None, floor: float | None) -> Cell:
    if measure is None or why_missing(measure) is not None:
        return Cell(MISSING, "missing")
    value = measure["agg_value"]
    if value == 0 and measure.get("log10_p", 0) < -300:
        return Cell(f"1e{measure['log10_p']:.0f}")
    reached = floor is not None and about(name).higher_is == "worse" and 0 < value <= floor
    return Cell(number(value), "good" if reached else "")


def _extra(value: float | str | None) -> Cell:
    if value is None:
        return Cell(MISSING, "missing")
    if isinstance(value, str):
        return Cell(value)
    return Cell(f"{value:,}" if isinstance(value, int) else number(value))


def _notes(reasons: Mapping[tuple[str, str], list[str]], models: int) -> list[str]:
    """One line a reason: what was not computed for whom."""
    grouped: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (name, reason), missing in reasons.items():
        grouped.setdefault((reason, tuple(missing)), []).append(about(name).label)
    return [
        f"{'; '.join(labels)}{'' if len(missing) == models else ' (' + ', '.join(missing) + ')'}: {reason}."
        for (reason, missing), labels in grouped.items()
    ]
