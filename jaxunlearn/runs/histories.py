"""What other runs recorded step by step, for a page that draws them beside its own.

    the chain    a model that was asked to forget again was made from the model of the request before, whose folder its
                 record names; so do the records of that folder, back to the model that nobody had asked
    compared     the unlearned models of the result files, by the folders that the files name

A folder is believed only if its record is of the weights in question: those that the next run began with, or those
that were measured. No weights are read for it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxunlearn.runs import record as records
from jaxunlearn.runs.measured import LEAD, Measured, Run, unlearned_in
from jaxunlearn.runs.results import locate

Steps = Sequence[dict[str, Any]]


def histories(run: Run, found: Measured) -> dict[str, Steps]:
    """Name to steps: earlier requests, the run itself as "after", then the runs that it is compared with."""
    named = {**_earlier(run), LEAD: run.record.get("history", [])}
    for label, (one, name) in found.sources.items():
        if label not in ("before", LEAD, "retrained"):
            place = locate(one.models.get(name, ""), one.path.parent) if one.models.get(name) else None
            record = None if place is None else _record(place, one.weights.get(name))
            named |= {} if record is None else {label: record.get("history", [])}
    for folder in found.settings.compare:
        if folder.is_dir():  # nobody has measured it
            home = unlearned_in(folder)
            named[home.resolve().name] = (records.read_record(home) or {}).get("history", [])
    return {name: steps for name, steps in named.items() if steps or name == LEAD}


def _earlier(run: Run) -> dict[str, Steps]:
    """The runs of the requests before, the first one first."""
    chain: dict[str, Steps] = {}
    folder, record = run.folder, run.record
    seen = {run.weights}
    while True:
        source = record.get("inputs", {}).get("model", {})
        weights = source.get("sha256")
        place = locate(source.get("path") or ".", folder, folder.parent)
        before = None if place is None or weights is None or weights in seen else _record(place, weights)
        if place is None or before is None:
            return dict(reversed(chain.items()))
        number = (before.get("requests") or [{}])[-1].get("number")
        chain[place.name if number is None else f"request {number}"] = before.get("history", [])
        folder, record = place, before
        seen.add(weights)


def _record(folder: Path, weights: str | None) -> dict[str, Any] | None:
    """The record of an unlearned folder, if it is of these weights; where they are not known, of the folder."""
    record = records.read_record(folder) or {}
    own = record.get("command") == "unlearn" and weights in (None, record.get("weights"))
    return record if own else None
