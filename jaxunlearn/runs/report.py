"""`jaxunlearn report RUN`: from the record in an unlearned folder and the result files beside it to one page.

No weights are loaded; they are only hashed, to tell whether the record and the numbers are about them.
"""

from pathlib import Path
from typing import Any

from jaxunlearn.reports import Evidence, Identity, number, verdict_of, write_report
from jaxunlearn.runs import record as records
from jaxunlearn.runs.answers import shown_text
from jaxunlearn.runs.histories import histories
from jaxunlearn.runs.measured import LEAD, Measured, Run, measure, same_records, unlearned_in
from jaxunlearn.runs.progress import Reporter
from jaxunlearn.runs.results import locate
from jaxunlearn.runs.settings import Report
from jaxunlearn.runs.unmeasured import unmeasured

UNKNOWN = "not measured"
_ROLES = {"evaluate": "evaluation", "demo": "evaluation", "attack": "stress tests"}
_ENDED = {
    "steps": "after the steps that it was given",
    "streamed": "after the one step that --stream-retain takes",
    "unseen": "when the loss on the records to be forgotten reached that of unseen text",
    "goal": "by a rule of --stop-when",
    "limit": "by a rule of --keep-while",
}


def report(settings: Report) -> Path:
    """Run it; returns the page.

    Raises:
        ValueError: bad input or an existing output file.
    """
    folder = unlearned_in(settings.run)
    out = settings.run / "report.html" if settings.out is None else settings.out
    records.refuse_result(out)
    with Reporter() as reporter:
        with reporter.stage("checking hashes", 1) as stage:
            run = Run(folder, records.read_record(folder), records.digest(folder))
            found = measure(settings, run)
            evidence = _evidence(found.settings, run, found)
            stage.advance()
        write_report(out, evidence)
        # With the evidence that was found by looking around, which may be another tomorrow.
        records.write_options(out, "report", found.settings)
        reporter.say(verdict_of(evidence).headline)
        reporter.say(f"the evidence, and what was not measured -> {out}")
    return out


def _evidence(settings: Report, run: Run, found: Measured) -> Evidence:
    record = run.record
    known = next((one.models["retrained"] for one in found.evaluations if "retrained" in one.models), None)
    retrained = known if settings.reference_model is None else str(settings.reference_model)
    requests = _requests(run, found)
    open_requests = [int(one["Request"]) for one in requests[:-1] if one["KL to retrained now"] == UNKNOWN]
    lacking = unmeasured(
        run.folder, record, found.columns, found.attacked, found.floor, earlier=open_requests, retrained=retrained
    )
    texts, answers, silent = (
        shown_text(run.record, found.columns, found.evaluations) if settings.show_text else (None, [], [])
    )
    return Evidence(
        title=f"Unlearning report on {run.folder.resolve().name}",
        lead=LEAD,
        columns=found.columns,
        about=_about(run),
        floor=found.floor,
        costs=found.costs,
        attacked=found.attacked,
        doubts=found.doubts,
        history=histories(run, found),
        stop=record.get("stop_at_nll"),
        certificate=record.get("certificate", {}),
        answers=answers,
        texts=texts,
        config=record.get("settings") or {},
        environment=record.get("environment") or {},
        identities=_identities(settings, run, found),
        requests=requests,
        gaps=[*lacking, *silent],
        notes=[
            f"{one.path.name} was measured on the published records of {one.suite}; that these are the records that "
            "were to be forgotten is for the reader to know."
            for one in found.evaluations
            if one.suite is not None and not same_records(one, record)
        ],
    )


def _about(run: Run) -> list[str]:
    record, requests = run.record, run.record.get("requests") or []
    source = Path(record.get("inputs", {}).get("model", {}).get("path", "a model")).name
    took = f" in {record['seconds']:.0f} s" if "seconds" in record else ""
    kept = record.get("watching", {}).get("kept", record.get("steps"))
    best = f" The model as it was after {kept} of them was kept." if kept != record.get("steps") else ""
    said = [
        f"Made from “{source}” by {record.get('method')}: {record.get('steps')} steps{took}, ended "
        f"{_ENDED.get(record.get('stopped'), 'for no recorded reason')}.{best}"
    ]
    if requests:
        last = requests[-1]
        said.append(f"Request {last['number']}, {last['time'][:10]}: {len(last['records'])} records to be forgotten.")
    return said


def _requests(run: Run, found: Measured) -> list[dict[str, str]]:
    return [
        {
            "Request": str(line["number"]),
            "When": line["time"].replace("T", " ").replace("Z", " UTC"),
            "Method": line["method"],
            "Records": str(len(line["records"])),
            "File": line["forget"]["path"],
            "KL to retrained now": _distance(line, run, found),
            "Weights before": (line.get("weights_before") or "not known")[:12],
            "Weights after": (line.get("weights_after") or "not known")[:12],
        }
        for line in run.record.get("requests") or []
    ]


def _distance(line: dict[str, Any], run: Run, found: Measured) -> str:
    """How far the model is from a retrained one today on the records of a request, as the files say."""
    asked = line["forget"].get("sha256")
    for one in (*found.evaluations, *found.nearby):
        column = one.column_of(run.folder, run.weights)
        value = one.columns[column].get("forget_kl", {}).get("agg_value") if column else None
        if value is not None and asked is not None and one.sha256("forget") == asked:
            return number(value)
    return UNKNOWN


def _identities(settings: Report, run: Run, found: Measured) -> list[Identity]:
    rows = []

    def add(role: str, path: str, sha256: str | None, now: str | None, there: bool) -> None:
        state = "not found from here" if not there else "unchanged" if now == sha256 else "changed"
        rows.append(Identity(role, path, sha256 or "not known", state if sha256 else "not checked"))

    for role, one in run.record.get("inputs", {}).items():
        place = locate(one["path"], run.folder, run.folder.parent)
        now = None if place is None or one["sha256"] is None else records.digest(place)
        add(f"{role}, read", one["path"], one["sha256"], now, now is not None)
    add("unlearned model, written", str(run.folder), run.record.get("weights"), run.weights, run.weights is not None)
    for one in [*found.evaluations, *([found.attack] if found.attack else [])]:
        rows.append(Identity(_ROLES[one.command], str(one.path), records.digest(one.path), "read for this page"))
        if one.weights.get("retrained"):
            place = settings.reference_model or locate(one.models["retrained"], one.path.parent)
            now = None if place is None else records.digest(place)
            add("retrained model", one.models["retrained"], one.weights["retrained"], now, now is not None)
    if settings.reference_model is not None:
        rows.append(
            Identity(
                "retrained model", str(settings.reference_model), records.digest(settings.reference_model), "as given"
            )
        )
    shown = [("comparison", path) for path in settings.compare]
    shown += [("seed floor", settings.seed_floor)] if settings.seed_floor else []
    rows += [Identity(role, str(path), records.digest(path), "read for this page") for role, path in shown]
    return list(dict.fromkeys(rows))
