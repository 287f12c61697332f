"""`jaxunlearn finetune`: a checkpoint folder and records to a model that knows them."""

import math
import time
from pathlib import Path

from jaxunlearn import models
from jaxunlearn.data import steps_per_epoch
from jaxunlearn.runs import record as records
from jaxunlearn.runs.fit import fit
from jaxunlearn.runs.inputs import reader
from jaxunlearn.runs.progress import Reporter
from jaxunlearn.runs.settings import Finetune


def finetune(settings: Finetune) -> Path:
    """Run it; returns the output folder.

    Raises:
        ValueError: bad input or an existing output folder, before any weight is loaded.
    """
    records.refuse_existing(settings.out)
    if settings.epochs < 1 or settings.batch_size < 1:
        raise ValueError(f"--epochs {settings.epochs}, --batch-size {settings.batch_size}: both must be at least 1")
    if settings.learning_rate is not None and not settings.learning_rate > 0:
        raise ValueError(f"--learning-rate {settings.learning_rate}: give a positive rate, or leave it out")
    encoded = reader(settings.model, settings.text).read(*settings.data)
    start = time.monotonic()
    with Reporter() as reporter:
        mesh = settings.devices.mesh()
        model, params = models.load(settings.model, mesh=mesh)
        rate = settings.learning_rate or min(3e-3, 0.2 / model.source.config.hidden_size)
        steps = settings.epochs * steps_per_epoch(len(encoded), settings.batch_size)
        reporter.say(f"{len(encoded)} records, learning rate {rate:.1e}")
        with reporter.stage("fine-tuning", steps) as stage:
            done = fit(
                model,
                params,
                encoded,
                epochs=settings.epochs,
                batch_size=settings.batch_size,
                learning_rate=rate,
                weight_decay=settings.weight_decay,
                stop_at_loss=settings.stop_at_loss,
                seed=settings.seed,
                mesh=mesh,
                advance=stage.advance,
            )
        if not math.isfinite(done.losses[-1]):
            raise ValueError(
                f"training diverged: the loss of epoch {len(done.losses)} is {done.losses[-1]}, so nothing was saved; "
                f"give a --learning-rate below {rate:.1e}"
            )
        facts = {
            "records": len(encoded),
            "learning_rate": rate,
            "steps": done.steps,
            "losses": done.losses,
            "seconds": round(time.monotonic() - start, 1),
        }
        inputs = {"model": settings.model, **{f"data_{i}": path for i, path in enumerate(settings.data)}}
        content = records.record("finetune", settings, inputs, **facts)
        models.save(settings.out, model, done.params, extra={records.FILE: content})
        reporter.say(
            f"loss {done.losses[-1]:.4f} nats per loss token after {len(done.losses)} epochs -> {settings.out}"
        )
    return settings.out
