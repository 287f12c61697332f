"""One self-contained page: the verdict in plain words, then the evidence, then everything needed to repeat it.

The reader may be the person who asked for the deletion, an auditor or a lawyer, years later and offline: one file, no
scripts, nothing fetched, readable on screen (light and dark) and on paper. All text is escaped by the template engine;
model output in particular is untrusted.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from jaxunlearn.files import write_new
from jaxunlearn.reports.inline import inline_svg
from jaxunlearn.reports.layout import Layout
from jaxunlearn.reports.verdict import Verdict
from jaxunlearn.version import __version__


class Answer(NamedTuple):
    """One question and what was answered.

    Attributes:
        question: as asked.
        truth: the answer in the data.
        before, after, retrained: what the models wrote; `None` where a model was not asked.
        part: the heading it stands under, e.g. "To be forgotten" or "To be kept".
    """

    question: str
    truth: str
    before: str | None = None
    after: str | None = None
    retrained: str | None = None
    part: str = "To be forgotten"


class Figure(NamedTuple):
    """A picture with its caption.

    Attributes:
        svg: bytes of `forget_keep_plane` or `curves`.
        title: heading.
        caption: how to read it.
        alt: what it shows, for those who cannot see it.
    """

    svg: bytes
    title: str
    caption: str
    alt: str


def write_page(
    path: str | Path,
    *,
    title: str,
    verdict: Verdict,
    table: Layout,
    figures: Sequence[Figure] = (),
    answers: Sequence[Answer] = (),
    certificate: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Writes the report page.

    Args:
        path: a new file; it is written under a temporary name and renamed.
        title: of the page.
        verdict: stands first; `judge` writes one from results.
        table: of `lay_out`: models side by side.
        figures: pictures below the table.
        answers: questions with the answers before, after, and of the retrained model.
        certificate: what the method certifies about its steps, name to value.
        config: the resolved configuration; nested mappings are joined by dots.
        environment: versions, devices, times.
        notes: limits of what was measured, one sentence each.

    Errors:
        ValueError: `path` exists, or a figure is not an SVG.

    Example:
        >>> import tempfile
        >>> from jaxunlearn.reports import lay_out
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = lay_out({"after": {"forget_kl": {"agg_value": 2.1}}})
        ...     page = write_page(folder + "/report.html", title="A run", verdict=Verdict("Forgotten."), table=table)
        ...     "Forgotten." in page.read_text()
        True
    """
    from jinja2 import Environment, PackageLoader
    from markupsafe import Markup

    pictures = [
        {
            "svg": Markup(inline_svg(figure.svg, name=f"figure{i}", alt=figure.alt)),
            "title": figure.title,
            "caption": figure.caption,
        }
        for i, figure in enumerate(figures, start=1)
    ]
    engine = Environment(
        loader=PackageLoader("jaxunlearn.reports", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    parts = dict.fromkeys(answer.part for answer in answers)
    text = engine.get_template("page.html").render(
        title=title,
        verdict=verdict,
        table=table,
        groups=[list(rows) for _, rows in groupby(table.rows, key=lambda row: row.group)],
        figures=pictures,
        answers=[(part, [answer for answer in answers if answer.part == part]) for part in parts],
        facts=[
            (name, caption, _flat(values))
            for name, caption, values in (
                ("Certificate", "What the method reports about its own steps.", certificate),
                ("Configuration", "Every setting of this run, resolved.", config),
                ("Environment", "Where and with what it ran.", environment),
            )
            if values
        ],
        notes=notes,
        terms=_terms(table),
        version=__version__,
    )
    return write_new(path, text.encode("utf-8"))


def _terms(table: Layout) -> list[tuple[str, str]]:
    """Name and meaning, once each; the set is part of the name only where the meaning depends on it."""
    meanings: dict[str, list[str]] = {}
    for row in table.rows:
        if row.meaning:
            meanings.setdefault(row.meaning, []).append(row.label)
    short = [labels[0].split(",")[0] for labels in meanings.values()]
    return [
        (name if short.count(name) == 1 else labels[0], meaning)
        for name, (meaning, labels) in zip(short, meanings.items(), strict=True)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", _shown(value)))
    return rows


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_shown, value))
    return "none" if value is None else str(value)
