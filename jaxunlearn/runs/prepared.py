"""What `jaxunlearn unlearn` reads and checks before any weight: the same for a run and for `--dry-run`."""

from pathlib import Path
from typing import Any, NamedTuple

from jaxunlearn import data, models
from jaxunlearn.files import require_room
from jaxunlearn.methods import CATALOGUE, Entry, Method
from jaxunlearn.models.saving import byte_size
from jaxunlearn.runs import alternatives, coresets, forget_streamed, requests, trainable, watch_plan
from jaxunlearn.runs import record as records
from jaxunlearn.runs.alternatives import Alternatives
from jaxunlearn.runs.flags import of_flag
from jaxunlearn.runs.inputs import Reader, reader
from jaxunlearn.runs.options import make_method, options_of
from jaxunlearn.runs.progress import Reporter
from jaxunlearn.runs.references import substitute
from jaxunlearn.runs.settings import Unlearn

ANCHORED = ("anchored_matching",)
"""Methods with an anchor, which can hold to another place than where the run begins."""


class Prepared(NamedTuple):
    """A run of `unlearn` up to its first weight.

    Attributes:
        method, entry: the recipe with its options, and what the catalogue says of it.
        reads: tokenizer and longest sequence.
        folder: of the checkpoint, on this machine.
        before: hash of its weights; None where the weights are not here, which only a dry run allows.
        answered: the requests that the model has answered earlier.
        new: the records of this request; `forget` may hold those of earlier ones besides.
        forget, retain, holdout: encoded.
        others: other answers, for methods that want some written ones.
        watched: what to look at on the way; None for nothing.
    """

    method: Method
    entry: Entry
    reads: Reader
    folder: Path
    before: str | None
    answered: list[dict[str, Any]]
    new: list[data.Record]
    forget: list[data.Encoded]
    retain: list[data.Encoded]
    holdout: list[data.Encoded] | None
    others: Alternatives
    watched: watch_plan.Plan | None


def prepare(settings: Unlearn) -> Prepared:
    """Reads and checks everything but weights.

    Raises:
        ValueError: bad input, overlap of forget and retain, an existing output folder.
    """
    records.refuse_existing(settings.out)
    _check_numbers(settings)
    method = make_method(settings.method, settings.option)
    if settings.generic_alpha is not None and not matches(method):
        raise ValueError(
            f"--generic-alpha {settings.generic_alpha}: --method {settings.method} matches no counterfactual answers; "
            "leave it out"
        )
    forget_streamed.check(settings)
    if settings.retain is None and method.retain:
        raise ValueError(_no_retain(settings))
    folder = models.resolve(settings.model, weights=not settings.dry_run)
    _check_anchor(settings, folder)
    reads = reader(folder, settings.text)
    trainable.check(settings.trainable, models.read_config(folder).num_hidden_layers)
    require_room(settings.out, records.weight_bytes(folder))
    before = records.digest(folder)
    answered = requests.earlier(folder, before)
    requests.check_number(settings.request, answered, settings.model)
    again = requests.replayed(answered) if settings.replay else []
    new, kept = (
        data.read(source, fields=settings.text.fields) if source else []
        for source in (settings.forget, settings.retain)
    )
    requests.check_retain(kept, answered)
    gone = new + [record for source in again for record in data.read(source, fields=settings.text.fields)]
    data.check_overlap(gone, kept)
    forget, retain = reads.encode(gone), reads.encode(kept)
    others = alternatives.written(method, gone, kept, reads, settings.seed)
    _check_microbatch(settings, *batch_sizes(settings, len(forget), len(retain)))
    holdout = reads.read(settings.holdout) if settings.holdout else None
    entry = CATALOGUE[settings.method]
    steps = entry.steps if settings.steps is None else settings.steps
    watched = watch_plan.plan(settings.watching, reads, forget, retain, holdout, steps=steps)
    return Prepared(
        method, entry, reads, folder, before, answered, new, forget, retain, holdout, others,
        watched,
    )  # fmt: skip


