"""`jaxunlearn attack`: the stress tests in one command, on the unlearned model and on those it is compared with."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from jaxunlearn import data, evals, models
from jaxunlearn.data import Encoded, Record
from jaxunlearn.data.canary_key import read_key
from jaxunlearn.evals import Result
from jaxunlearn.evals.attacks.families import FAMILIES
from jaxunlearn.evals.attacks.findings import findings
from jaxunlearn.evals.attacks.stress import check_families, stress
from jaxunlearn.evals.attacks.target import Doses, Target
from jaxunlearn.runs import dry_run_scoring
from jaxunlearn.runs.evaluate import before, work_of
from jaxunlearn.runs.flags import of_flag
from jaxunlearn.runs.inputs import Reader, reader
from jaxunlearn.runs.progress import Reporter
from jaxunlearn.runs.record import provenance, refuse_result, write_options
from jaxunlearn.runs.settings import Attack
from jaxunlearn.runs.work import finished, plain_options
from jaxunlearn.types import Model

SETS = ("forget", "retain", "holdout")
# The rate that is customary at 1B parameters, 2e-5 at a width of 2048, in proportion to one over the width.
RATE_TIMES_WIDTH = 0.04
# The document audit cuts windows itself, so its documents may be of any length.
ANY_LENGTH = 1 << 30


def attack(settings: Attack) -> dict[str, Result]:
    """Run it; returns the results by column, none with `--dry-run`.

    Raises:
        ValueError: bad input, an existing output file or an unfinished run, before any weight is loaded.
        Interrupted: SIGTERM or Ctrl-C; `--resume` goes on after the tests that are over.
    """
    if finished("attack", settings):
        return json.loads(settings.out.read_text(encoding="utf-8"))["results"]
    _check(settings)
    chosen = [name for name in FAMILIES if name in settings.only] or list(FAMILIES)
    reads = reader(models.resolve(settings.model, weights=not settings.dry_run), settings.text)
    records = {name: _records(getattr(settings, name), settings) for name in SETS}
    documents = _documents(records, reads) if "document" in chosen else None
    cut = chosen != ["document"]
    sets = {name: reads.encode(some) if cut and some else [] for name, some in records.items()}
    canaries = read_key(settings.canaries) if settings.canaries is not None else []
    folders = {"before": before(settings), "after": settings.model, "retrained": settings.reference_model}
    folders = {name: folder for name, folder in folders.items() if folder is not None}
    beside = _beside(settings)
    if settings.dry_run:
        texts = [text for part in (sets.values() if cut else documents or ()) for text in part]
        dry_run_scoring.attack(settings, folders | beside, texts, chosen, _lacking(settings, chosen))
        return {}
    mesh = settings.devices.make_mesh()
    work, weights = work_of("attack", settings, folders)
    with work or nullcontext(), Reporter() as reporter:
        if work is not None and work.resumed:
            reporter.say(work.told())
        loaded = {name: models.load(folder, mesh=mesh) for name, folder in folders.items()}
        general = {name: models.load(folder, mesh=mesh) for name, folder in beside.items()}
        results: dict[str, Result] = {}
        for name, (model, params) in loaded.items():
            target = Target(
                model,
                params,
                reads.tokenizer,
                reads.max_length,
                **(sets if cut else dict(zip(SETS, documents, strict=True))),
                documents=documents,
                reference=loaded.get("retrained"),
                is_reference=name == "retrained",
                **general,
                canaries=canaries,
                template=settings.text.template,
                options={"batch_size": settings.batch_size, "mesh": mesh},
            )
            # How fast it is relearned is asked of the unlearned model: the others set the scale.
            asked = [family for family in chosen if name == "after" or family != "relearning"]
            results[name] = {}
            with reporter.stage(f"attacking {name}", len(asked)) as stage:
                for family in asked:
                    make = partial(stress, target, _doses(settings, model), only=[family])
                    results[name] |= make() if work is None else work.keep(f"{name}-{family}", make)
                    stage.advance()
        _tell(results, reporter)
        if settings.out is not None:
            sources = {name: getattr(settings, name) for name in (*SETS, "general_model")}
            facts = provenance(folders, sources, weights=weights)
            about = {"command": "attack", "settings": plain_options(settings), **facts}
            evals.write_result(settings.out, {**about, "results": results})
            write_options(settings.out, "attack", settings)
            reporter.say(f"all numbers -> {settings.out}")
    return results


def _tell(results: dict[str, Result], reporter: Reporter) -> None:
    from jaxunlearn.reports import side_by_side

    reporter.console.print(side_by_side(results, title="What attacks bring back"))
    said = findings(results["after"], results.get("retrained"))
    for sentence in said or ["Nothing came back under these tests. That is no proof that nothing is left."]:
        reporter.console.print(f"• {sentence}", highlight=False, markup=False)


def _records(source: str | None, settings: Attack) -> list[Record]:
    return data.read(source, fields=settings.text.fields) if source else []


def _documents(records: dict[str, list[Record]], reads: Reader) -> tuple[list[Encoded], ...]:
    options = {"max_length": ANY_LENGTH, "template": reads.text.template}
    return tuple(data.encode(records[name], reads.tokenizer, **options) for name in SETS)


def _doses(settings: Attack, model: Model) -> Doses:
    rate = settings.relearn_rate
    return Doses(
        relearn_share=settings.relearn_share,
        relearn_epochs=settings.relearn_epochs,
        relearn_rate=RATE_TIMES_WIDTH / model.source.config.hidden_size if rate is None else rate,
        group=settings.group,
        candidates=settings.candidates,
        classifier=settings.classifier,
        normalisation=settings.normalisation,
        features=settings.features,
        at_once=settings.gradients_at_once,
        seed=settings.seed,
    )


def _lacking(settings: Attack, families: Sequence[str]) -> dict[str, str]:
    """Families that have nothing to go on, with the option they miss."""
    given = {one: getattr(settings, one) for one in (*SETS, "canaries")} | {"reference": settings.reference_model}
    flags = {"reference": "--reference-model"}
    missing = ((name, part) for name in families for part in FAMILIES[name].needs if not given[part])
    return {name: flags.get(part, f"--{part}") for name, part in missing}


def _beside(settings: Attack) -> dict[str, Path]:
    """The folder of the general model, if there is one; a token must be the same to it."""
    if settings.general_model is None:
        return {}
    if settings.normalisation == "none":
        raise ValueError("--general-model is what probabilities are related to, and --normalisation none relates none")
    folders = (models.resolve(one, weights=not settings.dry_run) for one in (settings.model, settings.general_model))
    mine, other = (models.read_config(folder).vocab_size for folder in folders)
    if mine != other:
        raise ValueError(
            f"--general-model {settings.general_model} has a vocabulary of {other} tokens and the model one of {mine}; "
            "give a model with the same tokenizer"
        )
    return {"general": settings.general_model}


def _check(settings: Attack) -> None:
    refuse_result(settings.out)
    with of_flag("--only"):
        check_families(settings.only)
    for name, least in (("relearn_epochs", 1), ("group", 1), ("candidates", 2), ("gradients_at_once", 1),
                        ("batch_size", 1)):  # fmt: skip
        value = getattr(settings, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} {value}: give at least {least}")
    if not 0 < settings.relearn_share <= 1:
        raise ValueError(f"--relearn-share {settings.relearn_share}: give a share above 0 and at most 1")
    if settings.relearn_rate is not None and not settings.relearn_rate > 0:
        raise ValueError(f"--relearn-rate {settings.relearn_rate}: give a positive rate, or leave it out")
    for name in ("reference_model", "before_model", "general_model"):
        if (folder := getattr(settings, name)) is not None:
            with of_flag(f"--{name.replace('_', '-')}"):
                models.resolve(folder, weights=not settings.dry_run)
