"""`jaxunlearn evaluate`: before, after and retrained side by side."""

from pathlib import Path

from jaxunlearn import evals, models
from jaxunlearn.evals import Result
from jaxunlearn.runs import record as records
from jaxunlearn.runs.inputs import reader
from jaxunlearn.runs.progress import Reporter
from jaxunlearn.runs.settings import Evaluate


def evaluate(settings: Evaluate) -> dict[str, Result]:
    """Run it; returns the results by column.

    Raises:
        ValueError: bad input, or an existing output file, before any weight is loaded.
    """
    if settings.out is not None and settings.out.exists():
        raise ValueError(f"--out {settings.out} exists already: nothing of yours is overwritten; choose another name")
    reads = reader(settings.model, settings.text)
    sets = {"forget": reads.read(settings.forget)}
    for name in ("retain", "holdout"):
        source = getattr(settings, name)
        sets[name] = reads.read(source) if source else None
    folders = {"before": _before(settings), "after": settings.model, "retrained": settings.reference_model}
    mesh = settings.devices.mesh()
    with Reporter() as reporter:
        loaded = {name: models.load(folder, mesh=mesh) for name, folder in folders.items() if folder is not None}
        results: dict[str, Result] = {}
        # The retrained model first: the others are compared with its result.
        for name in sorted(loaded, key=lambda n: n != "retrained"):
            model, params = loaded[name]
            with reporter.stage(f"evaluating {name}", 1) as stage:
                results[name] = evals.evaluate(
                    model,
                    params,
                    reads.tokenizer,
                    **sets,
                    reference=loaded.get("retrained"),
                    reference_result=results.get("retrained"),
                    generate=models.generate if settings.generate else None,
                    template=settings.text.template,
                    max_length=reads.max_length,
                    batch_size=settings.batch_size,
                    mesh=mesh,
                    seed=settings.seed,
                )
                stage.advance()
        results = {name: results[name] for name in folders if name in results}
        from jaxunlearn.reports import side_by_side

        reporter.console.print(side_by_side(results, title="Before, after and retrained"))
        if settings.out is not None:
            facts = {name: str(folder) for name, folder in folders.items() if folder is not None}
            evals.write_result(settings.out, {"models": facts, "results": results})
            reporter.say(f"all numbers -> {settings.out}")
    return results


def _before(settings: Evaluate) -> Path | None:
    """The model before unlearning: given, or named by the record in the unlearned folder and still there."""
    if settings.before_model is not None:
        return settings.before_model
    found = records.read_record(settings.model)
    path = None if found is None else found.get("inputs", {}).get("model", {}).get("path")
    return Path(path) if path and found.get("command") == "unlearn" and Path(path).is_dir() else None