def matches(method: Method) -> bool:
    """Whether the method matches counterfactual answers."""
    return "counterfactual_top" in method.needs


def prompts_of(settings: Unlearn, ready: Prepared, reporter: Reporter) -> data.Counterfactuals | None:
    """Counterfactual prompts, for the methods that match them and for those that need a place to stop.

    Raises:
        ValueError: the method matches them, and no record has a name to replace.
    """
    matched = matches(ready.method)
    stops = ready.entry.ascends and not settings.stream_retain
    wanted = stops and settings.stop_at_nll is None and not settings.holdout
    if not (matched or wanted):
        return None
    found = substitute(
        ready.forget,
        ready.retain,
        ready.reads.tokenizer,
        k=settings.substitutes,
        seed=settings.seed,
        max_length=ready.reads.max_length,
    )
    message = data.uncovered_message(ready.forget, found)
    if matched and not found.covered.any():
        raise ValueError(message)
    if message and matched:
        reporter.warn(f"{message} They are forgotten only as far as they resemble the others.")
    return found


def batch_sizes(settings: Unlearn, forget: int, retain: int) -> tuple[int, int]:
    """Forget and retain records of a step, where there are so many in all."""
    entry = CATALOGUE[settings.method]
    forget, retain = coresets.sizes(settings, forget, retain)
    return min(settings.batch_size or entry.batch_size, forget), min(settings.retain_size or entry.retain_size, retain)


def _check_microbatch(settings: Unlearn, forget: int, retain: int) -> None:
    """Found out here, since a step that cannot be cut would otherwise be noticed after the weights are read."""
    given = [option.partition("=")[2] for option in settings.option if option.startswith("microbatch=")]
    size = int(given[-1]) if given and given[-1].lower() != "none" else None
    for flag, count in (("batch-size", forget), ("retain-size", retain)):
        if size is not None and 0 < size < count and count % size:
            raise ValueError(
                f"--option microbatch={size}: a step of {count} records cannot be cut into so many at a time; give "
                f"--{flag} {count - count % size}, or a divisor of {count}"
            )


def _no_retain(settings: Unlearn) -> str:
    """What to do about a missing retain set, by method."""
    options = {option.name for option in options_of(settings.method)}
    ways = [
        "--option factors=FOLDER with curvature that `jaxunlearn curvature` stored" if "factors" in options else None,
        "--option retain=none to leave its retain term out" if "retain" in options else None,
    ]
    others = "; or ".join(way for way in ways if way) or "another method (`jaxunlearn methods` says what each needs)"
    return f"{settings.method} needs examples of what must be kept: give --retain FILE; or {others}"


def _check_anchor(settings: Unlearn, folder: Path) -> None:
    if settings.anchor is None:
        return
    if settings.method not in ANCHORED:
        raise ValueError(
            f"--anchor {settings.anchor}: --method {settings.method} has no anchor; choose {', '.join(ANCHORED)}, or "
            "leave it out"
        )
    if settings.trainable.lora_rank:
        raise ValueError(f"--anchor {settings.anchor}: adapters begin at nothing, which is where they are held")
    with of_flag("--anchor"):
        found = models.resolve(settings.anchor, weights=not settings.dry_run)
    if models.read_config(found) != models.read_config(folder):
        raise ValueError(f"--anchor {settings.anchor}: its configuration is another than that of {settings.model}")


def _check_numbers(settings: Unlearn) -> None:
    byte_size(settings.max_shard_size, "--max-shard-size")
    if settings.memory_budget is not None:
        byte_size(settings.memory_budget, "--memory-budget")
    coresets.check(settings)
    numbers = ("steps", "batch_size", "retain_size", "substitutes", "top_k", "forget_coreset_size")
    for name in (*numbers, "retain_coreset_size"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: give a number of at least 1")
    if not 0 <= settings.corrupt <= 1:
        raise ValueError(f"--corrupt {settings.corrupt}: give a share from 0 to 1")
    alpha = settings.generic_alpha
    if alpha is not None and not 0 <= alpha < float("inf"):
        raise ValueError(f"--generic-alpha {alpha}: give a number of at least 0")
