"""`jaxunlearn unlearn`: a checkpoint folder and two record files to a model that has forgotten, and the evidence."""

import time
from functools import partial
from pathlib import Path

from jaxunlearn import data, models
from jaxunlearn.certificate import describe
from jaxunlearn.runs import alternatives, budget, coresets, dry_run, evidence, requests, trainable, watch_plan
from jaxunlearn.runs import record as records
from jaxunlearn.runs.budget import Form
from jaxunlearn.runs.curvature import warn_if_moved
from jaxunlearn.runs.fit import mean_nll
from jaxunlearn.runs.forget import forget
from jaxunlearn.runs.forget_streamed import forget_streamed
from jaxunlearn.runs.prepared import batch_sizes, matches, prepare, prompts_of
from jaxunlearn.runs.progress import Reporter
from jaxunlearn.runs.references import Stored, asked_of, store
from jaxunlearn.runs.settings import Unlearn
from jaxunlearn.runs.trackers import HISTORY
from jaxunlearn.runs.work import Work, finished
from jaxunlearn.types import Params


def unlearn(settings: Unlearn) -> Path:
    """Run it; returns the output folder, which `--dry-run` does not make.

    Raises:
        ValueError: bad input, overlap of forget and retain, an existing output folder or an unfinished run, before any
            weight is loaded.
        Interrupted: SIGTERM or Ctrl-C between two steps; `--resume` goes on.
    """
    if finished("unlearn", settings):
        return settings.out
    ready = prepare(settings)
    method, entry, reads, before, answered = ready.method, ready.entry, ready.reads, ready.before, ready.answered
    forget_set, retain_set, holdout, others = ready.forget, ready.retain, ready.holdout, ready.others
    work = Work("unlearn", settings, digests={"model": before})
    if settings.dry_run:
        dry_run.unlearn(settings, ready)
        return settings.out
    start = time.monotonic()
    with work, Reporter.of(settings) as reporter:
        if work.resumed:
            reporter.say(work.told())
        held_to = before if settings.anchor is None else records.digest(models.resolve(settings.anchor))
        if method.factors is not None and (moved := warn_if_moved(method.factors, held_to)):
            reporter.warn(moved)
        prompts = prompts_of(settings, ready, reporter)
        mesh = settings.devices.make_mesh()
        form = Form()
        if settings.memory_budget is not None:
            alone = settings.devices.make_mesh(alone=True)
            form = Form(*work.keep("form", lambda: list(budget.choose(settings, ready, alone, reporter.say)[0])))
            reporter.say(f"within {settings.memory_budget} a device: {form}")
            method = budget.method_in(settings, form)
        model, params = models.load(
            settings.model,
            mesh=mesh,
            remat=form.remat,
            head_rows=form.head_rows,
            freeze_bits=settings.trainable.freeze_bits,
        )
        few = coresets.Records(forget_set, retain_set, others, prompts)
        for half in coresets.HALVES:
            find = partial(coresets.choose, settings, half, model, params, few, mesh)
            rows = work.keep(f"coreset-{half}", find)
            if rows is not None:
                by = getattr(settings, f"{half}_coreset")
                reporter.say(f"{len(rows)} of {len(getattr(few, half))} {half} records chosen by {by}")
                few = coresets.taken(few, half, rows)
        forget_set, retain_set, others, prompts = few
        if method.alternative == "sampled":
            sample = partial(alternatives.sampled, max_length=reads.max_length, seed=settings.seed)
            asked = (model, params, forget_set, reads.tokenizer)
            answers = work.keep("answers", lambda: alternatives.plain(sample(*asked)))
            others = others._replace(forget=alternatives.encoded(answers, forget_set))
        unseen, ascends = None, entry.ascends and settings.stop_at_nll is None and not settings.stream_retain
        if holdout and (ascends or matches(method)):
            unseen = work.keep("holdout", lambda: mean_nll(model, params, holdout, mesh=mesh))
        broken = None
        if unseen is not None and prompts is not None and settings.corrupt > 0:
            broken = data.corrupted(prompts, reads.tokenizer, rate=settings.corrupt, seed=settings.seed)
        pushed = unseen is not None or settings.generic_alpha is not None
        passes = 0 if prompts is None else 1 + (broken is not None) + pushed
        most = asked_of(method, forget_set, retain_set, others) + passes * len(forget_set)
        with reporter.stage("asking the original model", max(1, most)) as stage:
            how = {"top_k": settings.top_k, "alpha": settings.generic_alpha, "unseen_nll": unseen, "mesh": mesh}
            ask = partial(store, prompts=prompts, corrupted=broken, alternatives=others, **how)
            asked = (method, model, params, forget_set, retain_set)
            said = work.keep("references", lambda: ask(*asked, advance=stage.advance).plain())
            stored = Stored.of(said, others)
        if matches(method):
            _tell_answers(reporter, stored, unseen)
        stop = settings.stop_at_nll
        if ascends:
            stop = stored.unseen_nll if unseen is None else unseen
            _tell_stop(reporter, stop, holdout is not None)
        chosen = trainable.choose(
            settings.trainable, model, params, forget_set, retain_set, seed=settings.seed, mesh=mesh
        )

        def anchor() -> Params:
            loaded = models.load(settings.anchor, mesh=mesh)
            return trainable.choose(settings.trainable, *loaded, forget_set, retain_set, seed=0, mesh=mesh).params

        look = partial(watch_plan.start, ready.watched, chosen.model, chosen.params, reads, mesh=mesh)
        watching = look(seed=settings.seed, keep=work.keep, reporter=reporter)
        steps = entry.steps if settings.steps is None else settings.steps
        sizes = batch_sizes(settings, len(forget_set), len(retain_set))
        if settings.stream_retain:
            how = {"mesh": mesh, "reporter": reporter, "work": work}
            done = forget_streamed(budget.in_form(settings, form), chosen, forget_set, retain_set, sizes, **how)
        else:
            sets = zip(sizes, (forget_set, retain_set), strict=True)
            tokens = sum(size * data.shapes_of(some)[0] for size, some in sets)
            staged = reporter.stage(settings.method, steps, tokens=tokens)
            with staged as stage, work.checkpoints(reporter.say) as checkpoints:
                done = forget(
                    method, chosen.model, chosen.params, forget_set, retain_set, stored,
                    steps=steps,
                    batch_size=settings.batch_size or entry.batch_size,
                    retain_size=settings.retain_size or entry.retain_size,
                    stop_at_nll=stop,
                    seed=settings.seed,
                    mesh=mesh,
                    trainable=chosen.select,
                    anchor=None if settings.anchor is None else anchor,
                    watch=watching,
                    advance=stage.advance,
                    checkpoints=checkpoints,
                )  # fmt: skip
        certificate = describe(done.info.certificate, done.info.curvature, done.info.noise)
        reporter.say(certificate)
        skipped = sum(not step["applied"] for step in done.history)
        if skipped == len(done.history):
            work.remove()
            raise ValueError(
                f"no step of {settings.method} was finite, so the model is unchanged and nothing was saved; raise the "
                "damping, lower the step or learning rate, or check the model for NaN weights"
            )
        if all(step["update_norm"] == 0.0 for step in done.history):
            work.remove()
            raise ValueError(
                f"{settings.method} changed nothing in {len(done.history)} steps, so nothing was saved; look at the "
                f"options that choose what is changed (`jaxunlearn methods {settings.method}`)"
            )
        if skipped:
            reporter.warn(f"{skipped} of {len(done.history)} steps were not finite and not applied")
        facts = evidence.facts(method, done, stored, stop, time.monotonic() - start)
        if watching is not None:
            facts["watching"] = watching.record(done.kept)
        if settings.memory_budget is not None:
            facts["form"] = form._asdict()
        inputs = {name: getattr(settings, name) for name in ("model", "forget", "retain", "holdout", "anchor")}
        number = len(answered) + 1
        request = requests.entry(number, settings.method, settings.forget, ready.new, facts["certificate"], before)

        def content(written: Path) -> str:
            weights = records.digest(written)
            lines = [*answered, request | {"weights_after": weights}]
            return records.record(
                "unlearn", settings, inputs, digests={"model": before}, weights=weights, requests=lines, **facts
            )

        card = evidence.card(settings, len(ready.forget), len(retain_set), certificate, done)
        extra = {
            records.FILE: content,
            records.CONFIG: records.configuration("unlearn", settings),
            HISTORY: records.json_lines({"step": number, **step} for number, step in enumerate(done.history, 1)),
        }
        models.save(
            settings.out, chosen.model, done.state.whole(),
            card=card, extra=extra, max_shard_size=settings.max_shard_size,
        )  # fmt: skip
        kept = "" if done.kept == len(done.history) else f", the best after {done.kept} kept"
        reporter.say(
            f"{len(done.history)} steps, stopped by {evidence.STOPPED_BY[done.stopped]}{kept} -> {settings.out}"
        )
    return settings.out


