"""What records say and what the models answered, for a report that was told to show text.

The records are read again from where they were measured, and shown only if the file is still the one that was: an
answer beside another question would be a forgery.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxunlearn import data
from jaxunlearn.evals import Result
from jaxunlearn.reports import Answer, Gap
from jaxunlearn.runs import record as records
from jaxunlearn.runs.measured import LEAD
from jaxunlearn.runs.results import Results, locate

SHOWN = 10


def shown_text(
    record: Mapping[str, Any], columns: Mapping[str, Result], evaluations: Sequence[Results]
) -> tuple[list[str] | None, list[Answer], list[Gap]]:
    """What each forget record says, what the models answered, and why something of it cannot be shown.

    Args:
        record: of the run; it says which fields hold what.
        columns: model name to result, with the generated answers.
        evaluations: the files that name the records.
    """
    options = (record.get("settings") or {}).get("text") or {}
    names = ("prompt_field", "completion_field", "text_field", "messages_field", "entity_field")
    fields = data.Fields(*(options.get(name) for name in names))
    texts, answers, gaps = None, [], []
    for part, heading in (("forget", "To be forgotten"), ("retain", "To be kept")):
        rows = _records(part, evaluations, fields)
        if rows is None:
            gaps.append(Gap(f"The {part} records are not where they were, or have changed: their text is not shown."))
            continue
        if part == "forget":
            texts = [" ".join(filter(None, (row.prompt, row.completion))) for row in rows]
        written = {
            name: columns.get(name, {}).get(f"{part}_rouge_l", {}).get("generated_by_index") or {}
            for name in ("before", LEAD, "retrained")
        }
        if len(written[LEAD]) != len(rows):
            gaps.append(Gap(f"No answers to the {part} records were written down; `evaluate --generate` does."))
            continue
        for index, row in enumerate(rows[:SHOWN]):
            said = [written[name].get(str(index)) for name in ("before", LEAD, "retrained")]
            answers.append(Answer(row.prompt, row.completion, *said, part=heading))
    return texts, answers, gaps


def _records(part: str, evaluations: Sequence[Results], fields: data.Fields) -> list[data.Record] | None:
    """The records that were measured, if they are still what they were."""
    for one in evaluations:
        place = locate(one.inputs.get(part, {}).get("path") or "", one.path.parent) if part in one.inputs else None
        if place is not None and place.is_file() and records.digest(place) == one.sha256(part):
            return data.read(place, fields=fields)
    return None
