"""What a compiled program does: matrix products, and what it sends between devices.

`compiled.cost_analysis()` counts the body of a loop once, however often it runs, which makes it useless for scanned
layers. Here the text of the optimised program is walked instead, and a `while` counts its body as often as XLA knows it
to run (a loop that ends on a condition, such as a solver's, as often as the caller says). `equation_flops` counts
products in a traced function instead, before anything is compiled: the same for every backend, with all that the
compiler would have left out.
"""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
CONDITION = re.compile(r"condition=%?([\w.\-]+)")
COUNTER = re.compile(r"(?:\S+ )?%?[\w.\-]+, (?:\S+ )?%?([\w.\-]+)\), direction=LT")
CHANNEL = re.compile(r"channel_id=(\d+)")
CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
# The first operand; some versions of XLA print its type before its name, and types hold commas, as lists do.
LEFT_OPERAND = re.compile(r"(?:[a-z]\w*\[[^\]]*\](?:\{[^}]*\})? )?%?([\w.\-]+)")
LEFT = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
# A matrix product that XLA hands to a library keeps no dimensions in its text.
OPAQUE = ("gemm", "matmul", "onednn", "cublas")
MOVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}
WIDTHS |= {"f64": 8, "s64": 8, "u64": 8, "c64": 8}
ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")

Rows = list[tuple[str, str, str, str]]


class Traffic(NamedTuple):
    """What one kind of collective moves.

    Attributes:
        kind: "all-gather", "all-reduce", "reduce-scatter", "all-to-all" or "collective-permute".
        times: how often a device takes part.
        bytes: what results on a device, all times together.
        largest: the largest single result, bytes.
    """

    kind: str
    times: float
    bytes: float
    largest: float


def matmul_flops(compiled: Any, *, unknown: int = 1) -> float | None:
    """FLOPs of all matrix products of a compiled function, 2 a multiply-add, on one device.

    Args:
        compiled: what `jax.jit(...).lower(...).compile()` gives, on a CPU or GPU.
        unknown: how often a loop runs of which XLA does not know.

    Returns:
        The count, or `None` where the program hides products in library calls.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> loop = jax.jit(lambda x, w: jax.lax.fori_loop(0, 5, lambda _, x: (x @ w) @ w.T, x))
        >>> matmul_flops(loop.lower(jnp.ones((2, 8)), jnp.ones((8, 3))).compile())  # 5 (2 x 8 x 3 + 2 x 3 x 8) 2
        960.0
    """

    def count(name: str, shape: str, kind: str, rest: str, shapes: dict[str, str]) -> dict[str, float]:
        if kind == "dot":
            left = LEFT_OPERAND.match(rest).group(1)
            sizes = _sizes(shapes[left])
            contracted = [sizes[int(d)] for d in LEFT.search(rest).group(1).split(",") if d]
            return {name: 2.0 * math.prod(_sizes(shape)) * math.prod(contracted)}
        if kind == "custom-call" and any(known in rest for known in OPAQUE):
            return {name: math.nan}
        return {}

    total = math.fsum(_walk(compiled.as_text(), count, unknown).values())
    return None if math.isnan(total) else total


def traffic(compiled: Any, *, unknown: int = 1) -> list[Traffic]:
    """What a compiled function sends between devices, by kind of collective, as one device sees it.

    Args:
        compiled: what `jax.jit(...).lower(...).compile()` gives, on any backend.
        unknown: how often a loop runs of which XLA does not know.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> traffic(jax.jit(jnp.sin).lower(jnp.ones(2)).compile())
        []
    """
    kinds: dict[str, tuple[str, float]] = {}

    def times(name: str, shape: str, kind: str, rest: str, shapes: dict[str, str]) -> dict[str, float]:
        move = kind.removesuffix("-start")
        if move not in MOVES:
            return {}
        # On TPUs a collective that overlaps with products is written once for each of its steps, under one channel.
        channel = CHANNEL.search(rest)
        key = f"{move} {channel.group(1)}" if channel else name
        arrays = [_bytes(*array) for array in ARRAY.findall(shape)]
        # The start of an asynchronous collective returns its operand beside its result.
        kinds[key] = move, float(max(arrays, default=0) if kind != move else sum(arrays))
        return {key: 1.0}

    runs = _walk(compiled.as_text(), times, unknown)
    found = []
    for move in MOVES:
        mine = [(runs[key], size) for key, (kind, size) in kinds.items() if kind == move and key in runs]
        if mine:
            total = math.fsum(n * size for n, size in mine)
            found.append(Traffic(move, math.fsum(n for n, _ in mine), total, max(size for _, size in mine)))
    return found


