"""Which block of the curvature each parameter gets, decided once by tracing the model, and printed as a table.

Curvature is approximated block by block, one block a parameter (a stack of blocks for a stacked parameter):

| block | parameters | form, in the layout [m, n] of the parameter |
| --- | --- | --- |
| kronecker | matrices used by `taps.matmul` | `left (x) right`: input factor A [m, m], gradient factor G [n, n] |
| embedding | tables read by `taps.lookup` | `diag(how often each row was read) (x) G` |
| sum | one matrix in several uses, such as a table that is the head as well | the sum of its uses' blocks |
| diagonal | norm scales, biases, and what `diagonal=` names | each example's squared gradient |
| zero | what `only=` leaves out, and what the model does not use | 0 |

A side longer than `max_side` has a diagonal factor: the vocabulary side of a head would otherwise need a [V, V] matrix.
Projections of one input share its factor. A matrix that the model uses in a way that records no factor is an error
and never silently a diagonal.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

import jax
from jaxtyping import Array

from jaxunlearn.curvature.kronecker.paths import map_paths, paths_of
from jaxunlearn.taps import Probe, Tapped, Use
from jaxunlearn.types import Batch, Model, Params

MATRIX = ("matmul", "transposed", "lookup")
VECTOR = ("scale", "shift")


class Term(NamedTuple):
    """One use of a parameter and the factors that come of it.

    Attributes:
        use: "matmul", "transposed", "lookup", "scale" or "shift".
        owner: path of the parameter that keeps the input factor, which several may share.
        inputs: shape of the input factor A, [i, i] or its diagonal [i].
        grads: shape of the gradient factor G, [o, o] or its diagonal [o].
    """

    use: str
    owner: str
    inputs: tuple[int, ...] = ()
    grads: tuple[int, ...] = ()

    @property
    def left(self) -> tuple[int, ...]:
        """Shape of the factor on the rows of the parameter."""
        return self.grads if self.use == "transposed" else self.inputs

    @property
    def right(self) -> tuple[int, ...]:
        """Shape of the factor on its columns."""
        return self.inputs if self.use == "transposed" else self.grads


class Row(NamedTuple):
    """The block of one parameter.

    Attributes:
        path: keys from the root of the parameters to the leaf, joined by "/".
        shape: shape of the parameter.
        stacked: number of leading axes along which matrices (or vectors) are stacked.
        block: "kronecker", "embedding", "sum", "diagonal" or "zero".
        terms: the uses the block is made of; empty for a diagonal of per-example gradients.
        repeated: whether some use occurs several times, so that a factor is the sum over them.
    """

    path: str
    shape: tuple[int, ...]
    stacked: int
    block: str
    terms: tuple[Term, ...] = ()
    repeated: bool = False

    @property
    def numbers(self) -> int:
        """Numbers kept in the factors; a shared one counts with its owner."""
        if self.block == "zero":
            return 0
        if self.block == "diagonal":
            return _size(self.shape)
        stack = _size(self.shape[: self.stacked])
        owned = [term.inputs for term in self.terms if term.owner == self.path]
        return stack * sum(_size(shape) for shape in owned + [term.grads for term in self.terms])


@dataclass(frozen=True)
class Table:
    """The blocks of all parameters, in the order of the parameter tree; `print` it."""

    rows: tuple[Row, ...]

    def __getitem__(self, path: str) -> Row:
        for row in self.rows:
            if row.path == path:
                return row
        raise KeyError(path)

    def __str__(self) -> str:
        lines = [("parameter", "shape", "block", "rows", "columns", "MiB")]
        for row in self.rows:
            sides = [_sides(row, side) if row.block not in ("diagonal", "zero") else "" for side in (0, 1)]
            lines.append((row.path, _by(row.shape), row.block, *sides, f"{4 * row.numbers / 2**20:.2f}"))
        total = 4 * sum(row.numbers for row in self.rows) / 2**20
        lines.append(("", "", "", "", "total", f"{total:.2f}"))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(f"{x:<{w}}" for x, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def trace_uses(model: Model, params: Params, batch: Batch, watched: frozenset[str]) -> list[Use]:
    """Every use the model makes of the `watched` parameters when it predicts `batch`; nothing is computed."""
    uses: list[Use] = []

    def predict(p: Params, b: Batch) -> Array:
        nodes = map_paths(lambda path, x: Tapped(x, {}, probe=Probe(path, uses)) if path in watched else x, p)
        return b.predict(model, nodes).logits

    try:
        jax.eval_shape(predict, params, batch)
    except (TypeError, AttributeError) as error:
        raise ValueError(
            f"the model does not run with watched parameters ({error}); let it multiply its matrices by "
            "jaxunlearn.taps.matmul and read tables by taps.lookup, or leave parameters out with only=(...)"
        ) from error
    return uses


def make_table(
    model: Model,
    params: Params,
    batch: Batch,
    *,
    only: tuple[str, ...] = ("*",),
    diagonal: tuple[str, ...] = (),
    max_side: int = 8192,
) -> Table:
    """The block of every parameter of `model`.

    Args:
        model: the model; it is traced, not run.
        params: its parameters.
        batch: examples it takes.
        only: patterns of the paths to have curvature, such as "layers/mlp/*".
        diagonal: patterns of the paths to be approximated by a diagonal.
        max_side: longest side that gets a full factor.

    Raises:
        ValueError: one list of all problems: matrices without a factor, patterns that match nothing, inputs whose
            first axis does not count examples.
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in paths_of(params)}
    chosen = frozenset(path for path in shapes if _matches(path, only))
    diagonals = frozenset(path for path in chosen if _matches(path, diagonal))
    problems = [
        f"{name}={pattern!r} matches no parameter"
        for name, patterns in (("only", only), ("diagonal", diagonal))
        for pattern in patterns
        if not any(fnmatchcase(path, pattern) for path in shapes)
    ]
    uses = trace_uses(model, params, batch, chosen - diagonals)
    examples = jax.tree.leaves(batch)[0].shape[0]
    rows = []
    for path, shape in shapes.items():
        if path not in chosen:
            rows.append(Row(path, shape, 0, "zero"))
        elif path in diagonals:
            rows.append(Row(path, shape, 0, "diagonal"))
        else:
            row = _row(path, shape, [use for use in uses if use.path == path], uses, examples, max_side)
            problems.append(row) if isinstance(row, str) else rows.append(row)
    if problems:
        raise ValueError("Kronecker factors cannot be taken:\n- " + "\n- ".join(problems))
    return Table(tuple(rows))


