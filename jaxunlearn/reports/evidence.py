"""From evidence to the page: what is known of one unlearned model, and the sections that show it.

Whoever has evidence in memory (the demo) or in files (`jaxunlearn report`) fills in an `Evidence`, and one page comes
of it. A part that is not known is left out, and what would have to be run to know it stands under *What was not
measured*: a report is as good as what it does not hide.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxunlearn.evals.attacks.findings import findings
from jaxunlearn.evals.catalogue import METRICS, about, ordered
from jaxunlearn.evals.result import Result, why_missing
from jaxunlearn.reports import figures
from jaxunlearn.reports.certified import certificate_rows
from jaxunlearn.reports.documents import documents
from jaxunlearn.reports.layout import lay_out
from jaxunlearn.reports.page import Answer, Findings, Gap, Identity, write_page
from jaxunlearn.reports.verdict import Verdict, judge, unjudged, unmeasured

NO_PROMISE = (
    "Unlearning changes this model. It reaches no copy of it, no model made from it, no backup, and not the data.",
    "What was measured is what the model says to the texts and tests on this page. Other words, other languages and "
    "attacks that were not run may still bring something out.",
    "Whoever has the weights can train on them, and a little training may bring back what seemed gone.",
    "A fact that also stands in the records to be kept, or can be inferred from them, is still known.",
    "The standard is a model retrained without the records. Such a model is allowed to guess right.",
    "Whether a legal duty is met is a question of law. This page gives the facts for it, and no answer.",
)


class Evidence(NamedTuple):
    """All that a report is made of; every part but the first three may be missing.

    Attributes:
        title: of the page.
        lead: the model that the page is about, one of the columns if it was measured.
        columns: model name to result of `evaluate`, in the order of the table, "before" first and "retrained" last.
        about: what was done to the model, one sentence each.
        metrics: rows of the table; default all that any column has.
        floor: KL between two retrained seeds, by metric.
        costs: further rows of the table.
        attacked: model name to result of `attack`.
        doubts: why the numbers may not be about this model or this request; with any, no verdict is given.
        history: run name to what each of its steps recorded.
        stop: forget loss at which the run was to stop.
        certificate: of the last step.
        answers: what the models answered; their presence is a decision to show text.
        texts: what each forget record says, for the table of documents; None shows numbers only.
        config, environment: settings and versions.
        identities: inputs, outputs and evidence with their hashes.
        requests: what the model was asked to forget, one line a request.
        gaps: what was not measured, and how to.
        notes: further limits of what was measured.
    """

    title: str
    lead: str
    columns: Mapping[str, Result]
    about: Sequence[str] = ()
    metrics: Sequence[str] | None = None
    floor: Mapping[str, float] = {}
    costs: Mapping[str, Mapping[str, float | str]] = {}
    attacked: Mapping[str, Result] = {}
    doubts: Sequence[str] = ()
    history: Mapping[str, Sequence[Mapping[str, float]]] = {}
    stop: float | None = None
    certificate: Mapping[str, Any] = {}
    answers: Sequence[Answer] = ()
    texts: Sequence[str] | None = None
    config: Mapping[str, Any] = {}
    environment: Mapping[str, Any] = {}
    identities: Sequence[Identity] = ()
    requests: Sequence[Mapping[str, str]] = ()
    gaps: Sequence[Gap] = ()
    notes: Sequence[str] = ()


def write_report(path: str | Path, evidence: Evidence) -> Path:
    """Writes the page of `evidence` to `path`, a new file.

    Errors:
        ValueError: the file exists.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = write_report(folder + "/report.html", Evidence("A model", "after", {}))
        ...     "has not been measured" in page.read_text()
        True
    """
    e, columns, found = evidence, _columns(evidence), _found(evidence)
    pictures = (
        figures.plane(columns, e.lead, e.floor),
        figures.losses(columns or e.attacked, e.lead),
        figures.steps(e.history.get(e.lead, ()), e.stop),
        figures.runs(e.history, e.lead),
        figures.solves(e.history.get(e.lead, ()), e.certificate),
    )
    return write_page(
        path,
        title=e.title,
        verdict=verdict_of(e),
        about=e.about,
        table=lay_out(columns, metrics=e.metrics, floor=e.floor, extra=e.costs) if columns else None,
        findings=found,
        figures=[picture for picture in pictures if picture is not None],
        documents=documents(columns, e.lead, attacked=e.attacked.get(e.lead), texts=e.texts),
        answers=e.answers,
        gaps=e.gaps,
        notes=(*e.notes, *NO_PROMISE),
        certificate=certificate_rows(e.certificate),
        requests=e.requests,
        identities=e.identities,
        config=e.config,
        environment=e.environment,
    )


def verdict_of(evidence: Evidence) -> Verdict:
    """`judge` on the lead, unless its numbers are missing or in doubt.

    Example:
        >>> verdict_of(Evidence("A model", "after", {})).headline
        'Whether this model has forgotten has not been measured.'
    """
    e, columns, found = evidence, _columns(evidence), _found(evidence)
    if e.doubts:
        return unjudged(e.doubts)
    if e.lead not in columns:
        return unmeasured(_recorded(e.certificate))
    traces = () if found is None else found.traces
    return judge(columns.get("before", {}), columns[e.lead], columns.get("retrained"), floor=e.floor, traces=traces)


def _columns(e: Evidence) -> dict[str, Result]:
    """The table's columns, with what only the attacks measured."""
    return {name: result | _attack_only(e.attacked.get(name, {}), result) for name, result in e.columns.items()}


def _found(e: Evidence) -> Findings | None:
    return _findings(e.attacked[e.lead], e.attacked.get("retrained")) if e.lead in e.attacked else None


def _recorded(certificate: Mapping[str, Any]) -> list[str]:
    """What the run itself recorded, and that it is no measurement."""
    before, after = certificate.get("forget_before"), certificate.get("forget_after")
    if before is None or after is None:
        return []
    return [
        f"In its last step the run raised the loss on the records to be forgotten from {before:.4f} to {after:.4f} "
        "nats per token. That alone shows neither that they are forgotten nor that the rest was kept."
        if after > before
        else f"In its last step the run left the loss on the records to be forgotten at {after:.4f} nats per token."
    ]


def _findings(result: Result, retrained: Result | None) -> Findings:
    """Traces, what was tested without one, and what was not tested."""
    run = [name for name in ordered(result) if why_missing(result[name]) is None]
    skipped: dict[str, list[str]] = {}
    for name in ordered(result):
        reason = why_missing(result[name])
        if reason is not None:
            skipped.setdefault(reason, []).append(about(name).label)
    told = findings(result, retrained)
    remarks = [sentence for sentence in told if _is_remark(sentence, result)]
    traces = tuple(sentence for sentence in told if sentence not in remarks)
    said = tuple(f"{', '.join(labels)}: {reason}." for reason, labels in skipped.items())
    return Findings(traces, tuple(remarks), len(run), retrained is not None, said)


def _is_remark(sentence: str, result: Result) -> bool:
    """What `findings` tells in any case: verdicts of an audit that finds nobody, a test that says nothing."""
    verdicts = (result.get("forget_document_auc", {}).get("verdict_by_index") or {}).values()
    audit = sentence.startswith(METRICS["forget_document_auc"].label) and "member" not in verdicts
    return audit or "says nothing here" in sentence


def _attack_only(attacked: Result, evaluated: Result) -> Result:
    """What the attacks add to a column; where both measured the same, the evaluation's number stands."""
    return {name: measure for name, measure in attacked.items() if name not in evaluated}
