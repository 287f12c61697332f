"""The table of documents: one row a record that was to be forgotten, so that a mean cannot hide the one that stayed.

A model can match the retrained one on average and still recite a single record. So each record stands by itself: its
loss and how much of its answer comes out word for word, before, after and retrained. Records are named by their number
in the file alone; what they say is on the page only when the reader asked for it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxunlearn.evals.catalogue import METRICS
from jaxunlearn.evals.result import Result
from jaxunlearn.reports.layout import MISSING, number

MOST = 1000
_SHOWN = (
    ("forget_nll", "Loss", ("before", "lead", "retrained")),
    ("forget_exact_memorisation", "Word for word", ("before", "lead", "retrained")),
    ("forget_rouge_l", "Words recalled", ("before", "lead", "retrained")),
    ("forget_kl", "KL to retrained", ("lead",)),
)


class Field(NamedTuple):
    """One entry: as shown, and as sorted by (None stands last)."""

    text: str
    value: float | str | None = None


class Documents(NamedTuple):
    """The table.

    Attributes:
        heads: of the columns, the first one being the record.
        numeric: whether a column holds numbers.
        rows: one a record.
        total: how many records were measured; more than rows where the page would be too long.
        terms: what the measures mean, in a sentence each.
    """

    heads: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[Field, ...], ...]
    total: int
    terms: tuple[str, ...]


def documents(
    columns: Mapping[str, Result],
    lead: str,
    *,
    attacked: Result | None = None,
    texts: Sequence[str] | None = None,
) -> Documents | None:
    """The table of the records behind the forget metrics; None where nothing is known record by record.

    Args:
        columns: model name to result.
        lead: the model the page is about; "before" and "retrained" stand beside it where they were measured alike.
        attacked: of `jaxunlearn attack` on the lead, for the document audit's verdicts.
        texts: what to show of each record; default nothing but its number.

    Example:
        >>> result = {"forget_nll": {"agg_value": 2.0, "value_by_index": {"0": 1.5, "1": 2.5}}}
        >>> found = documents({"after": result}, "after")
        >>> found.heads, [field.text for field in found.rows[1]]
        (('Record', 'Loss, after'), ['2', '2.500'])
    """
    values: dict[str, Mapping[str, float | str | None]] = {}
    terms = []
    for metric, label, models in _SHOWN:
        by_model = {
            role: columns.get(lead if role == "lead" else role, {}).get(metric, {}).get("value_by_index")
            for role in models
        }
        if not by_model["lead"]:
            continue
        size = len(by_model["lead"])
        alike = {role: found for role, found in by_model.items() if found and len(found) == size}
        values |= {f"{label}, {'after' if role == 'lead' else role}": found for role, found in alike.items()}
        terms.append(f"{label}: {METRICS[metric].meaning}")
    if not values:
        return None
    audited = (attacked or {}).get("forget_document_auc", {}).get("verdict_by_index") or {}
    if audited:
        values["Audit"] = audited
        terms.append("Audit: whether an auditor, trained on documents known to be learned, judges this one to be.")
    indices = list(dict.fromkeys(index for column in values.values() for index in column))
    shown = texts is not None and len(texts) == len(indices)
    heads = ("Record", *(["Text"] if shown else []), *values)
    rows = []
    for index in indices[:MOST]:
        row = [Field(str(int(index) + 1), int(index) + 1)]
        row += [Field(texts[int(index)], texts[int(index)])] if shown else []
        rows.append((*row, *(_field(column.get(index)) for column in values.values())))
    numeric = tuple(name not in ("Text", "Audit") for name in heads)
    return Documents(heads, numeric, tuple(rows), len(indices), tuple(terms))


def _field(value: float | str | None) -> Field:
    if value is None:
        return Field(MISSING)
    return Field(value, value) if isinstance(value, str) else Field(number(value), value)
