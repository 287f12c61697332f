"""What a report on an unlearned folder lacks, and the command that would measure it.

A page that shows only what was measured reads as if there were nothing else. So everything that the verdict needs and
that nobody measured is named, with a command made from the run's own record, ready to be run.
"""

import shlex
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from jaxunlearn.evals import Result
from jaxunlearn.evals.result import why_missing
from jaxunlearn.reports import Gap
from jaxunlearn.runs.settings import Text

RETRAINED, SECOND, UNSEEN = "RETRAINED-FOLDER", "SECOND-RETRAINED-FOLDER", "UNSEEN-RECORDS.jsonl"


def unmeasured(
    folder: Path,
    record: Mapping[str, Any],
    columns: Mapping[str, Result],
    attacked: Mapping[str, Result],
    floor: Mapping[str, float],
    *,
    lead: str = "after",
    earlier: Collection[int] = (),
    retrained: str | None = None,
) -> list[Gap]:
    """The gaps of a page, the most important first.

    Args:
        folder: of the unlearned model.
        record: what the run wrote about itself.
        columns, attacked: model name to result of `evaluate` and of `attack`.
        floor: KL between two retrained models.
        lead: the column of the model in `folder`.
        earlier: numbers of earlier requests that nobody has measured again.
        retrained: folder of the retrained model, where it is known.

    Example:
        >>> record = {"inputs": {"model": {"path": "m"}, "forget": {"path": "f.jsonl"}, "retain": {"path": "r.jsonl"}}}
        >>> first, *_ = unmeasured(Path("gone"), record, {}, {}, {})
        >>> first.command.startswith("jaxunlearn evaluate --model gone --forget f.jsonl --retain r.jsonl --holdout ")
        True
    """
    inputs = {name: one["path"] for name, one in record.get("inputs", {}).items()}
    named = record.get("settings") or {}
    sets = {
        "forget": inputs.get("forget", "FORGET-RECORDS.jsonl"),
        "retain": inputs.get("retain", "RETAIN-RECORDS.jsonl"),
        "holdout": inputs.get("holdout", UNSEEN),
    }
    reference = retrained or RETRAINED
    text = _text_flags(named.get("text") or {})

    def command(name: str, model: str, out: str, **more: str) -> str:
        place = folder.parent / f"{folder.resolve().name}-{out}.json"
        flags = {"model": model, **sets, **more, "out": str(place)}
        words = [word for flag, value in flags.items() for word in (f"--{flag.replace('_', '-')}", value)]
        return shlex.join(["jaxunlearn", name, *words, *text])

    gaps = []
    before = inputs.get("model", "MODEL-BEFORE")
    missing = _missing(columns, lead)
    if missing:
        more = {"before_model": before, "reference_model": reference}
        gaps.append(Gap(" ".join(missing), command("evaluate", str(folder), "evaluation", **more) + " --generate"))
    if "forget_kl" not in floor:
        said = (
            "How far two retrained models lie apart (two seeds): without that distance nobody can say whether this "
            "model is as close to a retrained one as it could be. Measure it, and give the file to --seed-floor."
        )
        gaps.append(Gap(said, command("evaluate", SECOND, "floor", reference_model=reference)))
    if lead not in attacked:
        said = "Whether attacks, rounding or a little training bring something back."
        gaps.append(Gap(said, command("attack", str(folder), "attack", reference_model=reference)))
    for line in (line for line in record.get("requests") or [] if line["number"] in earlier):
        said = f"Whether what request {line['number']} asked for is still forgotten."
        known = {"forget": line["forget"]["path"], "reference_model": reference}
        gaps.append(Gap(said, command("evaluate", str(folder), f"request-{line['number']}", **known)))
    return gaps


def _missing(columns: Mapping[str, Result], lead: str) -> list[str]:
    """What `evaluate` would add, one sentence each."""
    if lead not in columns:
        return ["What the model says: nothing was measured, so there is no verdict."]
    said, result = [], columns[lead]
    if "before" not in columns:
        said.append("The model before unlearning: without it, keeping is not judged.")
    if _absent(result, "forget_kl"):
        said.append("The distance to a model retrained without these records: without it, forgetting is not judged.")
    if _absent(result, "retain_exact_memorisation"):
        said.append("What became of the records to be kept.")
    if _absent(result, "forget_loss_auc"):
        said.append("Whether the loss gives away which records were learned: that needs comparable unseen records.")
    if _absent(result, "forget_rouge_l"):
        said.append("What the model writes when asked.")
    return said


def _absent(result: Result, metric: str) -> bool:
    return why_missing(result.get(metric, {})) is not None


def _text_flags(options: Mapping[str, Any]) -> list[str]:
    """How the run read its records, where that is not the usual way."""
    words = []
    for field in fields(Text):
        value = options.get(field.name, field.default)
        if value != field.default:
            words += [f"--{field.name.replace('_', '-')}", str(value)]
    return words
