"""Numbers in words: those of a step, which are shown, in which order, called what; times and sizes."""

import math
import sys
from collections.abc import Mapping
from typing import Any

import jax

from jaxunlearn.solvers import Status

NAMES = {
    "epoch": "epoch",
    "loss": "loss",
    "objective": "objective",
    "forget_nll": "loss on forget",
    "retain_nll": "loss on retain",
    "retain_kl": "KL on retain",
    "update_norm": "length of the step",
    "damping": "damping",
    "residual": "solver residual",
    "status": "solver",
    "products": "products",
    "tokens_per_second": "tokens/s",
    "peak_memory": "peak memory",
}
"""Losses and KL are in nats per loss token; what is not here comes after, under its own name."""


def in_words(facts: Mapping[str, float]) -> list[tuple[str, str]]:
    """Labels and values, in the order of `NAMES`. A step that was applied need not say so.

    Example:
        >>> in_words({"status": int(Status.MAX_STEPS), "retain_nll": 0.25, "peak_memory": 3 * 2**30, "applied": 1.0})
        [('loss on retain', '0.25'), ('solver', 'max steps'), ('peak memory', '3.00 GiB')]
    """
    order = {name: place for place, name in enumerate(NAMES)}
    shown = []
    for key in sorted(facts, key=lambda name: order.get(name, len(order))):
        value = facts[key]
        if key == "applied":
            if not value:
                shown.append(("step", "NOT APPLIED, not finite"))
            continue
        shown.append((NAMES.get(key, key.replace("_", " ")), _text(key, value)))
    return shown


def device_bytes(tree: Any) -> int:
    """Bytes on one device of a tree of arrays, or of shapes, that say where they lie."""
    leaves = jax.tree.leaves(tree)
    return sum(leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)


def peak_memory() -> int | None:
    """Bytes that this process has held at once on its first device; of a CPU, that the process has; None if unknown."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if device.platform != "cpu":
        return stats.get("peak_bytes_in_use")
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def duration(seconds: float) -> str:
    """A time one can read: 0.22 s, 8 s, 2:05, 1:02:05, 11.6 days.

    Example:
        >>> duration(0.216), duration(8.2), duration(125), duration(3725), duration(1e6)
        ('0.22 s', '8 s', '2:05', '1:02:05', '11.6 days')
    """
    if seconds >= 2 * 86400:
        return f"{seconds / 86400:.1f} days"
    if 0 < seconds < 1:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size_text(count: float) -> str:
    """Bytes one can read.

    Example:
        >>> size_text(12), size_text(1536), size_text(3 * 2**30)
        ('12 B', '1.50 KiB', '3.00 GiB')
    """
    unit = next((unit for unit in (30, 20, 10) if count >= 2**unit), 0)
    return f"{count / 2**unit:.{2 if unit else 0}f} {({30: 'GiB', 20: 'MiB', 10: 'KiB', 0: 'B'})[unit]}"


def _text(key: str, value: float) -> str:
    if key == "status":
        return Status(int(value)).name.lower().replace("_", " ")
    if key == "peak_memory":
        return size_text(value)
    return f"{value:,.0f}" if key == "tokens_per_second" else f"{value:.4g}"
