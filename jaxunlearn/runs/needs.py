"""What programs take on the devices that are here: memory, time and room on the disk, found out by compiling them.

memory   bytes on one device, as the compiler allocates them, against what a device has
time     FLOPs of its matrix products times how often it runs, over the speed of one large product measured now.
         Nothing is faster than that, so it is a lower bound; loops that may end early are taken to their end
disk     what will be written, against what is free
"""

import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxunlearn.runs.facts import duration, size_text
from jaxunlearn.runs.plan import Estimate, estimated, traced_of
from jaxunlearn.runs.programs import Program
from jaxunlearn.runs.progress import Reporter
from jaxunlearn.runs.throughput import ceiling
from jaxunlearn.sharding.topology import Chip, Topology

TOO_LARGE = "does not fit"

# What fits is settled before XLA hands a program to LLVM, whose optimisation takes most of the time on a CPU. Left out,
# as is the slower of two ways to write fusions, a quarter of the time remains; 0.02% of the bytes differ at most, by
# the few hundred that fusions keep beside their results.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
SLOWER = " without the optimiser; a run, with it, takes some four times as long over each program"


class Work(NamedTuple):
    """A program and how often a run calls it.

    Attributes:
        name: for a person.
        program: what is compiled.
        times: how often it runs.
        loops: how often a solver's loop in it runs at most.
        held: bytes on a device that lie there meanwhile and are no arguments of the program.
    """

    name: str
    program: Program
    times: int
    loops: int = 1
    held: int = 0


def needs(work: Sequence[Work], mesh: Mesh, reporter: Reporter) -> dict[str, str]:
    """Memory of the program that takes most, and time of all of them."""
    machine = machine_of(mesh, reporter)
    start = time.perf_counter()
    with reporter.stage("compiling", len(work)) as stage:
        found = estimates(work, mesh, machine, stage.advance)
    compiling = time.perf_counter() - start
    most, held = max(
        ((estimate, one.held) for estimate, one in zip(found, work, strict=True)),
        key=lambda pair: pair[0].total + pair[1],
    )
    total = most.total + held
    fits = most.memory is not None and total <= most.memory
    verdict = "fits" if fits else TOO_LARGE
    has = "what a device has is unknown" if most.memory is None else f"of {size_text(most.memory)}: {verdict}"
    parts = (most.arguments, most.results, most.temporaries)
    split = "weights and state {}, results {}, temporaries {}".format(*map(size_text, parts))
    split += f", held meanwhile {size_text(held)}" if held else ""
    times = [estimate.seconds["products"] * one.times for estimate, one in zip(found, work, strict=True)]
    each = "; ".join(
        f"{one.name}: {one.times} x {estimate.flops * mesh.size:.3g} FLOPs"
        for estimate, one in zip(found, work, strict=True)
    )
    speed = machine.chip.flops * mesh.size
    return {
        "devices": f"{mesh.size} x {machine.chip.name}, mesh {', '.join(f'{n} {s}' for n, s in mesh.shape.items())}",
        "memory": f"{size_text(total)} a device in {most.program}, {has} ({split})",
        "time": f"at least {duration(sum(times))} at the {speed:.3g} FLOPs/s of a large product here ({each}); "
        f"compiling took {duration(compiling)}" + (SLOWER if _on_cpu(mesh) else ""),
    }


def estimates(
    work: Sequence[Work], mesh: Mesh, machine: Topology, advance: Callable[[], None] = lambda: None
) -> list[Estimate]:
    """What each program asks of a device; on a CPU several are compiled at a time, since each takes one core.

    Args:
        work: the programs.
        mesh: what they are compiled for.
        machine: the same as chips.
        advance: called after each.
    """
    options = quickly(mesh.devices.flat[0].platform)
    traced = [traced_of(one.program) for one in work]
    lowered = [one.lower() for one in traced]

    def compile_(index: int) -> Estimate:
        start = time.perf_counter()
        executable = lowered[index].compile(compiler_options=options)
        seconds, one = time.perf_counter() - start, work[index]
        advance()
        return estimated(one.name, traced[index], executable, seconds, mesh, machine, loops=one.loops)

    with ThreadPoolExecutor((os.cpu_count() or 1) if _on_cpu(mesh) else 1) as pool:
        return list(pool.map(compile_, range(len(work))))


def quickly(platform: str) -> dict[str, Any] | None:
    """Options of a compilation that is asked for bytes only."""
    return QUICK if platform == "cpu" else None


def _on_cpu(mesh: Mesh) -> bool:
    return mesh.devices.flat[0].platform == "cpu"


def machine_of(mesh: Mesh, reporter: Reporter) -> Topology:
    """The devices of a mesh as chips: what they have, and the speed of a product on them now."""
    device = mesh.devices.flat[0]
    with reporter.stage("measuring the speed of a product", 1) as stage:
        speed = ceiling("float32" if device.platform == "cpu" else "bfloat16")
        stage.advance()
    # Devices that are parts of one processor share its memory and its speed.
    shared = jax.local_device_count() if device.platform == "cpu" else 1
    memory = (device.memory_stats() or {}).get("bytes_limit")
    if device.platform == "cpu":
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // shared
    return Topology(Chip(device.device_kind, memory, speed / shared, None, None), (mesh.size,))


def disk(out: Path, size: int, more: str = "") -> str:
    """Room for a result of `size` bytes, in words."""
    home = out.absolute().parent
    while not home.exists():
        home = home.parent
    free = shutil.disk_usage(home).free
    besides = f", {more}" if more else ""
    return f"{size_text(size)} for the result{besides}; {size_text(free)} are free"


def size_of(tree: Any) -> int:
    """Bytes of a tree of arrays or shapes."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape")]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves if hasattr(leaf.dtype, "itemsize"))
