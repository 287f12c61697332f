"""`jaxunlearn curvature`: curvature of what is to be kept, taken once and stored, so that no later request needs it.

The folder serves any method with an option `factors`; a request then runs without `--retain`:

    jaxunlearn curvature --model tuned --data all.jsonl --out kept
    jaxunlearn unlearn --model tuned --forget forget.jsonl --method kfade --option factors=kept --out forgotten
"""

import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import jax
import numpy as np

from jaxunlearn import curvature, models
from jaxunlearn.curvature import EKFAC, KFAC, EmpiricalFisher, Store
from jaxunlearn.curvature.kronecker import (
    KroneckerEigen,
    KroneckerFactors,
    eigendecompose,
    kronecker_factors,
    second_moments,
)
from jaxunlearn.data import Encoded, batches, filled, shapes_of, steps_per_epoch
from jaxunlearn.models.specs import param_specs
from jaxunlearn.runs import dry_run
from jaxunlearn.runs import record as records
from jaxunlearn.runs.inputs import reader
from jaxunlearn.runs.progress import Reporter
from jaxunlearn.runs.settings import StoreCurvature
from jaxunlearn.sharding import shard_rows
from jaxunlearn.types import Batch, Model, Params


def store_curvature(settings: StoreCurvature) -> Path:
    """Run it; returns the output folder, which `--dry-run` does not make.

    Raises:
        ValueError: bad input or an existing output folder, before any weight is loaded.
    """
    records.refuse_existing(settings.out)
    for name in ("batch_size", "samples", "draws"):
        if getattr(settings, name) < 1:
            raise ValueError(f"--{name} {getattr(settings, name)}: give at least 1".replace("_", "-"))
    if not settings.temperature > 0:
        raise ValueError(f"--temperature {settings.temperature}: give a positive number")
    if settings.kind == "gradients" and settings.temperature != 1:
        raise ValueError(
            "--temperature softens the answers that factors are taken of; gradients have none: leave it out"
        )
    if settings.kind == "gradients" and settings.only:
        raise ValueError("--only chooses parameters for Kronecker factors; gradients are kept whole: leave it out")
    folder = models.resolve(settings.model, weights=not settings.dry_run)
    _check_patterns(settings.only, models.read_config(folder))
    encoded = reader(folder, settings.text).read(*settings.data)
    if settings.dry_run:
        dry_run.store_curvature(settings, encoded)
        return settings.out
    start = time.monotonic()
    with Reporter() as reporter:
        mesh = settings.devices.make_mesh()
        model, params = models.load(settings.model, mesh=mesh)
        if settings.kind == "gradients":
            with reporter.stage("taking gradients", 1) as stage:
                store = _gradients(settings, model, params, encoded, mesh)
                stage.advance()
        else:
            passes = 2 if settings.kind == "ekfac" else 1
            with reporter.stage("taking factors", passes * steps_per_epoch(len(encoded), settings.batch_size)) as stage:
                recipe = (EKFAC if settings.kind == "ekfac" else KFAC)(
                    samples=settings.draws,
                    temperature=settings.temperature,
                    only=settings.only or ("*",),
                    eigen="host",
                )
                store = factors(
                    recipe, model, params, encoded,
                    batch_size=settings.batch_size, seed=settings.seed, mesh=mesh, advance=stage.advance,
                )  # fmt: skip
        # What it belongs to, for a person and for the run that reads it.
        facts = {
            "weights": records.digest(models.resolve(settings.model)),
            "records": len(encoded),
            "seconds": round(time.monotonic() - start, 1),
        }
        inputs = {"model": settings.model, **{f"data_{i}": path for i, path in enumerate(settings.data)}}
        text = records.record("curvature", settings, inputs, digests={"model": facts["weights"]}, **facts)
        beside = {records.FILE: text, records.CONFIG: records.configuration("curvature", settings)}
        curvature.save(settings.out, store, beside=beside)
        size = sum(file.stat().st_size for file in settings.out.glob("*.safetensors"))
        reporter.say(f"{settings.kind} of {len(encoded)} records, {size / 2**20:.1f} MiB -> {settings.out}")
    return settings.out


def _check_patterns(only: tuple[str, ...], config: models.DecoderConfig) -> None:
    """Raises ValueError for a pattern that matches none of the decoder's parameters."""
    paths = ["/".join(spec.path) for spec in param_specs(config)]
    for pattern in only:
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise ValueError(f"--only {pattern}: it matches none of the parameters {', '.join(paths)}")


def warn_if_moved(folder: str | Path, weights: str | None) -> str | None:
    """In words that stored curvature belongs to other weights than `weights`, if its record says so."""
    found = (records.read_record(folder) or {}).get("weights")
    if found is None or found == weights:
        return None
    return (
        f"the curvature in {folder} was taken at other weights than those of this model: the farther they are apart, "
        "the less it says about what is kept (`jaxunlearn curvature` takes it anew; with anchored_matching, --anchor "
        "names the model it was taken of)"
    )


def factors(
    recipe: KFAC | EKFAC,
    model: Model,
    params: Params,
    encoded: Sequence[Encoded],
    *,
    batch_size: int,
    seed: int = 0,
    mesh: jax.sharding.Mesh | None = None,
    advance: Callable[[], None] | None = None,
) -> KroneckerEigen:
    """Eigendecomposed factors summed over all records: one pass for K-FAC, two for EK-FAC.

    Args:
        recipe: what is approximated; labels of batch i are drawn with seed `seed + i`.
        model, params: at which.
        encoded: the records.
        batch_size: records of a batch.
        seed: of the labels.
        mesh: where batches are put.
        advance: called after each batch.
    """

    def summed(take: Callable[[int, Batch], KroneckerFactors]) -> KroneckerFactors:
        total = None
        for number, one in enumerate(batches(encoded, min(batch_size, len(encoded)), shuffle=False)):
            found = take(seed + number, one.on(mesh))
            total = found if total is None else total + found
            if advance is not None:
                advance()
        return total

    eigen = eigendecompose(summed(lambda s, batch: kronecker_factors(model, params, batch, recipe, seed=s)), params)
    if not isinstance(recipe, EKFAC):
        return eigen
    vectors = eigen.vectors
    return eigen.with_moments(summed(lambda s, batch: second_moments(model, params, batch, recipe, vectors, seed=s)))


def _gradients(settings: StoreCurvature, model: Model, params: Params, encoded: Sequence[Encoded], mesh) -> Store:
    """Gradients of a random sample of the records."""
    count = min(settings.samples, len(encoded))
    rows = np.random.default_rng(settings.seed).choice(len(encoded), count, replace=False)
    batch = shard_rows(partial(filled, encoded, rows, count, shapes_of(encoded)), count, mesh)
    return curvature.store_rows(EmpiricalFisher(count)(model, params, batch))
