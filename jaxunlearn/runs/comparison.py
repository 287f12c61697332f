"""Several methods beside the original and the retrained model: the files a comparison leaves."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jaxunlearn import data, evals, models, reports
from jaxunlearn.evals import Result
from jaxunlearn.runs import record as records
from jaxunlearn.runs.evidence import certificate_facts
from jaxunlearn.runs.forget import Forgotten
from jaxunlearn.runs.unmeasured import unmeasured
from jaxunlearn.types import Model, Params

METRICS = (
    "forget_kl",
    "retain_kl",
    "forget_probability",
    "retain_probability",
    "forget_exact_memorisation",
    "retain_exact_memorisation",
    "forget_truth_ratio",
    "forget_quality",
    "forget_loss_auc",
)
SHOWN_ANSWERS = 6
NEW_TOKENS = 24
WIDE_ENOUGH = 130


class Outcome(NamedTuple):
    """One method's run, what was measured of it, and its seconds."""

    run: Forgotten
    result: Result
    seconds: float


class Comparison(NamedTuple):
    """All that a report shows.

    Attributes:
        title: of the report.
        model: the architecture all share.
        tokenizer: theirs.
        before, retrained: parameters of the original and of the retrained model.
        forget, retain: the encoded records.
        results: measurements of "before" and "retrained".
        outcomes: of each method, in the order of the columns.
        floor: KL between two retrained seeds, by metric.
        costs: row to method to value.
        best: the method whose checkpoint is kept.
        settings: what was run, for the report.
        notes: limits of what was measured.
    """

    title: str
    model: Model
    tokenizer: Any
    before: Params
    retrained: Params
    forget: Sequence[data.Encoded]
    retain: Sequence[data.Encoded]
    results: Mapping[str, Result]
    outcomes: Mapping[str, Outcome]
    floor: Mapping[str, float]
    costs: Mapping[str, Mapping[str, float | str]]
    best: str
    settings: Mapping[str, Any]
    notes: Sequence[str]

    @property
    def columns(self) -> dict[str, Result]:
        methods = {name: outcome.result for name, outcome in self.outcomes.items()}
        return {"before": self.results["before"], **methods, "retrained": self.results["retrained"]}


def value(result: Result, metric: str) -> float:
    """A metric's aggregate; NaN where it is missing."""
    found = result[metric]["agg_value"]
    return float("nan") if found is None else found


def closest(outcomes: Mapping[str, Outcome], *, keep: float = 0.99) -> str:
    """The method closest to the retrained model on forget among those that keep `keep` of retain's exact tokens;
    when none does, the one that keeps most."""
    kept = {n: o for n, o in outcomes.items() if value(o.result, "retain_exact_memorisation") >= keep}
    if kept:
        return min(kept, key=lambda n: value(kept[n].result, "forget_kl"))
    return max(outcomes, key=lambda n: value(outcomes[n].result, "retain_exact_memorisation"))


def table(found: Comparison, width: int):
    """The rich table; on a narrow terminal methods go by the first word of their names."""
    columns, costs = found.columns, found.costs
    if width < WIDE_ENOUGH:
        columns = {name.split("_")[0]: result for name, result in columns.items()}
        costs = {row: {name.split("_")[0]: v for name, v in cells.items()} for row, cells in costs.items()}
    return reports.side_by_side(columns, metrics=METRICS, floor=found.floor, extra=costs, title=found.title)


def write(out: Path, found: Comparison) -> None:
    """Numbers, table, picture, report page and three checkpoints (before, retrained, forgotten) into `out`, which holds
    the records in `data` already."""
    columns = found.columns
    markdown = reports.to_markdown(columns, metrics=METRICS, floor=found.floor, extra=found.costs)
    (out / "table.md").write_text(markdown, encoding="utf-8")
    points = reports.plane_points(columns, found.best)
    bounds = found.floor["forget_kl"], found.floor["retain_kl"]
    reports.forget_keep_plane(points, out / "plane.png", floor=bounds, format="png")
    _write_checkpoints(out, found)
    folders = {name: (out / folder).resolve() for name, folder in _folders(found).items()}
    numbers = {"floor": found.floor, "costs": found.costs, "results": columns}
    facts = records.provenance(folders, _sources(out))
    evals.write_result(out / "results.json", {"command": "demo", **facts, **numbers})
    reports.write_report(out / "report.html", _evidence(out, found, facts))


