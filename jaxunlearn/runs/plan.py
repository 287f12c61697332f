"""`jaxunlearn plan`: compile a step for devices one does not have, and say whether it fits and what bounds it.

The real program is compiled by the real compiler of the target (for TPUs the package `libtpu`, which needs none), from
shapes alone: no weights are read or made. What is printed, per chip:

    arguments, results, temporaries   bytes, as the compiler allocates them, and their sum against the memory
    FLOPs                             of matrix products, loops multiplied out, over the number of chips
    traffic                           bytes that collectives leave on a chip, by kind, loops multiplied out
    at least                          the longest of three times that nothing can beat: products at the chip's peak,
                                      traffic at what a chip can send, arguments and results at its memory's speed

The last is a bound and no forecast: real steps reach a half or so of the peak, and overlap only part of the traffic.
"""

import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxunlearn import methods, models
from jaxunlearn.files import write_new
from jaxunlearn.runs import record as records
from jaxunlearn.runs.facts import size_text
from jaxunlearn.runs.flags import of_flag
from jaxunlearn.runs.options import make_method
from jaxunlearn.runs.programs import PROGRAMS, Program, planned
from jaxunlearn.runs.progress import Reporter
from jaxunlearn.runs.settings import Plan
from jaxunlearn.runs.trainable import check_freezing
from jaxunlearn.sharding import make_mesh, mesh_sizes
from jaxunlearn.sharding.program import Traffic, equation_flops, traffic
from jaxunlearn.sharding.topology import Topology, devices_of, parse_topology, smaller


class Estimate(NamedTuple):
    """What one program asks of one chip.

    Attributes:
        program: its name.
        topology, mesh: what it was compiled for.
        arguments, results, temporaries: bytes.
        memory: bytes that a chip has; None where unknown.
        flops: of matrix products.
        traffic: by kind of collective.
        seconds: lower bounds by cause, "products", "traffic" and "memory"; empty where speeds are unknown.
        compiling: seconds it took to compile.
    """

    program: str
    topology: str
    mesh: dict[str, int]
    arguments: int
    results: int
    temporaries: int
    memory: int | None
    flops: float
    traffic: list[Traffic]
    seconds: dict[str, float]
    compiling: float

    @property
    def total(self) -> int:
        """Bytes at once."""
        return self.arguments + self.results + self.temporaries

    @property
    def fits(self) -> bool | None:
        """Whether that is less than a chip has."""
        return None if self.memory is None else self.total <= self.memory


def plan(settings: Plan) -> list[Estimate]:
    """Run it; returns the estimates.

    Raises:
        ValueError: bad input, or a topology that cannot be described here.
    """
    records.refuse_result(settings.out)
    for name in ("batch_size", "length", "cg_steps"):
        if getattr(settings, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(settings, name)}: give at least 1")
    if settings.lora_rank < 0:
        raise ValueError(f"--lora-rank {settings.lora_rank}: give a positive rank, or 0 to train the weights")
    check_freezing(settings.freeze_bits, settings.lora_rank)
    config = _config(settings.model)
    if settings.length > config.max_position_embeddings:
        raise ValueError(
            f"--length {settings.length}: {settings.model} has a context of {config.max_position_embeddings}"
        )
    method = make_method(settings.method, settings.option)
    topology = parse_topology(settings.topology)
    devices_of(topology)  # first of all: the compiler for TPUs complains when JAX loads it unprepared
    found: list[Estimate] = []
    with Reporter() as reporter:
        for name in settings.program or tuple(PROGRAMS):
            with reporter.stage(f"compiling {name} for {topology}", 1) as stage:
                found.append(estimate(name, settings, config, method, topology))
                stage.advance()
        reporter.console.print(_table(found, f"{settings.model} on {topology}"))
        if settings.smallest:
            least = _smallest(settings, config, method, topology, reporter)
            reporter.say(f"smallest grid that fits {found[-1].program}: {least or f'none up to {topology}'}")
        if settings.out is not None:
            write_new(settings.out, markdown(found).encode())
            records.write_options(settings.out, "plan", settings)
            reporter.say(f"table -> {settings.out}")
    return found


