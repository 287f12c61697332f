"""`jaxunlearn unlearn`: a checkpoint folder and two record files to a model that has forgotten, and the evidence."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax

from jaxunlearn import data, evals, models
from jaxunlearn.certificate import describe
from jaxunlearn.files import require_room
from jaxunlearn.methods import CATALOGUE
from jaxunlearn.models.saving import byte_size
from jaxunlearn.runs import alternatives, evidence, requests, trainable, watch
from jaxunlearn.runs import record as records
from jaxunlearn.runs.curvature import warn_if_moved
from jaxunlearn.runs.fit import mean_nll
from jaxunlearn.runs.forget import forget
from jaxunlearn.runs.inputs import reader
from jaxunlearn.runs.options import make_method, options_of
from jaxunlearn.runs.progress import Reporter
from jaxunlearn.runs.references import Stored, store, substitute
from jaxunlearn.runs.settings import Unlearn
from jaxunlearn.runs.work import Work, finished
from jaxunlearn.types import Model, Params


def unlearn(settings: Unlearn) -> Path:
    """Run it; returns the output folder.

    Raises:
        ValueError: bad input, overlap of forget and retain, an existing output folder or an unfinished run, before any
            weight is loaded.
        Interrupted: SIGTERM or Ctrl-C between two steps; `--resume` goes on.
    """
    if finished("unlearn", settings):
        return settings.out
    records.refuse_existing(settings.out)
    _check_numbers(settings)
    method = make_method(settings.method, settings.option)
    entry = CATALOGUE[settings.method]
    if settings.retain is None and method.retain:
        raise ValueError(_no_retain(settings))
    reads = reader(settings.model, settings.text)
    folder = models.resolve(settings.model)
    trainable.check(settings.trainable, models.read_config(folder).num_hidden_layers)
    require_room(settings.out, records.weight_bytes(folder))
    before = records.digest(folder)
    work = Work("unlearn", settings, digests={"model": before})
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
    forget_set, retain_set = reads.encode(gone), reads.encode(kept)
    others = alternatives.written(method, gone, kept, reads, settings.seed)
    holdout = reads.read(settings.holdout) if settings.holdout else None
    watched = watch.plan(settings.watching, reads, forget_set, retain_set, holdout)
    start = time.monotonic()
    with work, Reporter() as reporter:
        if work.resumed:
            reporter.say(work.told())
        if method.factors is not None and (moved := warn_if_moved(method.factors, before)):
            reporter.say(f"[yellow]warning:[/yellow] {moved}")
        prompts = _prompts(settings, method, forget_set, retain_set, reads, reporter)
        mesh = settings.devices.make_mesh()
        model, params = models.load(settings.model, mesh=mesh, freeze_bits=settings.trainable.freeze_bits)
        if method.alternative == "sampled":
            sample = partial(alternatives.sampled, max_length=reads.max_length, seed=settings.seed)
            asked = (model, params, forget_set, reads.tokenizer)
            answers = work.keep("answers", lambda: alternatives.plain(sample(*asked)))
            others = others._replace(forget=alternatives.encoded(answers, forget_set))
        rows = work.keep("coreset", lambda: coreset(settings, model, params, retain_set, mesh))
        if rows is not None:
            reporter.say(f"{len(rows)} of {len(retain_set)} retain records chosen by {settings.retain_coreset}")
            retain_set = [retain_set[row] for row in rows]
            if others.retain is not None:
                others = others._replace(retain=[others.retain[row] for row in rows])
        with reporter.stage("asking the original model", len(forget_set)) as stage:
            ask = partial(store, prompts=prompts, alternatives=others, top_k=settings.top_k, mesh=mesh)
            asked = (method, model, params, forget_set, retain_set)
            said = work.keep("references", lambda: ask(*asked, advance=stage.advance).plain())
            stored = Stored.of(said, others)
        stop = settings.stop_at_nll
        if stop is None and entry.ascends:
            stop = stored.unseen_nll
            if holdout:
                stop = work.keep("holdout", lambda: mean_nll(model, params, holdout, mesh=mesh))
            reporter.say(_why_stop(stop, holdout is not None))
        chosen = trainable.choose(
            settings.trainable, model, params, forget_set, retain_set, seed=settings.seed, mesh=mesh
        )
        watching = None
        if watched is not None:
            with reporter.stage("looking at the model before unlearning", 1) as stage:
                watching = watch.start(
                    watched, chosen.model, chosen.params, reads, seed=settings.seed, mesh=mesh, keep=work.keep
                )
                stage.advance()
            for rule in (*watching.goals, *watching.limits):
                reporter.say("rule: " + " and ".join(map(str, rule)))
        steps = entry.steps if settings.steps is None else settings.steps
        with reporter.stage(settings.method, steps) as stage, work.checkpoints(reporter.say) as checkpoints:
            done = forget(
                method, chosen.model, chosen.params, forget_set, retain_set, stored,
                steps=steps,
                batch_size=settings.batch_size or entry.batch_size,
                retain_size=settings.retain_size or entry.retain_size,
                stop_at_nll=stop,
                seed=settings.seed,
                mesh=mesh,
                trainable=chosen.select,
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
            reporter.say(
                f"[yellow]warning:[/yellow] {skipped} of {len(done.history)} steps were not finite and not applied"
            )
        facts = evidence.facts(method, done, stored, stop, time.monotonic() - start)
        if watching is not None:
            rules = {"goals": watching.goals, "limits": watching.limits}
            facts["watching"] = {
                **{name: [[str(c) for c in rule] for rule in found] for name, found in rules.items()},
                "kept": done.kept,
                "looks": watching.facts(),
            }
        inputs = {name: getattr(settings, name) for name in ("model", "forget", "retain", "holdout")}
        request = requests.entry(len(answered) + 1, settings.method, settings.forget, new, facts["certificate"], before)

        def content(written: Path) -> str:
            weights = records.digest(written)
            lines = [*answered, request | {"weights_after": weights}]
            return records.record(
                "unlearn", settings, inputs, digests={"model": before}, weights=weights, requests=lines, **facts
            )

        card = evidence.card(settings, len(forget_set), len(retain_set), certificate, done)
        extra = {records.FILE: content, records.CONFIG: records.configuration("unlearn", settings)}
        models.save(
            settings.out, chosen.model, done.state.whole(),
            card=card, extra=extra, max_shard_size=settings.max_shard_size,
        )  # fmt: skip
        kept = "" if done.kept == len(done.history) else f", the best after {done.kept} kept"
        reporter.say(
            f"{len(done.history)} steps, stopped by {evidence.STOPPED_BY[done.stopped]}{kept} -> {settings.out}"
        )
    return settings.out


def _no_retain(settings: Unlearn) -> str:
    """What to do about a missing retain set, by method."""
    options = {option.name for option in options_of(settings.method)}
    ways = [
        "--option factors=FOLDER with curvature that `jaxunlearn curvature` stored" if "factors" in options else None,
        "--option retain=none to leave its retain term out" if "retain" in options else None,
    ]
    others = "; or ".join(way for way in ways if way) or "another method (`jaxunlearn methods` says what each needs)"
    return f"{settings.method} needs examples of what must be kept: give --retain FILE; or {others}"


def coreset(
    settings: Unlearn, model: Model, params: Params, retain: Sequence[data.Encoded], mesh: jax.sharding.Mesh | None
) -> list[int] | None:
    """Which retain records the run sees; None for all."""
    name, size = settings.retain_coreset, settings.retain_coreset_size
    if name is None or size is None or size >= len(retain):
        return None
    return evals.coreset(name, model, params, retain, size, seed=settings.seed, mesh=mesh)


def _check_numbers(settings: Unlearn) -> None:
    byte_size(settings.max_shard_size)
    if (settings.retain_coreset is None) != (settings.retain_coreset_size is None):
        raise ValueError("--retain-coreset and --retain-coreset-size go together: give both, or neither")
    for name in ("steps", "batch_size", "retain_size", "substitutes", "top_k", "retain_coreset_size"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: give a number of at least 1")


def _prompts(settings, method, forget_set, retain_set, reads, reporter) -> data.Counterfactuals | None:
    """Counterfactual prompts, for the methods that match them and for those that need a place to stop."""
    matches = "counterfactual_top" in method.needs
    wanted = CATALOGUE[settings.method].ascends and settings.stop_at_nll is None and not settings.holdout
    if not (matches or wanted):
        return None
    found = substitute(
        forget_set, retain_set, reads.tokenizer, k=settings.substitutes, seed=settings.seed, max_length=reads.max_length
    )
    message = data.uncovered_message(forget_set, found)
    if matches and not found.covered.any():
        raise ValueError(message)
    if message and matches:
        reporter.say(f"[yellow]warning:[/yellow] {message} They are forgotten only as far as they resemble the others.")
    return found


def _why_stop(stop: float | None, from_holdout: bool) -> str:
    if stop is None:
        return (
            "[yellow]warning:[/yellow] no place to stop is known (no names to replace in the prompts): the method runs "
            "all its steps and may destroy the model; give --holdout or --stop-at-nll"
        )
    source = "holdout records" if from_holdout else "the same answers about people that do not exist"
    return f"stops when the forget loss reaches {stop:.3f} nats per token, that of {source}"
