"""`jaxunlearn doctor`: what is installed, what it runs on, and whether products come out right here.

Versions are held against the ranges that the package itself declares. The check is one exact Hessian-vector product of
a small decoder on the default device against a central finite difference of gradients, in the precision that the
device uses by default.
"""

import os
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import NamedTuple

from jaxunlearn.runs.settings import Doctor

LIMIT = 2e-2  # relative error of a product; a finite difference in f32 itself is off by up to a hundredth of that
VARIABLES = ("JAX_", "XLA_", "LIBTPU_", "TPU_", "CUDA_VISIBLE_DEVICES", "NVIDIA_TF32", "HF_HUB_OFFLINE", "HF_HOME")
ROOM = 10 * 2**30


class Line(NamedTuple):
    """One finding: `problem` says what is wrong and what to do, None when nothing is."""

    name: str
    value: str
    problem: str | None = None


def doctor(settings: Doctor) -> list[Line]:
    """Prints the findings and returns them; those with a problem make the command end with code 1."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    lines = [*_packages(), *_machine(), *_settings()]
    if settings.check:
        lines.append(_product())
    width = max(len(line.name) for line in lines)
    for line in lines:
        mark = ("✓", "green") if line.problem is None else ("✗", "red")
        # Values are those of the environment, where a folder may be named `cache[red]`.
        console.print(Text.assemble(mark, f" {line.name:<{width}}  {line.value}"), soft_wrap=True)
        if line.problem:
            console.print(Text.assemble(f"  {'':<{width}}  ", (line.problem, "red")), soft_wrap=True)
    return lines


def _packages() -> list[Line]:
    """The package's own requirements, each beside what is there."""
    import platform

    from packaging.requirements import Requirement

    from jaxunlearn.version import __version__

    lines = [Line("jaxunlearn", __version__), Line("python", platform.python_version())]
    try:
        wanted = [Requirement(text) for text in requires("jaxunlearn") or []]
    except PackageNotFoundError:
        return [*lines, Line("requirements", "unknown: jaxunlearn is not installed, only on the path")]
    for need in wanted:
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(need.name)
        except PackageNotFoundError:
            lines.append(Line(need.name, "missing", f"install {need}"))
            continue
        fits = need.specifier.contains(found, prereleases=True)
        lines.append(Line(need.name, found, None if fits else f"jaxunlearn needs {need}"))
    return lines


def _machine() -> list[Line]:
    import jax

    lines = []
    for kind in dict.fromkeys((d.platform, d.device_kind) for d in jax.devices()):
        ours = [d for d in jax.local_devices() if (d.platform, d.device_kind) == kind]
        memory = (ours[0].memory_stats() or {}).get("bytes_limit") if ours else None
        size = f", {memory / 2**30:.1f} GiB each" if memory else ""
        count = sum((d.platform, d.device_kind) == kind for d in jax.devices())
        lines.append(Line("devices", f"{count} x {kind[1]} ({kind[0]}){size}"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines.append(Line("processes", f"{jax.process_count()} of JAX, {cores} cores here"))
    free = shutil.disk_usage(Path.cwd()).free
    short = f"less than {ROOM / 2**30:.0f} GiB: a checkpoint may not fit" if free < ROOM else None
    return [*lines, Line("free disk", f"{free / 2**30:.0f} GiB in {Path.cwd()}", short)]


def _settings() -> list[Line]:
    """What changes numbers or speed without a word in a program."""
    import jax

    precision = jax.config.jax_default_matmul_precision
    lines = [
        Line("matrix products", f"{precision or 'default'} precision"),
        Line("float64", "on: products are computed in it where arrays are" if jax.config.jax_enable_x64 else "off"),
    ]
    named = {key: value for key, value in sorted(os.environ.items()) if key.startswith(VARIABLES)}
    lines += [Line(key, _shown(value)) for key, value in named.items()]
    if "JAX_DISABLE_JIT" in named or jax.config.jax_disable_jit:
        lines.append(Line("compilation", "off", "unset JAX_DISABLE_JIT: every step would run operation by operation"))
    if jax.config.jax_debug_nans:
        lines.append(Line("NaN checks", "on", "unset JAX_DEBUG_NANS: every step would wait for the host"))
    return lines


def _shown(value: str) -> str:
    return value if len(value) <= 100 else value[:97] + "..."


def _product() -> Line:
    """One exact product on the default device, and how far it is from a finite difference of gradients."""
    import time

    import jax
    import jax.numpy as jnp

    from jaxunlearn import losses, models, tree
    from jaxunlearn.curvature import hessian
    from jaxunlearn.types import TokenBatch

    config = models.DecoderConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_attention_heads=4, num_hidden_layers=2
    )
    start = time.perf_counter()
    model, params = models.init(config, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (4, 12), 0, config.vocab_size)
    batch = TokenBatch(tokens, jnp.ones(tokens.shape, jnp.float32))
    v = tree.normal_like(jax.random.key(2), params)

    def products(params, batch, v):
        def loss(p, b):
            return losses.nll(model, p, b)

        return [hessian(loss, params, batch, mode=mode)(v) for mode in ("forward_over_reverse", "finite_difference")]

    exact, rough = jax.jit(products)(params, batch, v)
    error = float(tree.norm(tree.sub(exact, rough)) / tree.norm(exact))
    seconds = time.perf_counter() - start
    told = f"a Hessian-vector product is within {error:.1e} of a finite difference, {seconds:.1f} s"
    return Line("products", told, None if error < LIMIT else f"above {LIMIT:.0e}: report this with all lines above")
