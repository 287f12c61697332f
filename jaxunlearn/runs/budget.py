"""`--memory-budget`: the fastest form of a step of unlearning or training that fits, found by compiling.

Memory is traded for time in three ways that change results by rounding only:

    remat        what a block keeps for its backward pass: the outputs of its projections ("dots"), or nothing but its
                 input ("full"), which computes every block twice
    microbatch   examples at a time in gradients, curvature products, trust region and certificate. A product that is
                 cut linearises the model anew for each part instead of once
    head_rows    rows of logits that losses and curvature hold at once

They are tried in this order, each step compiled from shapes for the devices that are here (`runs.needs`), until its
arguments, results and temporaries are within the budget. No weight is read for it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

import jax
from jax.sharding import Mesh

from jaxunlearn import curvature
from jaxunlearn.data import Encoded, PackedRow, batches, pair
from jaxunlearn.methods import Method
from jaxunlearn.models.functional import HEAD_ROWS
from jaxunlearn.models.saving import byte_size
from jaxunlearn.runs import streamed_work
from jaxunlearn.runs.alternatives import Alternatives
from jaxunlearn.runs.facts import device_bytes, size_text
from jaxunlearn.runs.fit import initial, program
from jaxunlearn.runs.headers import Checkpoint
from jaxunlearn.runs.needs import quickly
from jaxunlearn.runs.options import make_method, options_of
from jaxunlearn.runs.plan import traced_of
from jaxunlearn.runs.prepared import Prepared, batch_sizes
from jaxunlearn.runs.programs import PROGRAMS, Problem, Program, abstract, beside, model_of, problem_of
from jaxunlearn.runs.references import Stored
from jaxunlearn.runs.settings import Finetune, Unlearn, Watching
from jaxunlearn.runs.trainable import lora_of
from jaxunlearn.types import Params, Reference

FEW_ROWS = 64
Choice = TypeVar("Choice")


class Form(NamedTuple):
    """How a step is computed; see the module.

    Attributes:
        remat, head_rows: as `models.load` takes them.
        microbatch: examples at a time; None for whatever the method's options say.
    """

    remat: str = "dots"
    microbatch: int | None = None
    head_rows: int = HEAD_ROWS

    def __str__(self) -> str:
        cut = "whole batches" if self.microbatch is None else f"{self.microbatch} examples at a time"
        return f"remat {self.remat}, {cut}, {self.head_rows} rows of logits"


def in_form(settings: Unlearn, form: Form) -> Unlearn:
    """The settings of a run whose method's option `microbatch`, if it has one, is that of the form."""
    if form.microbatch is None or all(option.name != "microbatch" for option in options_of(settings.method)):
        return settings
    return replace(settings, option=(*settings.option, f"microbatch={form.microbatch}"))


def method_in(settings: Unlearn, form: Form) -> Method:
    """The method of a run, in that form."""
    method = make_method(settings.method, in_form(settings, form).option)
    return method if form.microbatch is None else method._replace(objective=method.objective.cut(form.microbatch))


def problem_for(settings: Unlearn, ready: Prepared, found: Checkpoint, mesh: Mesh, form: Form | None = None) -> Problem:
    """Model and first batch of a run as shapes on `mesh`."""
    form, method = form or Form(), ready.method
    forget, retain = batch_sizes(settings, len(ready.forget), len(ready.retain))
    others = ready.others
    if method.alternative == "sampled":  # answers that are not there yet, about as long as the true ones
        others = Alternatives(ready.forget, others.retain)
    one = next(pair(ready.forget, ready.retain, forget, retain_size=retain))
    batch = Stored(Reference(), Reference(), None, None, others).complete(one)
    chosen = settings.trainable
    problem = problem_of(
        found.config, method, mesh, batch,
        dtypes=found.dtypes,
        lora=lora_of(chosen) if chosen.lora_rank else None,
        train_last=None if chosen.train_last == found.config.num_hidden_layers else chosen.train_last,
        top_k=settings.top_k,
        remat=form.remat,
        head_rows=form.head_rows,
        freeze_bits=chosen.freeze_bits,
    )  # fmt: skip
    if method.factors is None:
        return problem
    store = curvature.load(method.factors, problem.params)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), store)
    return problem._replace(batch=problem.batch._replace(curvature=shapes))


def choose(settings: Unlearn, ready: Prepared, mesh: Mesh, say: Callable[[str], object]) -> tuple[Form, int]:
    """The fastest form of a step within `settings.memory_budget`, and its bytes on a device.

    With `--stream-retain` the step is the product of one batch and what the solver holds beside it.

    Args:
        settings, ready: the run.
        mesh: of one device or more.
        say: told of every form that is tried.

    Raises:
        ValueError: when the leanest form takes more.
    """
    budget, found = byte_size(settings.memory_budget), Checkpoint.read(ready.folder)

    def size(form: Form) -> int:
        problem = problem_for(settings, ready, found, mesh, form)
        if settings.stream_retain:
            product = streamed_work.work_of(in_form(settings, form), problem, len(ready.retain))
            total = bytes_of(product.program) + product.held
        else:
            total = bytes_of(PROGRAMS["step"](problem, method_in(settings, form), 1))
            total += kept_beside(settings.watching, problem.params)
        say(f"a step with {form}: {size_text(total)} a device")
        return total

    forms = forms_of(*batch_sizes(settings, len(ready.forget), len(ready.retain)), _rows_apart(mesh))
    smaller = "smaller batches (--batch-size, --retain-size), more devices (--mesh)"
    remedy = f"{smaller}, or train less (--train-last, --lora-rank)"
    return first_within(budget, forms, size, settings.memory_budget, remedy)


