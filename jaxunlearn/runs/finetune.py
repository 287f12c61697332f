"""`jaxunlearn finetune`: a checkpoint folder and records to a model that knows them."""

import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from jaxunlearn import models
from jaxunlearn.data import Encoded, shapes_of, steps_per_epoch
from jaxunlearn.files import require_room
from jaxunlearn.models.saving import byte_size
from jaxunlearn.runs import dry_run, requests, watch_plan
from jaxunlearn.runs import record as records
from jaxunlearn.runs.budget import Form, choose_training
from jaxunlearn.runs.fit import fit
from jaxunlearn.runs.fit_private import fit_private
from jaxunlearn.runs.headers import Checkpoint
from jaxunlearn.runs.inputs import Reader, reader, rows_of
from jaxunlearn.runs.privacy import card, check_watched, guarantee, mechanism_of
from jaxunlearn.runs.progress import Reporter
from jaxunlearn.runs.settings import Finetune
from jaxunlearn.runs.trackers import HISTORY
from jaxunlearn.runs.work import Work, finished

LOOKED_AT = ("forget", "retain", "holdout")
STOPPED_BY = {"epochs": "--epochs", "loss": "--stop-at-loss", "goal": "--stop-when", "limit": "--keep-while"}


def finetune(settings: Finetune) -> Path:
    """Run it; returns the output folder, which `--dry-run` does not make.

    Raises:
        ValueError: bad input, an existing output folder or an unfinished run, before any weight is loaded.
        Interrupted: SIGTERM or Ctrl-C while training; `--resume` goes on.
    """
    if finished("finetune", settings):
        return settings.out
    records.refuse_existing(settings.out)
    if settings.epochs < 1 or settings.batch_size < 1:
        raise ValueError(f"--epochs {settings.epochs}, --batch-size {settings.batch_size}: both must be at least 1")
    if settings.learning_rate is not None and not settings.learning_rate > 0:
        raise ValueError(f"--learning-rate {settings.learning_rate}: give a positive rate, or leave it out")
    if not settings.weight_decay >= 0:
        raise ValueError(f"--weight-decay {settings.weight_decay}: give 0 or more")
    byte_size(settings.max_shard_size, "--max-shard-size")
    if settings.memory_budget is not None:
        byte_size(settings.memory_budget, "--memory-budget")
    folder = models.resolve(settings.model, weights=not settings.dry_run)
    require_room(settings.out, records.weight_bytes(folder))
    before = records.digest(folder)
    work = Work("finetune", settings, digests={"model": before})
    answered = requests.earlier(folder, before)
    reads = reader(folder, settings.text)
    encoded = reads.read(*settings.data)
    again = requests.returning([one.record for one in encoded], answered)
    mechanism = mechanism_of(settings, len(encoded))
    if mechanism is not None and settings.pack is not None:
        raise ValueError(f"--pack {settings.pack}: a private run clips the gradient of each record; leave out --pack")
    if mechanism is not None and settings.memory_budget is not None:
        raise ValueError(
            f"--memory-budget {settings.memory_budget}: what a private run takes is ruled by --private-rows; leave "
            "out --memory-budget"
        )
    rows = rows_of(encoded, settings.pack, folder)
    clip_norm = 1.0 if settings.private.clip_norm is None else settings.private.clip_norm
    promised = None if mechanism is None else guarantee(mechanism, clip_norm, settings.private.private_delta)
    steps = settings.epochs * steps_per_epoch(len(rows), settings.batch_size)
    watched = _watched(settings, reads, encoded, steps, private=mechanism is not None)
    if settings.dry_run:
        dry_run.finetune(settings, encoded, rows, steps)
        return settings.out
    start = time.monotonic()
    with work, Reporter.of(settings) as reporter:
        mesh = settings.devices.make_mesh()
        form = Form()
        if settings.memory_budget is not None:
            asked = (settings, rows, Checkpoint.read(folder), settings.devices.make_mesh(alone=True), steps)
            form = Form(*work.keep("form", lambda: list(choose_training(*asked, reporter.say)[0])))
            reporter.say(f"within {settings.memory_budget} a device: {form}")
        model, params = models.load(settings.model, mesh=mesh, remat=form.remat, head_rows=form.head_rows)
        rate = settings.learning_rate or min(3e-3, 0.2 / model.source.config.hidden_size)
        shared = "" if settings.pack is None else f" in {len(rows)} rows"
        reporter.say(f"{len(encoded)} records{shared}, learning rate {rate:.1e}")
        if again:
            shown = ", ".join(again[:8])
            reporter.warn(f"this teaches again what was to be forgotten: {shown}")
        if promised is not None:
            reporter.say(
                f"private: epsilon {promised['epsilon']:.4g} at delta {promised['delta']:.4g}, noise multiplier "
                f"{promised['noise_multiplier']:.4g}, clipping norm {clip_norm:.4g}"
            )
        if work.resumed:
            reporter.say(work.told())
        look = partial(watch_plan.start, watched, model, params, reads, mesh=mesh)
        watching = look(seed=settings.seed, keep=work.keep, reporter=reporter)
        common = {"learning_rate": rate, "weight_decay": settings.weight_decay, "mesh": mesh, "watch": watching}
        staged = reporter.stage("fine-tuning", steps, tokens=settings.batch_size * shapes_of(rows)[0])
        with staged as stage, work.checkpoints(reporter.say) as checkpoints:
            if mechanism is None:
                done = fit(
                    model,
                    params,
                    rows,
                    epochs=settings.epochs,
                    batch_size=settings.batch_size,
                    stop_at_loss=0.02 if settings.stop_at_loss is None else settings.stop_at_loss,
                    seed=settings.seed,
                    microbatch=form.microbatch,
                    advance=stage.advance,
                    checkpoints=checkpoints,
                    **common,
                )
            else:
                done = fit_private(
                    model,
                    params,
                    encoded,
                    mechanism,
                    clip_norm=clip_norm,
                    microbatch=8 if settings.private.private_rows is None else settings.private.private_rows,
                    report_every=steps // settings.epochs,
                    advance=stage.advance,
                    checkpoints=checkpoints,
                    **common,
                )
        if not math.isfinite(done.losses[-1]) and done.kept < done.steps:
            reporter.warn("training diverged after the best look")
        elif not math.isfinite(done.losses[-1]):
            work.remove()
            raise ValueError(
                f"training diverged: the loss of epoch {len(done.losses)} is {done.losses[-1]}, so nothing was saved; "
                f"give a --learning-rate below {rate:.1e}"
            )
        losses = [loss if math.isfinite(loss) else None for loss in done.losses]
        facts = {
            "records": len(encoded),
            "learning_rate": rate,
            "steps": done.steps,
            "losses": losses,
            "stopped": done.stopped,
            "seconds": round(time.monotonic() - start, 1),
            **({} if promised is None else {"privacy": promised}),
            **({} if settings.memory_budget is None else {"form": form._asdict()}),
            **({} if watching is None else {"watching": watching.record(done.kept)}),
        }
        looked_at = {name: getattr(settings.watching, name) for name in LOOKED_AT}
        inputs = {"model": settings.model, **{f"data_{i}": path for i, path in enumerate(settings.data)}, **looked_at}

        def content(written: Path) -> str:
            ledger = {"weights": records.digest(written), "requests": answered} if answered else {}
            return records.record("finetune", settings, inputs, digests={"model": before}, **facts, **ledger)

        text = None if promised is None else card(Path(settings.model).name, promised, records.FILE, done.kept)
        extra = {
            records.FILE: content,
            records.CONFIG: records.configuration("finetune", settings),
            HISTORY: records.json_lines({"epoch": number, "loss": loss} for number, loss in enumerate(losses, 1)),
        }
        models.save(settings.out, model, done.params, card=text, extra=extra, max_shard_size=settings.max_shard_size)
        told = f"loss {done.losses[-1]:.4f} nats per loss token after {len(done.losses)} epochs"
        kept = "" if done.kept == done.steps else f", the best after {done.kept} of {done.steps} steps kept"
        reporter.say(f"{told}, stopped by {STOPPED_BY[done.stopped]}{kept} -> {settings.out}")
    return settings.out


def _watched(
    settings: Finetune, reads: Reader, encoded: Sequence[Encoded], steps: int, *, private: bool
) -> watch_plan.Plan | None:
    """What is looked at while training, and by which rules it ends."""
    asked = settings.watching
    sets = {name: reads.read(source) if (source := getattr(asked, name)) else None for name in LOOKED_AT}
    if private:
        trained = [one.record for one in encoded]
        check_watched(settings, trained, [one.record for part in sets.values() for one in part or ()])
    # Rules of a private run must not be measured on its records; looks alone are told to whoever holds these anyway.
    by_rules = bool(asked.stop_when or asked.keep_while)
    retain = sets["retain"] or (() if private and by_rules else encoded)
    found = watch_plan.plan(asked, reads, sets["forget"] or (), retain, sets["holdout"], steps=steps)
    unused = next((name for name, part in sets.items() if part and found is None), None)
    if unused is not None:
        raise ValueError(
            f"--{unused} {getattr(asked, unused)} is only looked at while training: give --evaluate-every STEPS, "
            "--stop-when or --keep-while with it, or leave it out"
        )
    return found