def write_rows(folder: Path, parts: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Rows as JSON lines, one file a part, for use with the other commands."""
    folder.mkdir()
    for name, rows in parts.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def _folders(found: Comparison) -> dict[str, str]:
    """Column to the folder that its checkpoint is kept in."""
    return {"before": "before", found.best: "forgotten", "retrained": "retrained"}


def _sources(out: Path) -> dict[str, str]:
    return {path.stem: str(path.resolve()) for path in sorted((out / "data").glob("*.jsonl"))}


def _write_checkpoints(out: Path, found: Comparison) -> None:
    best = found.outcomes[found.best]
    facts = {
        "method": found.best,
        "steps": len(best.run.history),
        "stopped": best.run.stopped,
        "products": best.run.products,
        "seconds": round(best.seconds, 1),
        "certificate": certificate_facts(best.run.info),
        "history": best.run.history,
    }

    def about(written: Path, forgotten: bool) -> str:
        inputs = {"model": (out / "before").resolve(), **_sources(out)} if forgotten else {}
        told = facts if forgotten else {}
        command = "unlearn" if forgotten else "demo"
        return records.record(command, found.settings, inputs, weights=records.digest(written), **told)

    trained = {"before": found.before, "retrained": found.retrained, "forgotten": best.run.state.params}
    for name, params in trained.items():
        extra = {records.FILE: partial(about, forgotten=name == "forgotten")}
        models.save(out / name, found.model, params, tokenizer=found.tokenizer, extra=extra)


def _evidence(out: Path, found: Comparison, facts: Mapping[str, Any]) -> reports.Evidence:
    columns, record = found.columns, records.read_record(out / "forgotten")
    written = {name: (facts["models"][name], facts["weights"][name]) for name in facts["models"]}
    read = {name: (one["path"], one["sha256"]) for name, one in facts["inputs"].items()}
    return reports.Evidence(
        title=found.title,
        lead=found.best,
        columns=columns,
        about=[
            f"{len(found.outcomes)} methods started from one model. This page is about {found.best}: the closest to "
            "the retrained model of those that kept 99% of the rest, or else the one that kept most."
        ],
        metrics=METRICS,
        floor=found.floor,
        costs=found.costs,
        history={name: outcome.run.history for name, outcome in found.outcomes.items()},
        certificate=record["certificate"],
        answers=_answers(found),
        texts=[f"{one.record.prompt} {one.record.completion}" for one in found.forget],
        config=found.settings,
        environment=records.environment(),
        identities=[reports.Identity(name, *one, "written") for name, one in {**read, **written}.items()],
        gaps=unmeasured(
            out / "forgotten", record, columns, {}, found.floor, lead=found.best, retrained=str(out / "retrained")
        ),
        notes=found.notes,
    )


def _answers(found: Comparison) -> list[reports.Answer]:
    parts = {"To be forgotten": found.forget[:SHOWN_ANSWERS], "To be kept": found.retain[:SHOWN_ANSWERS]}
    asked = [(part, one) for part, ones in parts.items() for one in ones]
    prompts = [one.tokens[: int(one.loss_mask.argmax())].tolist() for _, one in asked]
    end = [found.tokenizer.eos_token_id]
    forgotten = found.outcomes[found.best].run.state.params
    written = []
    for params in (found.before, forgotten, found.retrained):
        continued = models.generate(found.model, params, prompts, max_new_tokens=NEW_TOKENS, stop_ids=end)
        written.append([found.tokenizer.decode(tokens).strip() for tokens in continued])
    return [
        reports.Answer(one.record.prompt, one.record.completion, *texts, part=part)
        for (part, one), *texts in zip(asked, *written, strict=True)
    ]