def equation_flops(traced: Any, *, unknown: int = 1) -> float:
    """FLOPs of all matrix products of a traced function, over all devices together.

    Args:
        traced: what `jax.make_jaxpr(f)(...)` gives.
        unknown: how often a `while` loop runs.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def f(x, w):
        ...     return jax.lax.scan(lambda x, _: (x @ w, None), x, length=5)[0]
        >>> equation_flops(jax.make_jaxpr(f)(jnp.ones((2, 8)), jnp.ones((8, 8))))
        1280.0
    """
    jaxpr = getattr(traced, "jaxpr", traced)
    total = 0.0
    for equation in jaxpr.eqns:
        name, given = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = given["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[d] for d in contracted)
            continue
        inner = [equation_flops(one, unknown=unknown) for one in _inner(given)]
        if name == "cond":
            total += max(inner, default=0.0)
        else:
            total += {"scan": given.get("length", 1), "while": unknown}.get(name, 1) * sum(inner)
    return total


def _inner(given: dict[str, Any]) -> list[Any]:
    """The functions inside an equation; of a rule for derivatives only the function itself is there to be run."""
    found = []
    for value in given.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if hasattr(getattr(one, "jaxpr", one), "eqns"):
                found.append(one)
    return found


def _walk(text: str, count: Callable[..., dict[str, float]], unknown: int) -> dict[str, float]:
    """`count(name, shape, kind, rest, shapes)`, numbers by key, for all instructions as often as they run.

    Within a computation equal keys are one thing seen several times.
    """
    bodies, entry = _computations(text)
    totals: dict[str, dict[str, float]] = {}

    def total(name: str) -> dict[str, float]:
        if name not in totals:
            rows = bodies.get(name, [])
            found: dict[str, float] = {}
            shapes = {result: shape for result, shape, _, _ in rows}
            for row in rows:
                for key, value in instruction(*row, shapes).items():
                    found[key] = max(value, found.get(key, value)) if value == value else value
            totals[name] = found
        return totals[name]

    def instruction(name: str, shape: str, kind: str, rest: str, shapes: dict[str, str]) -> dict[str, float]:
        called = CALLED.findall(rest)
        called += [other.strip().lstrip("%") for match in BRANCHES.findall(rest) for other in match.split(",")]
        parts = [total(other) for other in called]
        if kind == "conditional":  # one branch runs: the dearest, to be on the safe side
            parts = [max(parts, key=lambda part: math.fsum(part.values()), default={})]
        trips = 1 if kind != "while" else _trips(rest, bodies) or unknown
        inner = {f"{name}/{key}" if _own(key) else key: trips * value for part in parts for key, value in part.items()}
        return count(name, shape, kind, rest, shapes) | inner

    return total(entry)


def _own(key: str) -> bool:
    """Whether a key names an instruction, which is another one wherever its computation is called from."""
    return " " not in key


def _trips(rest: str, bodies: dict[str, Rows]) -> int | None:
    """How often a loop runs: what XLA notes, or the bound of a counter from 0, as the loops of `scan` have one."""
    if known := TRIPS.search(rest):
        return int(known.group(1))
    rows = bodies.get(CONDITION.search(rest).group(1), [])
    constants = {name: value for name, _, kind, value in rows if kind == "constant"}
    bounds = [
        found.group(1) for _, _, kind, value in rows[-1:] if kind == "compare" and (found := COUNTER.match(value))
    ]
    value = constants.get(bounds[0], "").partition(")")[0] if bounds else ""
    return int(value) if value.isdigit() else None


def _computations(text: str) -> tuple[dict[str, Rows], str]:
    bodies: dict[str, Rows] = {}
    entry = current = ""
    for line in text.splitlines():
        if found := COMPUTATION.match(line):
            current = found.group(1)
            bodies[current] = []
            if line.startswith("ENTRY"):
                entry = current
        elif current and (found := INSTRUCTION.match(line)):
            bodies[current].append(found.groups())
    return bodies, entry


def _sizes(shape: str) -> list[int]:
    return [int(n) for n in re.search(r"\[([\d,]*)\]", shape).group(1).split(",") if n]


def _bytes(dtype: str, sizes: str) -> int:
    return WIDTHS.get(dtype, 0) * math.prod(int(n) for n in sizes.split(",") if n)