def estimate(
    name: str, settings: Plan, config: models.DecoderConfig, method: methods.Method, topology: Topology
) -> Estimate:
    """Compiles one program for one topology."""
    devices = devices_of(topology)
    with of_flag("--mesh"):
        sizes = mesh_sizes(settings.mesh, len(devices))
    mesh = make_mesh(**sizes, devices=devices)
    problem = planned(settings, config, method, mesh)
    program = PROGRAMS[name](problem, method, settings.cg_steps)
    return compiled(name, program, mesh, topology, loops=settings.cg_steps)


def compiled(name: str, program: Program, mesh: Mesh, topology: Topology, *, loops: int) -> Estimate:
    """Compiles a program for the devices of `mesh`, which `topology` describes; a solver's loop runs `loops` times."""
    start = time.perf_counter()
    traced = traced_of(program)
    executable = traced.lower().compile()
    return estimated(name, traced, executable, time.perf_counter() - start, mesh, topology, loops=loops)


def traced_of(program: Program) -> Any:
    """A program before it is lowered, `jax.stages.Traced`."""
    function, arguments, donated = program
    return jax.jit(function, donate_argnums=donated).trace(*arguments)


def estimated(
    name: str, traced: Any, executable: Any, seconds: float, mesh: Mesh, topology: Topology, *, loops: int
) -> Estimate:
    """What a program that took `seconds` to compile asks of a device."""
    used = executable.memory_analysis()
    flops = equation_flops(traced.jaxpr, unknown=loops) / mesh.size
    moved = traffic(executable, unknown=loops)
    results = used.output_size_in_bytes - used.alias_size_in_bytes
    chip = topology.chip
    work = {
        "products": (flops, chip.flops),
        "traffic": (sum(one.bytes for one in moved), chip.interconnect),
        "memory": (used.argument_size_in_bytes + results, chip.bandwidth),
    }
    return Estimate(
        name, str(topology), dict(mesh.shape), used.argument_size_in_bytes, results, used.temp_size_in_bytes,
        chip.memory, flops, moved, {cause: amount / speed for cause, (amount, speed) in work.items() if speed}, seconds,
    )  # fmt: skip


def _smallest(settings, config, method, topology: Topology, reporter: Reporter) -> Topology | None:
    """The smallest grid of the same chips on which the last program fits; a mesh of fixed sizes has no other grid."""
    name = (settings.program or tuple(PROGRAMS))[-1]
    for one in [*smaller(topology), topology]:
        try:
            with reporter.stage(f"compiling {name} for {one}", 1) as stage:
                found = estimate(name, settings, config, method, one)
                stage.advance()
        except ValueError as error:  # the mesh does not divide this grid, or there is no such grid
            reporter.say(f"{one}: {error}")
            continue
        if found.fits:
            return one
    return None


def _config(model: str) -> models.DecoderConfig:
    if model in models.PRESETS:
        return models.preset(model)
    path = Path(model)
    folder = path.parent if path.name == "config.json" else path
    if not folder.is_dir():
        known = ", ".join(models.PRESETS)
        raise ValueError(f"--model {model}: neither a checkpoint folder, nor a config.json, nor one of {known}")
    return models.read_config(folder)


HEAD = ("program", "arguments", "results", "temporaries", "total", "of memory", "FLOPs", "traffic", "at least")


def _cells(one: Estimate) -> list[str]:
    sizes = [size_text(size) for size in (one.arguments, one.results, one.temporaries, one.total)]
    share = "unknown" if one.memory is None else f"{one.total / one.memory:.0%}" + ("" if one.fits else ", too much")
    moved = "; ".join(f"{t.kind} {size_text(t.bytes)}" for t in one.traffic) or "none"
    cause = max(one.seconds, key=one.seconds.get, default=None)
    bound = "unknown" if cause is None else f"{one.seconds[cause]:.3g} s ({cause})"
    return [one.program, *sizes, share, f"{one.flops:.3g}", moved, bound]


def _table(found: list[Estimate], title: str):
    from rich.table import Table
    from rich.text import Text

    mesh = ", ".join(f"{name} {size}" for name, size in found[0].mesh.items())
    table = Table(title=Text(f"{title}, per chip; mesh: {mesh}", "table.title"))
    for name in HEAD:
        table.add_column(name, justify="left" if name in ("program", "traffic") else "right")
    for one in found:
        table.add_row(*map(Text, _cells(one)))
    return table


def markdown(found: list[Estimate]) -> str:
    """The estimates as a Markdown table."""
    lines = [list(HEAD), ["---"] + ["--:"] * (len(HEAD) - 1), *map(_cells, found)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
