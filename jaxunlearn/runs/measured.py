"""The numbers of a report: which result files are about an unlearned folder, and why they may not be.

Hashes decide. What was measured on other weights, or on other records than those that were to be forgotten, or from
another model than the run began with, is a reason to give no verdict (`doubts`), where the user insisted on the file;
files that are only found nearby are taken when they are about these weights and records, and passed over when not.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from jaxunlearn.evals import Result
from jaxunlearn.runs import record as records
from jaxunlearn.runs.results import Results, read_results, results_in
from jaxunlearn.runs.settings import Report

LEAD = "after"


class Run(NamedTuple):
    """An unlearned folder.

    Attributes:
        folder: where it is.
        record: what the run wrote about itself.
        weights: hash of the weights that are there now.
    """

    folder: Path
    record: dict[str, Any]
    weights: str | None


class Measured(NamedTuple):
    """What the result files say, under the names of the page.

    Attributes:
        evaluations: the files, the newest first.
        attack: the file of the stress tests, None without.
        columns: "before", "after", further models, "retrained".
        attacked: the same of the stress tests.
        floor: KL between two retrained models, by metric.
        costs: rows that a comparison brings along.
        doubts: why the numbers may be about something else.
        nearby: all files in the folder and beside it that are about these weights, on whatever records.
        sources: column to the file that it is from, and its name there.
        settings: with all files named that were found by looking around, for another time.
    """

    evaluations: list[Results]
    attack: Results | None
    columns: dict[str, Result]
    attacked: dict[str, Result]
    floor: dict[str, float]
    costs: dict[str, dict[str, float | str]]
    doubts: list[str]
    nearby: list[Results]
    sources: dict[str, tuple[Results, str]]
    settings: Report


def unlearned_in(folder: Path) -> Path:
    """`folder`, if `unlearn` made it, or the one such folder in it.

    Raises:
        ValueError: neither; it says what was found instead.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give the one that `jaxunlearn unlearn --out` made")
    command = (records.read_record(folder) or {}).get("command")
    if command == "unlearn":
        return folder
    inside = [one for one in sorted(folder.iterdir()) if (records.read_record(one) or {}).get("command") == "unlearn"]
    if len(inside) == 1:
        return inside[0]
    made = f"it was made by `jaxunlearn {command}`" if command else f"it holds no {records.FILE}"
    several = f", and {len(inside)} unlearned folders: {', '.join(one.name for one in inside)}" if inside else ""
    raise ValueError(f"{folder}: {made}{several}; give a folder that `jaxunlearn unlearn --out` made")


def measure(settings: Report, run: Run) -> Measured:
    """Reads what the settings name, or what is found in the folder and beside it.

    Raises:
        ValueError: a file that is none of ours, or that cannot be compared with the others.
    """
    nearby = _about(run)
    near = [one for one in nearby if one.suite is not None or same_records(one, run.record)]
    evaluations = [read_results(path) for path in settings.evaluation]
    evaluations = evaluations or [one for one in near if one.command != "attack"]
    attack = next((one for one in near if one.command == "attack"), None)
    attack = attack if settings.attack is None else read_results(settings.attack)
    columns: dict[str, Result] = {}
    sources: dict[str, tuple[Results, str]] = {}
    costs: dict[str, dict[str, float | str]] = {}
    floor = {}
    for one in reversed(evaluations):
        names = _names(one, run)
        for name, result in one.columns.items():
            columns[names[name]] = columns.get(names[name], {}) | result
            sources[names[name]] = one, name
        for row, values in one.costs.items():
            costs[row] = {names.get(name, name): value for name, value in values.items()}
        floor |= one.floor
    reference = next((one.weights.get("retrained") for one in evaluations if one.weights.get("retrained")), None)
    if settings.seed_floor is not None:
        floor = _floor(settings, run, reference)
    settings = replace(
        settings,
        evaluation=tuple(one.path for one in evaluations),
        attack=attack and attack.path,
        compare=tuple(_result_of(path, run) if path.is_dir() else path for path in settings.compare),
    )
    for path in settings.compare:
        if not path.is_dir():
            one = read_results(path)
            for label, name in _compared(one, run, reference).items():
                # Two folders may each hold an evaluation.json.
                label = f"{path.absolute().parent.name}/{label}" if label in columns else label
                columns[label], sources[label] = one.columns[name], (one, name)
    attacked = {} if attack is None else {_names(attack, run)[name]: found for name, found in attack.columns.items()}
    ordered = sorted(columns, key=lambda name: (name != "before") + (name == "retrained"))
    files = [*evaluations, *([attack] if attack else [])]
    columns = {name: columns[name] for name in ordered}
    doubts = _doubts(settings, run, files)
    return Measured(evaluations, attack, columns, attacked, floor, costs, doubts, nearby, sources, settings)