def training_step(
    settings: Finetune,
    rows: Sequence[Encoded] | Sequence[PackedRow],
    found: Checkpoint,
    mesh: Mesh,
    steps: int,
    form: Form,
) -> Program:
    """A step of `jaxunlearn finetune` over `rows`, from shapes, in that form."""
    how = {"remat": form.remat, "head_rows": form.head_rows}
    model, params = model_of(found.config, mesh, dtypes=found.dtypes, **how)
    batch = abstract(next(batches(rows, settings.batch_size)).batch, mesh)
    rule = (1e-3, settings.weight_decay, min(1, steps - 1), steps)
    state = beside(jax.eval_shape(lambda p: initial(p, *rule), params), params, mesh)
    return program(model, *rule, form.microbatch), (state, batch), (0,)


def choose_training(
    settings: Finetune,
    rows: Sequence[Encoded] | Sequence[PackedRow],
    found: Checkpoint,
    mesh: Mesh,
    steps: int,
    say: Callable[[str], object],
) -> tuple[Form, int]:
    """As `choose`, of a step of `jaxunlearn finetune` over `rows`."""

    def size(form: Form) -> int:
        step = training_step(settings, rows, found, mesh, steps, form)
        total = bytes_of(step) + kept_beside(settings.watching, step[1][0][0])
        say(f"a step with {form}: {size_text(total)} a device")
        return total

    forms = forms_of(settings.batch_size, 0, _rows_apart(mesh))
    remedy = "a smaller --batch-size, shorter records (--max-length with --truncate), or more devices (--mesh)"
    return first_within(byte_size(settings.memory_budget), forms, size, settings.memory_budget, remedy)


def kept_beside(watching: Watching, trained: Params) -> int:
    """Bytes on a device of the parameters of the best look, which a run with rules keeps beside the last ones."""
    return device_bytes(trained) if watching.stop_when or watching.keep_while else 0


def bytes_of(program: Program) -> int:
    """Bytes a device that a program takes: arguments, results that do not take their place, and temporaries."""
    options = quickly(jax.default_backend())
    used = traced_of(program).lower().compile(compiler_options=options).memory_analysis()
    results = used.output_size_in_bytes - used.alias_size_in_bytes
    return used.argument_size_in_bytes + results + used.temp_size_in_bytes


def forms_of(forget: int, retain: int, devices: int = 1) -> list[Form]:
    """All forms of a step on so many records, the fastest first; parts are spread over `devices`.

    Example:
        >>> [(form.remat, form.microbatch, form.head_rows) for form in forms_of(4, 8)][1:]
        [('full', None, 1024), ('full', 4, 1024), ('full', 2, 1024), ('full', 1, 1024), ('full', 1, 64)]
    """
    counts = [count for count in (forget, retain) if count]
    sizes = range(max(counts) - 1, 0, -1)
    cuts = [size for size in sizes if all(size >= n or n % size == 0 for n in counts) and size % devices == 0]
    lean = [Form("full", size) for size in cuts]
    return [Form(), Form("full"), *lean, Form("full", cuts[-1] if cuts else None, FEW_ROWS)]


def first_within(
    budget: int, forms: Sequence[Choice], size: Callable[[Choice], int], asked: str | None, remedy: str
) -> tuple[Choice, int]:
    """The first form whose `size` is within `budget`, and that size.

    Sizes are taken to fall along `forms`, so that a handful of compilations find it among many.

    Args:
        budget: bytes.
        forms: the fastest first.
        size: bytes that a form takes.
        asked: the budget as it was given.
        remedy: what to do where none fits, beside a larger budget.

    Raises:
        ValueError: none is.
    """
    total = size(forms[0])
    if total <= budget:
        return forms[0], total
    low, high, leanest = 0, len(forms) - 1, size(forms[-1])
    if leanest > budget:
        raise ValueError(
            f"--memory-budget {asked}: the leanest form ({forms[-1]}) takes {size_text(leanest)} a device; give at "
            f"least that, {remedy}"
        )
    while high - low > 1:
        middle = (low + high) // 2
        total = size(forms[middle])
        low, high, leanest = (low, middle, total) if total <= budget else (middle, high, leanest)
    return forms[high], leanest


def _rows_apart(mesh: Mesh) -> int:
    """Over how many devices the rows of a batch are spread."""
    return mesh.shape["data"] * mesh.shape["fsdp"]
