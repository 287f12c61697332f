"""From names and data to suites, everything read and encoded before any weight is loaded."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxunlearn.data import DataError, Encoded, Record, Template, encode, layouts
from jaxunlearn.evals.multiple_choice import Style, choices
from jaxunlearn.evals.protocol import Suite
from jaxunlearn.evals.suites.choice import Choice
from jaxunlearn.evals.suites.knowundo import KnowUnDo
from jaxunlearn.evals.suites.memorisation import memorisation_suite
from jaxunlearn.evals.suites.muse import muse_suite
from jaxunlearn.evals.suites.privacy import Privacy
from jaxunlearn.evals.suites.source_names import source_names
from jaxunlearn.evals.suites.tofu import tofu_suite

SUITES = ("tofu", "muse", "knowundo", "memorisation", "privacy", "choice")


class Sources(NamedTuple):
    """Where the data of suites come from.

    Attributes:
        data: folders (or hub names) in published layouts, one of each; of multiple choice any number.
        split: TOFU's forget split.
        fold: MUSE's forget set, as "scal/2" or "sust/3"; default that of its membership attack.
        forget, retain, holdout: records of one's own; they take the place of a layout's.
        limit: only the first so many records of each set; TOFU's own scripts score 300.
        style: how multiple choice is asked.
        truncate: cut records of one's own, TOFU's other answers and the beginning of multiple-choice questions where
            they are longer than the context, instead of refusing them.
    """

    data: Sequence[str] = ()
    split: str = "forget10"
    fold: str | None = None
    forget: Sequence[Record] = ()
    retain: Sequence[Record] = ()
    holdout: Sequence[Record] = ()
    limit: int | None = None
    style: Style = "answers"
    truncate: bool = False


def build(
    name: str,
    sources: Sources,
    tokenizer: Any,
    *,
    max_length: int,
    template: Template | None = None,
    new_tokens: int = 64,
) -> list[Suite]:
    """The suites of a name of `SUITES`, or all that the data allow for "all".

    Args:
        name: a suite, or "all".
        sources: the data.
        tokenizer: the model's.
        max_length: the model's context, tokens.
        template: how questions and answers are written.
        new_tokens: length of generated answers, tokens.

    Errors:
        ValueError: an unknown name, data that are missing or in another layout, a fold without MUSE's data, or texts
            that do not fit the model.
    """
    if name != "all" and name not in SUITES:
        raise ValueError(f"no suite is called {name!r}; choose one of {', '.join(SUITES)} or all")
    found = _by_layout(name, sources.data)
    if sources.forget and "tofu" in found and name == "all":
        raise ValueError(
            "--suite all measures the forget set of --data or that of --forget, not both: give one of them"
        )
    if sources.fold is not None and "muse" not in found:
        raise ValueError(f"--fold {sources.fold} is one of MUSE's forget sets: give --data FOLDER with MUSE's files")
    tofu = layouts.tofu(found["tofu"][0], sources.split) if "tofu" in found else None
    muse = layouts.muse(found["muse"][0], sources.fold) if "muse" in found else None
    knowundo = layouts.knowundo(found["knowundo"][0]) if "knowundo" in found else None
    encoded: dict[int, list[Encoded]] = {}

    def enc(records: Sequence[Record]) -> list[Encoded]:
        records = records[: sources.limit]
        key = id(records[0]) if records else 0
        if key not in encoded:
            # MUSE's texts are longer than any context, and cut by everyone who scores them.
            cut = sources.truncate or (muse is not None and not sources.forget)
            encoded[key] = encode(records, tokenizer, max_length=max_length, template=template, truncate=cut)
        return encoded[key]

    suites: list[Suite] = []
    if tofu is not None and name in ("tofu", "all"):
        sets = {part: enc(getattr(tofu, part)) for part in ("forget", "retain", "authors", "world", "holdout")}
        how = {"new_tokens": new_tokens, "template": template, "max_length": max_length, "truncate": sources.truncate}
        suites.append(tofu_suite(tokenizer, **sets, **how))
    if muse is not None and name in ("muse", "all"):
        cut = muse._replace(
            **{part: rows[: sources.limit] for part, rows in muse._asdict().items() if "icl" not in part}
        )
        suites.append(muse_suite(cut, tokenizer, max_length=max_length))
    if knowundo is not None and name in ("knowundo", "all"):
        suites.append(KnowUnDo(enc(knowundo.unlearn), enc(knowundo.retention)))
    forget, retain, holdout = _records(sources, tofu, muse, knowundo)
    if forget and name in ("memorisation", "all"):
        suites.append(
            memorisation_suite(
                tokenizer, forget=enc(forget), retain=enc(retain), new_tokens=new_tokens, max_length=max_length
            )
        )
    if forget and holdout and (name == "privacy" or (name == "all" and tofu is None)):
        suites.append(Privacy(enc(forget), enc(holdout)))
    if "choice" in found and name in ("choice", "all"):
        how = {"template": template, "max_length": max_length, "truncate": sources.truncate}
        several = source_names(found["choice"]) if len(found["choice"]) > 1 else [None]
        for source, own in zip(found["choice"], several, strict=True):
            rows = layouts.choices(source)[: sources.limit]
            suites.append(Choice(choices(rows, tokenizer, style=sources.style, **how), own))
    if not suites:
        raise ValueError(_nothing(name, sources))
    return suites


def _by_layout(name: str, data: Sequence[str]) -> dict[str, list[str]]:
    """Sources by layout, only of multiple choice more than one; on the hub, or where nothing is recognised, the suite's
    name says which it is."""
    found: dict[str, list[str]] = {}
    for source in data:
        layout = layouts.detect(source) or (name if name in layouts.LAYOUTS else None)
        if name in layouts.LAYOUTS and layout != name:
            raise DataError(f"--data {source} is laid out like {layout}, not like {name}. Ask for --suite {layout}.")
        if layout is None:
            raise DataError(
                f"--data {source}: no folder in a published layout ({', '.join(layouts.LAYOUTS)}); of a name on the "
                "hub only --suite NAME says which it is. Name the folder that holds the published files."
            )
        if layout in found and layout != "choice":
            raise DataError(f"--data {source} and --data {found[layout][0]} are both laid out like {layout}. Give one.")
        found.setdefault(layout, []).append(source)
    return found


def _records(
    sources: Sources,
    tofu: layouts.TofuData | None,
    muse: layouts.MuseData | None,
    knowundo: layouts.KnowUnDoData | None,
) -> tuple[Sequence[Record], Sequence[Record], Sequence[Record]]:
    """Forget, retain and holdout records for the suites that take any: one's own, or a layout's."""
    sets: Mapping[str, tuple] = {
        "tofu": () if tofu is None else (tofu.forget, tofu.retain, tofu.holdout),
        "muse": () if muse is None else (muse.forget, muse.retain, muse.holdout),
        "knowundo": () if knowundo is None else (knowundo.unlearn, knowundo.retention, ()),
    }
    if sources.forget:
        return sources.forget, sources.retain, sources.holdout
    return next((records for records in sets.values() if records), ((), (), ()))


def _nothing(name: str, sources: Sources) -> str:
    needs = {
        "memorisation": "give --forget FILE, or --data FOLDER with a forget set",
        "privacy": "give --forget FILE and --holdout FILE, or --data FOLDER with both",
        "all": "give --data FOLDER in a published layout, or --forget FILE",
    }
    what = needs.get(name, f"give --data FOLDER with {name}'s published files")
    return f"--suite {name} found no data in {', '.join(sources.data) or 'what was given'}: {what}"
