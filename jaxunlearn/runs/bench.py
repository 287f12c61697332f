"""`jaxunlearn bench`: curvature products a second on this machine, against its gradient and its ceiling.

See `throughput` for how it is measured. Products are of one batch of random tokens, all of which carry loss; a solver
makes the same product again and again, which XLA turns to account, so both are shown.
"""

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxunlearn import models
from jaxunlearn.files import write_new
from jaxunlearn.runs import dry_run_own
from jaxunlearn.runs import record as records
from jaxunlearn.runs.facts import size_text
from jaxunlearn.runs.progress import Reporter
from jaxunlearn.runs.settings import Bench
from jaxunlearn.runs.throughput import (
    Program,
    Row,
    built,
    ceiling,
    config_of,
    problem_on,
    products_of,
    program_of,
    row_of,
    samples,
)

if TYPE_CHECKING:
    from rich.table import Table


def bench(settings: Bench) -> list[Row]:
    """Run it; returns the rows of the table, the gradient's first; none with `--dry-run`.

    Raises:
        ValueError: bad input, or an output file that exists, before any weight is loaded.
    """
    records.refuse_result(settings.out)
    for name in ("batch_size", "length", "rounds"):
        if getattr(settings, name) < 1 + (name == "length"):
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag} {getattr(settings, name)}: give at least {1 + (name == 'length')}")
    folder = None if settings.model is None else models.resolve(settings.model, weights=not settings.dry_run)
    config = config_of(settings.size, settings.length) if folder is None else models.read_config(folder)
    if settings.length > config.max_position_embeddings:
        raise ValueError(
            f"--length {settings.length}: {settings.model} has a context of {config.max_position_embeddings}; use at "
            "most that"
        )
    if settings.dry_run:
        dry_run_own.bench(settings, config)
        return []
    start = time.monotonic()
    with Reporter() as reporter:
        mesh = settings.devices.make_mesh()
        made = {"mesh": mesh, "remat": settings.remat, "attention": settings.attention}
        if folder is None:
            model, params = models.init(config, jax.random.key(0), dtype=jnp.dtype(settings.dtype), **made)
        else:
            model, params = models.load(folder, dtype=settings.dtype, **made)
        p = problem_on(config, model, params, settings.batch_size, settings.length, mesh)
        wanted = {
            name: partial(program_of, one.function, p, one.count)
            for name, one in products_of(settings.curvature).items()
        }
        programs: dict[str, Program] = {}
        errors: dict[str, str] = {}
        with reporter.stage("compiling", len(wanted)) as stage:
            for name, build in wanted.items():
                one, failed = built({name: build})
                programs, errors = programs | one, errors | failed
                stage.advance()
        with reporter.stage("measuring", settings.rounds) as stage:
            runs = {name: program.run for name, program in programs.items()}
            seconds = samples(runs, settings.rounds, advance=stage.advance)
            peak = ceiling(settings.dtype)
        rows = [
            Row(name, error=errors[name]) if name in errors else row_of(name, programs[name], seconds[name])
            for name in wanted
        ]
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        named = settings.size if folder is None else Path(settings.model).name
        title = (
            f"{named}: {count:,} parameters in {settings.dtype}, {settings.batch_size} x {settings.length} tokens, "
            f"{jax.device_count()} x {jax.devices()[0].device_kind}"
        )
        reporter.console.print(table(rows, settings.batch_size * settings.length, peak, title))
        reporter.say(
            f"gradients: time over that of the gradient. Times the floor: time over what the GFLOP take at "
            f"{peak / 1e9:,.0f} GFLOP/s, the speed of one large matrix product of {settings.dtype} on a device here"
        )
        if settings.out is not None:
            facts: dict[str, Any] = {
                "parameters": count, "tokens": settings.batch_size * settings.length, "ceiling_flops": peak,
                "rows": [row._asdict() for row in rows], "seconds": seconds,
                "took": round(time.monotonic() - start, 1),
            }  # fmt: skip
            text = records.record("bench", settings, {"model": settings.model}, **facts)
            write_new(settings.out, text.encode())
            records.write_options(settings.out, "bench", settings)
            reporter.say(f"all numbers -> {settings.out}")
    return rows


def table(rows: list[Row], tokens: int, peak: float, title: str) -> "Table":
    """The rows for a terminal."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=Text(title, "table.title"), title_justify="left")
    heads = ("product", "ms", "a second", "tokens/s", "gradients", "GFLOP", "times the floor", "temporaries")
    for head in heads:
        shown.add_column(head, justify="left" if head == "product" else "right")
    unit = rows[0].seconds
    for row in rows:
        if row.seconds is None:
            continue
        floor = "" if not row.flops else f"{row.seconds * peak / row.flops:.1f}"
        shown.add_row(
            Text(row.name), f"{1e3 * row.seconds:,.1f}", f"{1 / row.seconds:,.3g}", f"{tokens / row.seconds:,.0f}",
            "" if not unit else f"{row.seconds / unit:.2f}", "" if not row.flops else f"{row.flops / 1e9:,.2f}", floor,
            size_text(row.temporaries),
        )  # fmt: skip
    failed = [f"{row.name} fails: {row.error}" for row in rows if row.error is not None]
    shown.caption, shown.caption_justify = Text("\n".join(failed), "table.caption"), "left"
    return shown