def _row(
    path: str, shape: tuple[int, ...], mine: list[Use], uses: list[Use], examples: int, max_side: int
) -> Row | str:
    names = {use.name for use in mine}
    if not mine:
        return Row(path, shape, 0, "zero")
    wrong = {use.inputs for use in mine if use.name != "raw" and use.inputs[0] != examples}
    if wrong:
        return (
            f"{path} is used on an input of shape {list(wrong.pop())}, whose first axis should count the {examples} "
            "examples of the batch; keep the example axis first"
        )
    stacked = len(shape) - len(mine[0].shape)
    if any(shape[stacked:] != use.shape for use in mine):
        return f"{path} {list(shape)} is used as a matrix of shape {list(mine[0].shape)}; it must be used unreshaped"
    if names == {"raw"} and len(mine[0].shape) <= 1:
        return Row(path, shape, stacked, "diagonal")
    if names <= set(VECTOR):
        # The squared gradient of two uses is not the sum of the squares, so it is taken from per-example gradients.
        return Row(path, shape, stacked, "diagonal", (Term(mine[0].name, path),) if len(mine) == 1 else ())
    if not names <= set(MATRIX):
        known = sorted(names - {"raw"})
        also = f" besides taps.{known[0]}" if known else ""
        return (
            f"{path} {list(shape)} is used by an operation that records no factor{also}: let the model use it by "
            f"taps.matmul(x, w) or taps.lookup(ids, table) only, accept its diagonal with diagonal=({path!r},), or "
            "leave it out with only=(...)"
        )
    terms = []
    for name in MATRIX:
        calls = [use for use in mine if use.name == name]
        if not calls:
            continue
        owner = next(use.path for use in uses if use.source == calls[0].source)
        theirs = {use.source for use in uses if use.path == owner and use.name == name}
        if theirs != {use.source for use in calls}:
            return f"{path} shares its input with {owner} in some of its uses only; watch their products apart"
        i, o = mine[0].shape if name != "transposed" else mine[0].shape[::-1]
        inputs = (i,) if name == "lookup" or i > max_side else (i, i)
        terms.append(Term(name, owner, inputs, (o,) if o > max_side else (o, o)))
    block = "sum" if len(terms) > 1 else "embedding" if terms[0].use == "lookup" else "kronecker"
    return Row(path, shape, stacked, block, tuple(terms), len(mine) > len(terms))


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def _sides(row: Row, side: int) -> str:
    texts = []
    for term in row.terms:
        shape = (term.left, term.right)[side]
        shared = shape is term.inputs and term.owner != row.path
        texts.append((_by(shape) if len(shape) == 2 else f"diag {shape[0]}") + (f" of {term.owner}" if shared else ""))
    return " + ".join(texts)


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
