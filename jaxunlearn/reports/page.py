"""One self-contained page: the verdict in plain words, then the evidence, then everything needed to repeat it.

The reader may be the person who asked for the deletion, an auditor or a lawyer, years later and offline: one file,
nothing fetched, readable on screen (light and dark) and on paper. One small script sorts tables; the page says the same
without it, and its content security policy lets no other script run. All text is escaped by the template engine; model
output in particular is untrusted.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from jaxunlearn.files import write_new
from jaxunlearn.reports.documents import Documents
from jaxunlearn.reports.figures import Figure
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


class Gap(NamedTuple):
    """Something that was not measured, and the command that measures it (empty where none does)."""

    what: str
    command: str = ""


class Findings(NamedTuple):
    """What stress tests found.

    Attributes:
        traces: what came back, one sentence a test.
        remarks: what they say besides.
        tests: how many gave a number.
        compared: whether the retrained model was tested as well.
        skipped: tests without a number, and why.
    """

    traces: tuple[str, ...]
    remarks: tuple[str, ...]
    tests: int
    compared: bool
    skipped: tuple[str, ...] = ()


class Identity(NamedTuple):
    """A file or folder that the run read or wrote: role, place, SHA-256, and what was found there for this page."""

    name: str
    path: str
    sha256: str
    state: str


def write_page(
    path: str | Path,
    *,
    title: str,
    verdict: Verdict,
    about: Sequence[str] = (),
    table: Layout | None = None,
    findings: Findings | None = None,
    figures: Sequence[Figure] = (),
    documents: Documents | None = None,
    answers: Sequence[Answer] = (),
    gaps: Sequence[Gap] = (),
    notes: Sequence[str] = (),
    certificate: Mapping[str, Any] | None = None,
    requests: Sequence[Mapping[str, str]] = (),
    identities: Sequence[Identity] = (),
    config: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the report page.

    Args:
        path: a new file; it is written under a temporary name and renamed.
        title: of the page.
        verdict: stands first; `judge` writes one from results.
        about: what was done, below the verdict.
        table: of `lay_out`: models side by side.
        findings: of the stress tests.
        figures: pictures below the table.
        documents: the records that were to be forgotten, one by one.
        answers: questions with the answers before, after, and of the retrained model.
        gaps: what was not measured.
        notes: what unlearning does not promise, one sentence each.
        certificate: what the method certifies about its steps, name to value.
        requests: what the model was asked to forget, one mapping of the same keys a request.
        identities: files with their hashes.
        config: the resolved configuration; nested mappings are joined by dots.
        environment: versions, devices, times.

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
            "anchor": figure.anchor or f"figure-{i}",
        }
        for i, figure in enumerate(figures, start=1)
    ]
    style, script = (files("jaxunlearn.reports").joinpath(f"page.{kind}").read_text("utf-8") for kind in ("css", "js"))
    engine = Environment(
        loader=PackageLoader("jaxunlearn.reports", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    parts = dict.fromkeys(answer.part for answer in answers)
    facts = (
        ("certificate", "Certificate", "Measured on the batch of the last step, before and after it.", certificate),
        ("configuration", "Configuration", "Every setting of this run, resolved.", config),
        ("environment", "Environment", "Where and with what it ran.", environment),
    )
    text = engine.get_template("page.html").render(
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        title=title,
        verdict=verdict,
        about=about,
        table=table,
        groups=[] if table is None else [list(rows) for _, rows in groupby(table.rows, key=lambda row: row.group)],
        findings=findings,
        figures=pictures,
        documents=documents,
        answers=[(part, [answer for answer in answers if answer.part == part]) for part in parts],
        gaps=gaps,
        notes=notes,
        terms=[] if table is None else _terms(table),
        requests=requests,
        identities=identities,
        facts=[(anchor, name, caption, _flat(values)) for anchor, name, caption, values in facts if values],
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
        return ", ".join(map(_shown, value)) or "none"
    return "none" if value is None else str(value)
