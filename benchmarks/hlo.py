"""Counts matrix-product FLOPs in a compiled XLA program.

`compiled.cost_analysis()` counts the body of a loop once, however often it runs, which makes it useless for scanned
layers. Here the text of the optimised program is walked instead, and a `while` counts its body as often as XLA knows
it to run. Only matrix products are counted, 2 FLOPs a multiply-add: they are what the floor of a product is made of.
"""

import math
import re

COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
LEFT = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
# A matrix product that XLA hands to a library keeps no dimensions in its text.
OPAQUE = ("gemm", "matmul", "onednn", "cublas")


def matmul_flops(compiled) -> float | None:
    """FLOPs of all matrix products of a compiled function; `None` where the program hides them in library calls."""
    bodies, entry = _computations(compiled.as_text())
    totals: dict[str, float | None] = {}

    def total(name: str) -> float | None:
        if name not in totals:
            shapes = {result: shape for result, shape, _, _ in bodies[name]}
            parts = [_instruction(shape, kind, rest, shapes, total) for _, shape, kind, rest in bodies[name]]
            totals[name] = None if any(part is None for part in parts) else math.fsum(parts)
        return totals[name]

    return total(entry)


def _computations(text: str) -> tuple[dict[str, list[tuple[str, str, str, str]]], str]:
    bodies: dict[str, list[tuple[str, str, str, str]]] = {}
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


def _instruction(shape: str, kind: str, rest: str, shapes: dict[str, str], total) -> float | None:
    if kind == "dot":
        left = re.match(r"(?:\S+ )?%?([\w.\-]+)", rest).group(1)
        sizes = _sizes(shapes[left])
        contracted = [sizes[int(d)] for d in LEFT.search(rest).group(1).split(",") if d]
        return 2.0 * math.prod(_sizes(shape)) * math.prod(contracted)
    if kind == "custom-call" and any(name in rest for name in OPAQUE):
        return None
    called = CALLED.findall(rest)
    called += [name.strip().lstrip("%") for match in BRANCHES.findall(rest) for name in match.split(",")]
    if kind == "conditional":  # one branch runs: the dearest, to be on the safe side
        parts = [total(name) for name in called]
        return None if None in parts else max(parts, default=0.0)
    trips = int(found.group(1)) if kind == "while" and (found := TRIPS.search(rest)) else 1
    parts = [total(name) for name in called]
    return None if None in parts else trips * math.fsum(parts)


def _sizes(shape: str) -> list[int]:
    return [int(n) for n in re.search(r"\[([\d,]*)\]", shape).group(1).split(",") if n]
