"""`--dry-run`: what a command would do with these inputs on this machine, and what it would take.

Everything that is checked before a run begins is checked, the headers of the weights too. Then the programs that cost
most are compiled for the devices that are here, from shapes, as `jaxunlearn plan` does for devices that are not
(`runs.needs`). No weight is read, and nothing is written.

Here is what makes a model or looks at its curvature. Commands that ask one are in `dry_run_scoring`, those that bring
their own in `dry_run_own`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jax
from jax.sharding import Mesh

from jaxunlearn import losses
from jaxunlearn.curvature import GaussNewton, Hessian
from jaxunlearn.curvature.kronecker import Settings, kronecker_factors
from jaxunlearn.data import Encoded, PackedRow, batches, steps_per_epoch
from jaxunlearn.runs import coresets, streamed_work
from jaxunlearn.runs.budget import (
    Form,
    choose,
    choose_training,
    in_form,
    kept_beside,
    method_in,
    problem_for,
    training_step,
)
from jaxunlearn.runs.facts import size_text
from jaxunlearn.runs.headers import Checkpoint
from jaxunlearn.runs.needs import TOO_LARGE, Work, disk, needs, size_of
from jaxunlearn.runs.options import options_of
from jaxunlearn.runs.prepared import Prepared, batch_sizes, prompts_of
from jaxunlearn.runs.programs import PROGRAMS, Program, abstract, model_of, state_of
from jaxunlearn.runs.progress import Reporter
from jaxunlearn.runs.references import asked_of
from jaxunlearn.runs.settings import Finetune, Spectrum, StoreCurvature, Unlearn
from jaxunlearn.runs.spectrum_work import work_of
from jaxunlearn.types import Batch


def unlearn(settings: Unlearn, ready: Prepared) -> None:
    """Tells what `jaxunlearn unlearn` would do."""
    with told("unlearn", settings.out) as (reporter, rows):
        found = Checkpoint.read(ready.folder)
        rows["model"] = found.told()
        rows |= _sets(forget=ready.forget, retain=ready.retain, holdout=ready.holdout)
        if ready.answered:
            rows["ledger"] = f"request {len(ready.answered) + 1} of this model"
        prompts = prompts_of(settings, ready, reporter)
        steps = ready.entry.steps if settings.steps is None else settings.steps
        sizes = batch_sizes(settings, len(ready.forget), len(ready.retain))
        mesh = settings.devices.make_mesh(alone=True)
        form = Form()
        if settings.memory_budget is not None:
            form, _ = choose(settings, ready, mesh, reporter.say)
            rows["within"] = f"{settings.memory_budget} a device: {form}"
        problem = problem_for(settings, ready, found, mesh, form)
        width = problem.batch.forget.tokens.shape[1]
        if settings.stream_retain:
            _, kept = coresets.sizes(settings, len(ready.forget), len(ready.retain))
            rows["method"] = streamed_work.told(settings, problem, kept)
            work = [streamed_work.work_of(in_form(settings, form), problem, kept)]
            state = streamed_work.saved(settings, problem)
        else:
            rows["method"] = (
                f"{settings.method}: at most {steps} steps of {sizes[0]} forget"
                + (f" and {sizes[1]} retain" if problem.batch.retain is not None else "")
                + f" records, {width} tokens long"
            )
            rows["stops"] = _stops(settings, ready, prompts is not None, steps)
            loops = _products(settings)
            step = PROGRAMS["step"](problem, method_in(settings, form), loops)
            held = kept_beside(settings.watching, problem.params)
            asking = _asking(ready, 0 if prompts is None else settings.substitutes, found, mesh)
            work = [asking, Work("a step", step, steps, loops, held)]
            state = state_of(problem, ready.method)._replace(frozen=None)
        rows |= needs(work, mesh, reporter)
        left = f"up to {size_text(size_of(state))} for checkpoints beside it" if _checkpoints(settings) else ""
        rows["disk"] = disk(settings.out, found.size, left)


def finetune(
    settings: Finetune, records: Sequence[Encoded], rows_of_them: Sequence[Encoded] | Sequence[PackedRow], steps: int
) -> None:
    """Tells what `jaxunlearn finetune` would do in `steps` steps."""
    with told("finetune", settings.out) as (reporter, rows):
        found = Checkpoint.read(settings.model)
        mesh = settings.devices.make_mesh(alone=True)
        asked, form = (settings, rows_of_them, found, mesh, steps), Form()
        rows["model"] = found.told()
        rows |= _sets(data=records)
        if settings.memory_budget is not None:
            form, _ = choose_training(*asked, reporter.say)
            rows["within"] = f"{settings.memory_budget} a device: {form}"
        step = training_step(*asked, form)
        state, batch = step[1]
        shared = "" if settings.pack is None else f", {len(rows_of_them)} rows of several records"
        rows["training"] = (
            f"at most {settings.epochs} epochs, {steps} steps of {settings.batch_size}, {batch.tokens.shape[1]} tokens "
            f"long{shared}"
        )
        if rules := (*settings.watching.stop_when, *settings.watching.keep_while):
            rows["stops"] = f"by {' or '.join(rules)}, or after {steps} steps"
        if settings.private.private_epsilon is None and settings.private.noise_multiplier is None:
            held = kept_beside(settings.watching, state[0])
            rows |= needs([Work("a step", step, steps, held=held)], mesh, reporter)
        else:
            at_once = 8 if settings.private.private_rows is None else settings.private.private_rows
            least = size_of(state) + at_once * found.parameters * 4
            rows["memory"] = (
                f"at least {size_text(least)} on all devices: weights, moments and {at_once} gradients in f32"
            )
        rows["disk"] = disk(settings.out, found.size, f"up to {size_text(size_of(state))} for checkpoints beside it")


def store_curvature(settings: StoreCurvature, records: Sequence[Encoded]) -> None:
    """Tells what `jaxunlearn curvature` would do."""
    with told("curvature", settings.out) as (reporter, rows):
        found = Checkpoint.read(settings.model)
        mesh = settings.devices.make_mesh(alone=True)
        model, params = model_of(found.config, mesh, dtypes=found.dtypes)
        rows["model"] = found.told()
        rows |= _sets(data=records)
        size = min(settings.batch_size, len(records))
        batch = abstract(next(batches(records, size, shuffle=False)).batch, mesh)
        if settings.kind == "gradients":
            count = min(settings.samples, len(records))
            whole = count * 4 * found.parameters
            rows["keeps"] = f"gradients of {count} records, {size_text(whole)}"
            rows["disk"] = disk(settings.out, whole)
            return
        recipe = Settings(labels="sampled", samples=settings.draws, only=settings.only or ("*",))
        take = (lambda p, b: kronecker_factors(model, p, b, recipe), (params, batch), ())
        kept = size_of(jax.eval_shape(take[0], params, batch))
        passes = {"ekfac": 2, "kfac": 1}[settings.kind]
        rows["keeps"] = f"{settings.kind}, about {size_text(kept)}, from {passes} passes over the records"
        rows |= needs([Work("a batch", take, passes * steps_per_epoch(len(records), size))], mesh, reporter)
        rows["disk"] = disk(settings.out, kept)


def spectrum(settings: Spectrum, asked: Unlearn, ready: Prepared, curvature: GaussNewton | Hessian) -> None:
    """Tells what `jaxunlearn spectrum` would do; `asked` is the run of `unlearn` whose first step it takes."""
    with told("spectrum", settings.out) as (reporter, rows):
        found = Checkpoint.read(ready.folder)
        rows["model"] = found.told()
        rows |= _sets(forget=ready.forget, retain=ready.retain)
        sizes = batch_sizes(asked, len(ready.forget), len(ready.retain))
        mesh = settings.devices.make_mesh(alone=True)
        problem = problem_for(asked, ready, found, mesh)
        rows["batch"] = (
            f"{sizes[0]} forget and {sizes[1]} retain records, {problem.batch.forget.tokens.shape[1]} tokens long"
        )
        many = settings.lanczos_steps
        rows["products"] = (
            f"{settings.probes} probes of {many} on retain and on forget each, {many} for the damping path and its "
            f"{settings.tries} trials; one step of {asked.method}"
        )
        rows |= needs(
            work_of(settings, problem, ready.method, curvature, curvature.microbatch, _products(asked)), mesh, reporter
        )
        # Four pictures, two densities, and of every node three numbers as JSON.
        rows["disk"] = disk(settings.out, 600_000 + 2 * settings.probes * many * 66)


@contextmanager
def told(command: str, out: Path | None) -> Iterator[tuple[Reporter, dict[str, str]]]:
    """Rows to fill in, shown at the end."""
    with Reporter() as reporter:
        rows: dict[str, str] = {}
        yield reporter, rows
        rows["result"] = f"{out}, which is not there yet" if out is not None else "shown, and written nowhere: no --out"
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for name, text in rows.items():
            shown = Text(text)
            shown.highlight_words([TOO_LARGE], "red")
            table.add_row(Text(name, "bold"), shown)
        reporter.say(f"A dry run of `jaxunlearn {command}`: no weight was read, nothing was written.")
        reporter.console.print(table, highlight=False)


def _asking(ready: Prepared, substitutes: int, found: Checkpoint, mesh: Mesh) -> Work:
    """What the original model is asked before the first step, in forward passes over rows like those to forget."""
    asked = asked_of(ready.method, ready.forget, ready.retain, ready.others) + substitutes * len(ready.forget)
    batch = next(batches(ready.forget, min(16, len(ready.forget)))).batch
    return Work("asking the original model", _forward(found, batch, mesh), -(-asked // len(batch.tokens)))


def _forward(found: Checkpoint, batch: Batch, mesh: Mesh) -> Program:
    model, params = model_of(found.config, mesh, dtypes=found.dtypes)
    return lambda p, b: losses.nll(model, p, b), (params, abstract(batch, mesh)), ()


def _products(settings: Unlearn) -> int:
    """Most products that a solver of the method spends, where it has one."""
    names = ("cg_steps", "lanczos_steps")
    given = dict(option.split("=", 1) for option in settings.option)
    known = {option.name: option.default for option in options_of(settings.method)} | given
    return max((int(known[name]) for name in names if name in known), default=1)


def _stops(settings: Unlearn, ready: Prepared, prompts: bool, steps: int) -> str:
    rules = (*settings.watching.stop_when, *settings.watching.keep_while)
    found = [f"by {' or '.join(rules)}"] if rules else []
    if settings.stop_at_nll is not None:
        found.append(f"at a forget loss of {settings.stop_at_nll} nats per token")
    elif ready.entry.ascends and ready.holdout:
        found.append("at the forget loss that holdout records have")
    elif ready.entry.ascends and prompts:
        found.append("at the forget loss of the same answers about people that do not exist")
    elif ready.entry.ascends:
        found.append("nowhere else: no place to stop is known; give --holdout or --stop-at-nll")
    return ", or ".join([*found, f"after {steps} steps"])


def _checkpoints(settings: Unlearn) -> bool:
    return bool(settings.checkpoints.checkpoint_every or settings.checkpoints.checkpoint_minutes)


def _sets(**sets: Sequence[Encoded] | None) -> dict[str, str]:
    return {name: amount(encoded) for name, encoded in sets.items() if encoded}


def amount(encoded: Sequence[Encoded]) -> str:
    """How much that is, in words."""
    tokens = sum(len(one.tokens) for one in encoded)
    scored = sum(int((one.loss_mask > 0).sum()) for one in encoded)
    return f"{len(encoded):,} records, {tokens:,} tokens, {scored:,} of them to be predicted"
