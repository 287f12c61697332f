"""`jaxunlearn evaluate`: before, after and retrained side by side, by one suite, by all, or on two record files."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache, partial, wraps
from pathlib import Path
from typing import Any

from jaxunlearn import data, evals, models
from jaxunlearn.evals import Result, Run, Suite
from jaxunlearn.evals.suites import Sources, tofu_suite
from jaxunlearn.evals.suites.runner import Generate
from jaxunlearn.models.saving import byte_size
from jaxunlearn.runs import dry_run_scoring, scoring_budget
from jaxunlearn.runs import record as records
from jaxunlearn.runs.flags import of_flag
from jaxunlearn.runs.inputs import Reader, reader
from jaxunlearn.runs.progress import Reporter, Stage
from jaxunlearn.runs.scoring_budget import Rows
from jaxunlearn.runs.settings import Attack, Evaluate
from jaxunlearn.runs.work import Work, finished, plain_options
from jaxunlearn.types import Model, Params


def evaluate(settings: Evaluate) -> dict[str, Result]:
    """Run it; returns the results by column, none with `--dry-run`.

    Raises:
        ValueError: bad input, an existing output file or an unfinished run, before any weight is loaded.
    """
    if finished("evaluate", settings):
        return json.loads(settings.out.read_text(encoding="utf-8"))["results"]
    records.refuse_result(settings.out)
    _check(settings)
    reads = reader(models.resolve(settings.model, weights=not settings.dry_run), settings.text)
    suites = suites_of(settings, reads)
    generate = models.generate if settings.generate or settings.suite else None
    folders = _columns(settings)
    texts = {id(text): text for suite in suites for part in suite.texts().values() for text in part}
    if settings.dry_run:
        dry_run_scoring.evaluate(settings, folders, list(texts.values()), generate is not None)
        return {}
    mesh = settings.devices.make_mesh()
    work, weights = work_of("evaluate", settings, folders)
    with work or nullcontext(), Reporter() as reporter:
        if work is not None and work.resumed:
            reporter.say(work.told())
        rows = Rows(settings.batch_size, None)
        if settings.memory_budget is not None:
            alone = settings.devices.make_mesh(alone=True)
            asked = (settings, folders, list(texts.values()), alone, reporter.say)
            find = partial(scoring_budget.choose, *asked, writes=generate is not None)
            rows = find() if work is None else Rows(*work.keep("rows", lambda: list(find())))
            reporter.say(f"within {settings.memory_budget} a device: {rows}")
            generate = generate and partial(generate, batch_size=rows.written)
        load = cache(partial(models.load, mesh=mesh))
        results: dict[str, Result] = {}

        def measured(name: str) -> Result:
            # Of the others, only one is in memory.
            own = load(folders[name]) if name == "retrained" else models.load(folders[name], mesh=mesh)
            retrained = load(folders["retrained"]) if "retrained" in folders else None
            compared = retrained, results.get("retrained")
            run = Run(*own, reads.tokenizer, *compared, settings.seed, rows.scored, mesh)
            writes = generate if work is None or generate is None else remembered(generate, work, name)
            with reporter.stage(f"evaluating {name}", len(texts)) as stage:
                seen = Counter(stage)
                return evals.run_suites(suites, run, generate=writes, max_length=reads.max_length, progress=seen)

        # The retrained model first: the others are compared with its result.
        for name in sorted(folders, key=lambda n: n != "retrained"):
            make = partial(measured, name)
            results[name] = make() if work is None else work.keep(f"result-{name}", make)
        results = {name: results[name] for name in folders if name in results}
        from jaxunlearn.reports import side_by_side

        title = _listed(list(results)) + (f", {settings.suite}" if settings.suite else "")
        reporter.console.print(side_by_side(results, title=title))
        if settings.out is not None:
            sources = {name: getattr(settings, name) for name in ("forget", "retain", "holdout")}
            facts = records.provenance(folders, sources, weights=weights)
            measured = {"suite": settings.suite, "data": list(settings.data)} if settings.suite else {}
            about = {"command": "evaluate", "settings": plain_options(settings), **facts, **measured}
            evals.write_result(settings.out, {**about, "results": results})
            records.write_options(settings.out, "evaluate", settings)
            reporter.say(f"all numbers -> {settings.out}")
    return results


def suites_of(settings: Evaluate, reads: Reader) -> Sequence[Suite]:
    """The suites that the settings ask for, read and encoded."""
    if settings.suite is None:
        sets = {name: getattr(settings, name) for name in ("forget", "retain", "holdout")}
        encoded = {name: reads.read(source) for name, source in sets.items() if source}
        text = {"template": settings.text.template, "truncate": settings.text.truncate}
        options = {"new_tokens": settings.new_tokens, **text}
        return [tofu_suite(reads.tokenizer, **encoded, **options, max_length=reads.max_length)]
    given = {
        name: data.read(getattr(settings, name), fields=settings.text.fields)
        for name in ("forget", "retain", "holdout")
        if getattr(settings, name)
    }
    sources = Sources(
        data=settings.data,
        split=settings.split,
        fold=settings.fold,
        limit=settings.limit,
        style=settings.choice_style,
        truncate=settings.text.truncate,
        **given,
    )
    options = {"template": settings.text.template, "new_tokens": settings.new_tokens}
    return evals.build(settings.suite, sources, reads.tokenizer, max_length=reads.max_length, **options)


def remembered(generate: Generate, work: Work, column: str) -> Generate:
    """`generate`, which takes most of the time, with every call's texts kept in the work folder."""

    @wraps(generate)
    def write(model: Model, params: Params, prompts: list[list[int]], **options: Any) -> list[list[int]]:
        asked = hashlib.sha256(json.dumps([prompts, options]).encode()).hexdigest()[:16]
        make = partial(generate, model, params, prompts, **options)
        return work.keep(f"texts-{column}-{asked}", lambda: [[int(token) for token in text] for text in make()])

    return write


