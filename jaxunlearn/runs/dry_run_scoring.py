"""`--dry-run` of the commands that ask a model and change nothing: `evaluate`, `attack` and `canary score`.

What is compiled is the scoring pass that all of them make, from the headers of the weights and the shapes of the texts
(`runs.needs`); see `runs.dry_run` for what a dry run is.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxunlearn.data import Encoded, shapes_of
from jaxunlearn.evals.attacks.canaries import Candidates
from jaxunlearn.evals.batching import bucketed
from jaxunlearn.evals.divergence import batch_divergence
from jaxunlearn.evals.score import batch_scores
from jaxunlearn.runs import scoring_budget
from jaxunlearn.runs.dry_run import amount, told
from jaxunlearn.runs.headers import Checkpoint
from jaxunlearn.runs.needs import Work, disk, needs
from jaxunlearn.runs.programs import abstract, model_of
from jaxunlearn.runs.settings import Attack, CanaryScore, Evaluate
from jaxunlearn.types import Model, TokenBatch

MOST_OF_A_CANARY = 600
"""Bytes of a result file for each canary: its numbers, the words of its template apart."""


def evaluate(settings: Evaluate, folders: dict[str, Path], texts: Sequence[Encoded], generates: bool) -> None:
    """Tells what `jaxunlearn evaluate` would do: `folders` by column, `texts` of all suites."""
    with told("evaluate", settings.out) as (reporter, rows):
        models_here = {name: Checkpoint.read(folder) for name, folder in folders.items()}
        for name, found in models_here.items():
            rows[name] = f"{folders[name]}: {found.told()}"
        rows["texts"] = f"{amount(texts)}, scored under each of {len(folders)} models"
        if generates:
            rows["answers"] = f"written besides, up to {settings.new_tokens} tokens each, or as a suite says"
        mesh = settings.devices.make_mesh(alone=True)
        if settings.memory_budget is not None:
            at_once = scoring_budget.choose(settings, folders, texts, mesh, reporter.say, writes=generates)
            rows["within"] = f"{settings.memory_budget} a device: {at_once}"
            settings = replace(settings, batch_size=at_once.scored)
        others = len(folders) - 1 if "retrained" in folders else 0
        work = [_scoring(models_here["after"], texts, settings.batch_size, len(folders), mesh)]
        if others:
            pair = models_here["retrained"], models_here["after"]
            work.append(_comparing(pair, texts, settings.batch_size, others, mesh))
        rows |= needs(work, mesh, reporter)


def attack(
    settings: Attack,
    folders: dict[str, Path],
    texts: Sequence[Encoded],
    families: Sequence[str],
    lacking: dict[str, str],
) -> None:
    """Tells what `jaxunlearn attack` would do: `folders` by column, `texts` of all sets, what families are lacking."""
    with told("attack", settings.out) as (reporter, rows):
        models_here = {name: Checkpoint.read(folder) for name, folder in folders.items()}
        for name, found in models_here.items():
            rows[name] = f"{folders[name]}: {found.told()}"
        families = [name for name in families if name not in lacking]
        rows["tests"] = ", ".join(families) or "none"
        if lacking:
            rows["skipped"] = ", ".join(f"{name} (no {option})" for name, option in lacking.items())
        rows["texts"] = f"{amount(texts)}; every test reads some of them once or several times"
        mesh, passes = settings.devices.make_mesh(alone=True), len(folders) * len(families)
        rows |= needs([_scoring(models_here["after"], texts, settings.batch_size, passes, mesh)], mesh, reporter)


def canary_score(settings: CanaryScore, among: Sequence[Candidates]) -> None:
    """Tells what `jaxunlearn canary score` would do: `among` are the texts of each template."""
    with told("canary score", settings.out) as (reporter, rows):
        found = Checkpoint.read(settings.model)
        mesh = settings.devices.make_mesh(alone=True)
        model, params = model_of(found.config, mesh, dtypes=found.dtypes)
        canaries = sum(len(one.canaries) for one in among)
        rows["model"] = found.told()
        rows["key"] = f"{canaries:,} canaries of {len(among)} templates"
        for one in among:
            ranks = "exact ranks" if one.listed else f"{settings.ranks or 'skew_normal'} ranks"
            rows[one.template.text] = (
                f"{len(one.encoded):,} of {one.template.size:,} candidates scored for {len(one.canaries):,} canaries: "
                f"{ranks}"
            )
        rows["texts"] = amount([text for one in among for text in one.encoded])
        scores, counted = _scores(model), Counter[tuple[tuple[int, ...], tuple[int, ...]]]()
        for one in among:
            for _, batch in bucketed(one.encoded, settings.batch_size):
                counted[batch.tokens.shape, batch.positions.shape] += 1
        work = [
            Work("scoring {} x {} tokens".format(*tokens), (scores, (params, _batch(tokens, places, mesh)), ()), times)
            for (tokens, places), times in counted.items()
        ]
        rows |= needs(work, mesh, reporter)
        if settings.out is not None:
            words = sum(len(one.canaries) * len(one.template.text.encode()) for one in among)
            rows["disk"] = disk(settings.out, words + MOST_OF_A_CANARY * canaries)


def _scoring(found: Checkpoint, texts: Sequence[Encoded], batch_size: int, passes: int, mesh: Mesh) -> Work:
    """`passes` over the texts, in batches as large as the largest."""
    model, params = model_of(found.config, mesh, dtypes=found.dtypes)
    batch, count = _largest(texts, batch_size, mesh)
    return Work("scoring a batch", (_scores(model), (params, batch), ()), passes * count)


def _comparing(
    pair: tuple[Checkpoint, Checkpoint], texts: Sequence[Encoded], batch_size: int, passes: int, mesh: Mesh
) -> Work:
    """The same under two models, the retrained one first."""
    (theirs, q), (model, p) = (model_of(one.config, mesh, dtypes=one.dtypes) for one in pair)
    batch, count = _largest(texts, batch_size, mesh)
    both = (lambda q, p, b: batch_divergence(theirs, model, q, p, b), (q, p, batch), ())
    return Work("comparing a batch with the retrained model", both, passes * count)


def _scores(model: Model):
    return lambda params, batch: batch_scores(model, params, batch)


def _largest(texts: Sequence[Encoded], batch_size: int, mesh: Mesh) -> tuple[TokenBatch, int]:
    """The largest batch, as shapes, and how many of them all texts are."""
    size = min(batch_size, len(texts))
    length, places = shapes_of(texts)
    return _batch((size, length), (size, places), mesh), -(-len(texts) // size)


def _batch(tokens: tuple[int, ...], positions: tuple[int, ...], mesh: Mesh) -> TokenBatch:
    shapes = {"tokens": (tokens, jnp.int32), "loss_mask": (tokens, jnp.float32), "positions": (positions, jnp.int32)}
    return abstract(TokenBatch(**{name: jax.ShapeDtypeStruct(*kind) for name, kind in shapes.items()}), mesh)
