"""`--dry-run` of the commands that bring their own model: `bench` and `demo`; see `runs.dry_run` for what it is.

A product that cannot be made of a model is a row of `bench` that says so; here too, where it is found by tracing.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn import models
from jaxunlearn.data import Encoded, batches, pair, shapes_of
from jaxunlearn.evals.score import batch_scores
from jaxunlearn.methods import Method
from jaxunlearn.runs.dry_run import amount, told
from jaxunlearn.runs.facts import size_text
from jaxunlearn.runs.fit import initial, program
from jaxunlearn.runs.needs import Work, disk, needs, size_of
from jaxunlearn.runs.programs import PROGRAMS, Problem, abstract, beside, model_of, problem_of, vector_of
from jaxunlearn.runs.settings import Bench
from jaxunlearn.runs.throughput import first_line, products_of
from jaxunlearn.sharding import make_mesh
from jaxunlearn.types import TokenBatch, UnlearnBatch

WITHOUT_CHECKPOINTS = 1_500_000
"""Bytes of the demo's report, numbers, picture and tokenizers, rounded up from what it wrote."""
ONCE = "147 s of processor time, and 1.8 GiB for the process, on 2 cores of an x86-64 processor (2026-11-30)"
"""What the whole demo took: of so small a model the compiler takes most, which no count of FLOPs shows."""
SCORED = 128
"""Records of the demo that are scored at once."""


class Lesson(NamedTuple):
    """What the demo is going to do.

    Attributes:
        config: of its decoder.
        forget, retain, holdout: its records.
        trainings: model to steps of training.
        sizes: records of a step of training; of forget and of retain records of a step of unlearning.
        methods: name to recipe, its most steps, and products of a solve.
        files: rows that are written, by the name of the file.
    """

    config: models.DecoderConfig
    forget: Sequence[Encoded]
    retain: Sequence[Encoded]
    holdout: Sequence[Encoded]
    trainings: Mapping[str, int]
    sizes: tuple[int, int, int]
    methods: Mapping[str, tuple[Method, int, int]]
    files: Mapping[str, Sequence[Mapping[str, Any]]]


def bench(settings: Bench, config: models.DecoderConfig) -> None:
    """Tells what `jaxunlearn bench` would do with a decoder of this form."""
    with told("bench", settings.out) as (reporter, rows):
        mesh = settings.devices.make_mesh(alone=True)
        model, params = model_of(
            config, mesh, dtypes=settings.dtype, attention=settings.attention, remat=settings.remat
        )
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        named = f"{settings.size} of random weights" if settings.model is None else str(settings.model)
        rows["model"] = f"{named}: {count:,} parameters in {settings.dtype}, {size_text(size_of(params))}"
        shape = settings.batch_size, settings.length
        batch = TokenBatch(jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, jnp.float32))
        batch = abstract(batch, mesh)
        rows["batch"] = f"{shape[0]} x {shape[1]} random tokens"
        vector = vector_of(Problem(model, params, None, UnlearnBatch(batch, None), mesh))
        work, products = [], products_of(settings.curvature)
        for name, one in products.items():
            of_model = (partial(one.function, model), (params, batch, vector), ())
            try:
                jax.eval_shape(*of_model[:1], *of_model[1])
            except Exception as error:  # whatever it is, a run shows it too
                rows[name] = f"fails: {first_line(error)}"
            else:
                work.append(Work(name, of_model, 1 + settings.rounds))
        rows["products"] = (
            f"{'; '.join(one.name for one in work)}: each once, then {settings.rounds} times by the clock"
        )
        rows |= needs(work, mesh, reporter)
        if settings.out is not None:
            rows["disk"] = disk(settings.out, 2000 + len(products) * (300 + 25 * settings.rounds))


def demo(out: Path, lesson: Lesson) -> None:
    """Tells what `jaxunlearn demo` would do, in the folder `out`."""
    with told("demo", out) as (reporter, rows):
        mesh = make_mesh(devices=jax.local_devices()[:1])
        model, params = model_of(lesson.config, mesh, dtypes="float32")
        size = size_of(params)
        everything = [*lesson.forget, *lesson.retain]
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        rows["model"] = f"of its own, {count:,} parameters in float32, {size_text(size)}"
        rows |= {name: amount(getattr(lesson, name)) for name in ("forget", "retain", "holdout")}
        many, forget, retain = lesson.sizes
        rows["training"] = ", ".join(f"{name} {steps} steps" for name, steps in lesson.trainings.items())
        rows["training"] += f", of {many} records"
        rows["methods"] = ", ".join(f"{name} at most {steps} steps" for name, (_, steps, _) in lesson.methods.items())
        rows["methods"] += f", of {forget} forget and {retain} retain records"

        total = max(lesson.trainings.values())
        rule = (1e-3, 0.0, min(10, total - 1), total)
        state = beside(jax.eval_shape(lambda p: initial(p, *rule), params), params, mesh)
        length, places = shapes_of(everything)
        batch = abstract(next(batches(everything, many, shape=(length, places))).batch, mesh)
        work = [
            Work(
                "a step of training",
                (program(model, *rule, None), (state, batch), (0,)),
                sum(lesson.trainings.values()),
            )
        ]
        first = next(pair(lesson.forget, lesson.retain, forget, retain_size=retain)).batch
        for name, (method, steps, products) in lesson.methods.items():
            problem = problem_of(lesson.config, method, mesh, first, dtypes="float32", top_k=128)
            work.append(Work(f"a step of {name}", PROGRAMS["step"](problem, method, products), steps, products))
        scored = [*everything, *lesson.holdout]
        batch = abstract(next(batches(scored, SCORED, shuffle=False)).batch, mesh)
        passes = (2 + len(lesson.methods)) * -(-len(scored) // SCORED)
        work.append(Work("scoring a batch", (partial(batch_scores, model), (params, batch), ()), passes))
        rows |= needs(work, mesh, reporter)
        rows["once took"] = f"{ONCE}, most of it for compiling"
        records = sum(
            len(json.dumps(row, ensure_ascii=False).encode()) + 1 for part in lesson.files.values() for row in part
        )
        rows["disk"] = disk(out, 3 * size + records + WITHOUT_CHECKPOINTS)
        rows["files"] = "report.html, table.md, plane.png, results.json, history.jsonl, jaxunlearn.yaml; "
        rows["files"] += f"data/{{{','.join(lesson.files)}}}.jsonl; checkpoints before, retrained and forgotten"
