"""Several methods beside the original and the retrained model: the files a comparison leaves."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxunlearn import data, evals, models, reports
from jaxunlearn.evals import Result
from jaxunlearn.runs import record as records
from jaxunlearn.runs.forget import Forgotten
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
_CURVES = {"forget_nll": "NLL on forget", "retain_nll": "NLL on retain", "retain_kl": "KL on retain, per step"}
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
    """Numbers, table, picture, report page and three checkpoints (before, retrained, forgotten) into `out`."""
    markdown = reports.to_markdown(found.columns, metrics=METRICS, floor=found.floor, extra=found.costs)
    (out / "table.md").write_text(markdown, encoding="utf-8")
    numbers = {"floor": found.floor, "costs": found.costs, "results": found.columns}
    evals.write_result(out / "results.json", numbers)
    _write_checkpoints(out, found)
    _write_report(out, found)


def write_rows(folder: Path, parts: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Rows as JSON lines, one file a part, for use with the other commands."""
    folder.mkdir()
    for name, rows in parts.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def _write_checkpoints(out: Path, found: Comparison) -> None:
    best = found.outcomes[found.best].run
    facts = {"method": found.best, "steps": len(best.history), "stopped": best.stopped, "history": best.history}
    for name, params in (("before", found.before), ("retrained", found.retrained), ("forgotten", best.state.params)):
        forgotten = name == "forgotten"
        text = records.record(
            "unlearn" if forgotten else "demo",
            found.settings,
            {"model": (out / "before").resolve()} if forgotten else {},
            **(facts if forgotten else {}),
        )
        models.save(out / name, found.model, params, tokenizer=found.tokenizer, extra={records.FILE: text})


def _write_report(out: Path, found: Comparison) -> None:
    from jaxunlearn.certificate import describe

    points = [
        reports.Point(name, value(result, "forget_kl"), value(result, "retain_kl"), _kind(name, found.best))
        for name, result in found.columns.items()
        if name != "retrained"
    ]
    bounds = found.floor["forget_kl"], found.floor["retain_kl"]
    reports.forget_keep_plane(points, out / "plane.png", floor=bounds, format="png")
    history = {
        name: [{"step": i, **{key: step[key] for key in _CURVES}} for i, step in enumerate(outcome.run.history, 1)]
        for name, outcome in found.outcomes.items()
    }
    figures = [
        reports.Figure(
            reports.forget_keep_plane(points, floor=bounds),
            "Forgetting against keeping",
            "Left is forgotten, down is kept; both are distances to the model retrained without the forget set. The "
            "shaded corner is how far two retrained models lie apart.",
            "; ".join(f"{p.label}: {p.x:.2f} on forget, {p.y:.3f} on retain" for p in points),
        ),
        reports.Figure(
            reports.curves(history, titles=_CURVES),
            "Step by step",
            "Methods that ascend stop where the forget loss reaches that of people who do not exist.",
            "Loss on forget and on retain, and KL on retain, by step for each method.",
        ),
    ]
    info = found.outcomes[found.best].run.info
    certificate = describe(info.certificate, info.curvature, info.noise).splitlines()
    columns = found.columns
    reports.write_page(
        out / "report.html",
        title=found.title,
        verdict=reports.judge(columns["before"], columns[found.best], columns["retrained"], floor=found.floor),
        table=reports.lay_out(columns, metrics=METRICS, floor=found.floor, extra=found.costs),
        figures=figures,
        answers=_answers(found),
        certificate={f"last step, {i}": line for i, line in enumerate(certificate, start=1)},
        config=found.settings,
        environment=records.environment(),
        notes=found.notes,
    )


def _kind(name: str, best: str) -> str:
    return "before" if name == "before" else "lead" if name == best else "method"


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