def _about(run: Run) -> list[Results]:
    """The result files in the folder and beside it that are about its weights, the newest first."""
    return [one for one in results_in(run.folder, run.folder.parent) if one.column_of(run.folder, run.weights)]


def _result_of(folder: Path, run: Run) -> Path:
    """The newest evaluation of another unlearned folder on the same records; the folder itself if there is none."""
    home = unlearned_in(folder)
    other = Run(home, records.read_record(home) or {}, records.digest(home))
    if other.weights == run.weights:
        raise ValueError(f"--compare {folder}: that is the model that the page is about; leave it out")
    fit = (one for one in _about(other) if one.command != "attack")
    return next((one.path for one in fit if one.suite is not None or same_records(one, run.record)), folder)


def _names(one: Results, run: Run) -> dict[str, str]:
    """Column of a file to column of the page: the model of this page is "after", others go by their folders."""
    lead = one.column_of(run.folder, run.weights) or LEAD
    names = {name: name for name in one.columns}
    if lead != LEAD and LEAD in names:
        names[LEAD] = Path(one.models.get(LEAD, "another model")).name
    return names | {lead: LEAD}


def _doubts(settings: Report, run: Run, files: Sequence[Results]) -> list[str]:
    record, found = run.record, []
    if record.get("weights") not in (None, run.weights):
        found.append(f"The weights in {run.folder} are not those that its record was written for.")
    start = record.get("inputs", {}).get("model", {}).get("sha256")
    given = None if settings.reference_model is None else records.digest(settings.reference_model)
    if settings.reference_model is not None and given is None:
        raise ValueError(
            f"--reference-model {settings.reference_model}: no checkpoint folder with safetensors is there"
        )
    for one in files:
        name = one.path.name
        if one.column_of(run.folder, run.weights) is None:
            found.append(f"{name} was measured on other weights than those in {run.folder}.")
        if start and one.weights.get("before") not in (None, start):
            found.append(f"What {name} calls the model before is not the one that the run began with.")
        if given and one.weights.get("retrained") not in (None, given):
            found.append(f"The retrained model of {name} is not the one in {settings.reference_model}.")
        if one.suite is None and not same_records(one, record):
            found.append(f"{name} was measured on other records than those that were to be forgotten.")
    if len({one.weights.get("retrained") for one in files if one.weights.get("retrained")}) > 1:
        found.append("The result files were measured against different retrained models.")
    return found


def same_records(one: Results, record: dict[str, Any]) -> bool:
    """By hash, or by path where one of them has none, as of a hub data set."""
    asked = record.get("inputs", {}).get("forget", {})
    mine, theirs = asked.get("sha256"), one.sha256("forget")
    if mine and theirs:
        return mine == theirs
    return asked.get("path") is not None and asked.get("path") == one.inputs.get("forget", {}).get("path")


def _floor(settings: Report, run: Run, reference: str | None) -> dict[str, float]:
    one, column = read_results(settings.seed_floor), settings.seed_floor_column
    if column not in one.columns:
        raise ValueError(f"--seed-floor {one.path} has no column {column!r}; it has {', '.join(one.columns)}")
    if run.weights is not None and one.weights.get(column) == run.weights:
        raise ValueError(f"--seed-floor {one.path}: {column!r} is the unlearned model itself; give a retrained one")
    _refuse_other_reference("--seed-floor", one, reference)
    if one.suite is None and not same_records(one, run.record):
        raise ValueError(f"--seed-floor {one.path} was measured on other records than those that were to be forgotten")
    measures = one.columns[column]
    found = {name: measures.get(name, {}).get("agg_value") for name in ("forget_kl", "retain_kl")}
    if found["forget_kl"] is None:
        raise ValueError(f"--seed-floor {one.path}: no KL to a retrained model in it; evaluate with --reference-model")
    return {name: value for name, value in found.items() if value is not None}


def _compared(one: Results, run: Run, reference: str | None) -> dict[str, str]:
    """The columns of the unlearned models of another evaluation, by the file's name or, of several, their folders'."""
    _refuse_other_reference("--compare", one, reference)
    if one.suite is None and not same_records(one, run.record):
        raise ValueError(f"--compare {one.path} was measured on other records to be forgotten; leave it out")
    own = one.column_of(run.folder, run.weights)
    others = [name for name in one.columns if name not in ("before", "retrained", own)]
    if not others:
        raise ValueError(f"--compare {one.path} holds no other unlearned model; leave it out")
    if len(others) == 1:
        return {one.path.stem: others[0]}
    return {Path(one.models.get(name, name)).name: name for name in others}


def _refuse_other_reference(flag: str, one: Results, reference: str | None) -> None:
    theirs = one.weights.get("retrained")
    if reference is not None and theirs is not None and theirs != reference:
        raise ValueError(f"{flag} {one.path} was measured against another retrained model, so distances do not compare")