def _tell_answers(reporter: Reporter, stored: Stored, unseen: float | None) -> None:
    """How surprising the forgotten answers are under those that will be matched."""
    where = " of corrupted prompts" if stored.corrupted else ""
    pushed = f", pushed away from the entity's own (alpha {stored.alpha:.3g})," if stored.alpha else ""
    loss = f"{stored.unseen_nll:.3f} nats per token"
    asks = "; --holdout would say whether that is enough" if unseen is None else ""
    reporter.say(f"under the counterfactual answers{where}{pushed} the forgotten ones lose {loss}{asks}")
    if unseen is not None and stored.unseen_nll < 0.95 * unseen:
        reporter.warn(
            f"holdout records lose {unseen:.3f}: what is matched still knows the forget records, which give themselves "
            "away whoever is named; a larger --generic-alpha pushes further, and a method that ascends needs none"
        )


def _tell_stop(reporter: Reporter, stop: float | None, from_holdout: bool) -> None:
    """Where a method that ascends will stop, and why there."""
    if stop is None:
        reporter.warn(
            "no place to stop is known (no names to replace in the prompts): the method runs all its steps and may "
            "destroy the model; give --holdout or --stop-at-nll"
        )
        return
    source = "holdout records" if from_holdout else "the same answers about people that do not exist"
    reporter.say(f"stops when the forget loss reaches {stop:.3f} nats per token, that of {source}")