class Counter:
    """A stage as the callback `(done, total)` of a scoring pass."""

    def __init__(self, stage: Stage):
        self._stage, self._done = stage, 0

    def __call__(self, done: int, total: int) -> None:
        self._stage.advance(done - self._done)
        self._done = done


def _listed(names: list[str]) -> str:
    text = " and ".join(", ".join(part) for part in (names[:-1], names[-1:]) if part)
    return text[:1].upper() + text[1:]


def _check(settings: Evaluate) -> None:
    if settings.suite is None and settings.data:
        raise ValueError("--data needs --suite NAME: say which metrics are wanted, or --suite all")
    if settings.fold is not None and settings.suite not in ("muse", "memorisation", "privacy", "all"):
        raise ValueError(f"--fold {settings.fold} is one of MUSE's forget sets: give --suite muse with --data FOLDER")
    if settings.fold is not None and settings.forget is not None:
        raise ValueError(f"--fold {settings.fold} and --forget {settings.forget} both name the forget set: give one")
    if settings.suite is None and settings.forget is None:
        raise ValueError("nothing to evaluate on: give --forget FILE, or --suite NAME with --data FOLDER")
    for name in ("limit", "new_tokens", "batch_size"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: give a number of at least 1")
    if settings.memory_budget is not None:
        byte_size(settings.memory_budget, "--memory-budget")


def _columns(settings: Evaluate) -> dict[str, Path]:
    """The folder of each column, in the order of the table."""
    folders = {"before": before(settings), "after": settings.model}
    for folder in settings.more_model:
        if folder.name in (*folders, "retrained"):
            raise ValueError(
                f"--more-model {folder}: a column called {folder.name!r} exists already; rename the folder"
            )
        folders[folder.name] = folder
    folders["retrained"] = settings.reference_model
    for flag, folder in (
        ("--before-model", settings.before_model),
        *(("--more-model", folder) for folder in settings.more_model),
        ("--reference-model", settings.reference_model),
    ):
        if folder is not None:
            with of_flag(flag):
                models.resolve(folder, weights=not settings.dry_run)
    return {name: folder for name, folder in folders.items() if folder is not None}


def work_of(
    command: str, settings: Evaluate | Attack, folders: dict[str, Path]
) -> tuple[Work | None, dict[str, str | None]]:
    """What a run over the models of `folders`, by column, leaves behind, and hashes of their weights; without a result
    file it leaves nothing, and no hash is taken."""
    if settings.out is None:
        return None, {}
    weights = {name: records.digest(folder) for name, folder in folders.items()}
    known = {"model": weights["after"], "reference_model": weights.get("retrained")}
    if "before" in weights:
        # The model before unlearning may be named by a record only.
        known["the model before" if settings.before_model is None else "before_model"] = weights["before"]
    return Work(command, settings, digests=known), weights


def before(settings: Evaluate | Attack) -> Path | None:
    """The model before unlearning: given, or named by the record in the unlearned folder and still there."""
    if settings.before_model is not None:
        return settings.before_model
    found = records.read_record(settings.model)
    path = None if found is None else found.get("inputs", {}).get("model", {}).get("path")
    return Path(path) if path and found.get("command") == "unlearn" and Path(path).is_dir() else None
