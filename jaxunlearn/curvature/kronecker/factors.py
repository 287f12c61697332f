"""The sums behind K-FAC and EK-FAC, from backward passes through a tapped model.

With all positions of all examples as the examples (the "expand" setting of Eschenhagen et al. 2023), the Fisher block
of a matrix used as `y = x @ W` is approximated by

    A (x) G,    A = (1/N) sum_t a_t a_t^T,    G = (1/n) sum_t E[g_t g_t^T]

where t runs over the N positions whose output reaches the loss (those before the loss tokens too, through attention),
`a_t` is the input there, `g_t` the gradient of the *summed* loss there, and n the number of loss tokens. For one
example with one position nothing is approximated: `a a^T (x) E[g g^T]` is the block. EK-FAC replaces the eigenvalues of
`A (x) G` by the true second moments along its eigenvectors,

    S = (1/n) sum_b E[(Q_A^T (X_b^T G_b) Q_G)^2],

where the gradient of an example b is summed over its positions before it is squared. Both are linear in the data, so
they add over microbatches, devices, hosts and streamed batches.

References: Martens and Grosse, ICML 2015; George et al., "Fast approximate natural gradient descent in a
Kronecker-factored eigenbasis", NeurIPS 2018; Eschenhagen et al., NeurIPS 2023.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn.accumulate import accumulate
from jaxunlearn.curvature.kronecker import layout, scores
from jaxunlearn.curvature.kronecker.examples import per_example_squares
from jaxunlearn.curvature.kronecker.paths import map_paths, paths_of
from jaxunlearn.curvature.kronecker.records import squares_of_sum
from jaxunlearn.curvature.kronecker.settings import Settings
from jaxunlearn.curvature.kronecker.table import MATRIX, Row, Table, make_table, trace_uses
from jaxunlearn.packed import refuse_packed
from jaxunlearn.taps import Tapped
from jaxunlearn.types import Batch, Key, Model, Params

Sums = dict[str, dict[str, dict[str, Array]]]


@partial(jax.tree_util.register_dataclass, data_fields=("sums", "count"), meta_fields=("settings", "table"))
@dataclass(frozen=True, eq=False)
class KroneckerFactors:
    """Sums over data: of factors (first pass), or of second moments in an eigenbasis (second pass). They add.

    Attributes:
        settings: what was approximated.
        table: the block of each parameter; `print(factors.table)`.
        sums: by path, use and name (see `jaxunlearn.taps`); diagonals of per-example gradients under "examples".
        count: number of loss tokens, times draws of labels.

    Raises:
        ValueError: from `+`, when the two are not of the same model and settings.
    """

    settings: Settings
    table: Table
    sums: Sums
    count: Float[Array, ""]

    def __add__(self, other: "KroneckerFactors") -> "KroneckerFactors":
        mine, theirs = (replace(f.settings, seed=0, microbatch=None) for f in (self, other))
        if (mine, self.table) != (theirs, other.table):
            raise ValueError(f"factors of {theirs} cannot be added to factors of {mine}: take both alike")
        total = jax.tree.map(jnp.add, (self.sums, self.count), (other.sums, other.count))
        return KroneckerFactors(self.settings, self.table, *total)

    def sides(self, row: Row) -> list[tuple[Array, Array]]:
        """`(left, right)` of each term of a row: factors [*stack, m, m] or diagonals [*stack, m], normalised."""
        pairs = []
        for term in row.terms:
            kept = self.sums[term.owner][term.use]
            N = kept["N"].reshape(kept["N"].shape + (1,) * len(term.inputs))
            # A layer that no loss reaches has no relevant position; its factors are 0.
            A, G = kept["A"] / (N + (N == 0)), self.sums[row.path][term.use]["G"] / self.count
            pairs.append((G, A) if term.use == "transposed" else (A, G))
        return pairs

    def squares(self, row: Row) -> Array:
        """Second moments of a diagonal row (first pass) or of a matrix (second pass), laid out like the parameter."""
        return sum(kept["S"] for kept in self.sums[row.path].values()) / self.count


def kronecker_factors(
    model: Model, params: Params, batch: Batch, settings: Settings | None = None, *, seed: int | None = None
) -> KroneckerFactors:
    """One pass over `batch`: factors of all matrices and diagonals of the rest, about the price of a gradient.

    Add the results of several batches, with a `seed` each. On a mesh each factor is spread over the mesh axes that
    split its parameter, unless `params` are traced with Auto axes, where the compiler decides.

    Args:
        model: a model that uses its matrices through `jaxunlearn.taps`.
        params: its parameters.
        batch: examples, the example axis first.
        settings: `KFAC(...)`, `EKFAC(...)` or `Settings(...)`.
        seed: instead of `settings.seed`.

    Raises:
        ValueError: listing the matrices that have no factor and what to do about them; or for an empirical Fisher of a
            `PackedBatch`.

    Example:
        >>> from jaxunlearn import taps
        >>> from jaxunlearn.types import LabelledBatch
        >>> model = Model(logits=lambda w, x: taps.matmul(x, w["w"]))
        >>> batch = LabelledBatch(jnp.array([[1.0, 2.0, 0.0]]), jnp.array([0]))
        >>> factors = kronecker_factors(model, {"w": jnp.zeros((3, 2))}, batch, Settings(labels="exact"))
        >>> A, G = factors.sides(factors.table["w"])[0]
        >>> G.round(3).tolist()  # p = (1/2, 1/2)
        [[0.25, -0.25], [-0.25, 0.25]]
    """
    settings = Settings() if settings is None else settings
    if settings.fisher == "empirical":
        refuse_packed(batch, "a gradient of the empirical Fisher")
    seed = jnp.uint32(settings.seed if seed is None else seed)
    return _collect(model, settings, layout.concrete(params), params, batch, seed, None)


def second_moments(
    model: Model, params: Params, batch: Batch, settings: Settings, vectors: dict, *, seed: int | None = None
) -> KroneckerFactors:
    """A second pass: squares of each example's gradient along the eigenvectors (`KroneckerEigen.vectors`).

    For one matrix at a time it holds a gradient for each example of the microbatch. A matrix that a loop uses as a
    constant counts as used once in each iteration, and products of different iterations are left out of its squares.

    Raises:
        ValueError: when a matrix is used twice in the same way, whose examples' gradients no tap sees whole.
    """
    seed = jnp.uint32(settings.seed if seed is None else seed)
    return _collect(model, settings, layout.concrete(params), params, batch, seed, vectors)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _collect(
    model: Model, settings: Settings, places: layout.Places, params: Params, batch: Batch, seed: Array, vectors: Any
) -> KroneckerFactors:
    limits = {"only": settings.only, "diagonal": settings.diagonal, "max_side": settings.max_side}
    table = make_table(model, params, batch, **limits)
    second = vectors is not None
    if second and (repeated := [row.path for row in table.rows if row.repeated]):
        raise ValueError(
            f"{', '.join(repeated)} is used several times in one way, so no tap sees an example's gradient whole; "
            "use KFAC, or accept its diagonal with diagonal=(...)"
        )
    key = jax.random.key(seed)
    examples = [row.path for row in table.rows if row.block == "diagonal" and not row.terms]

    def chunk(rows: tuple[Batch, Array]) -> tuple[Sums, Array]:
        part, ids = rows
        nodes = watched(table, params, part, model, vectors)
        sums, count = _tapped_pass(model, settings, params, part, ids, key, nodes, second)
        if second:
            likes = dict(paths_of(params))
            for row in table.rows:
                if len(row.terms) > 1:
                    S = squares_of_sum(row, sums[row.path], vectors.get(row.path, {}), likes[row.path])
                    sums[row.path] = {"sum": {"S": S}}
        elif examples:
            squares = per_example_squares(model, settings, params, part, ids, key, examples)
            sums |= {path: {"examples": {"S": S}} for path, S in squares.items()}
        return sums, count

    sums, count = accumulate(chunk, (batch, layout.row_ids(batch)), settings.microbatch)
    return KroneckerFactors(settings, table, layout.constrain(sums, table, dict(places)), count)


def watched(table: Table, params: Params, batch: Batch, model: Model, vectors: dict | None) -> dict[str, Tapped]:
    """Each watched parameter with dummies of the sums wanted: factors, or second moments if `vectors` are given."""
    leaves = dict(paths_of(params))
    several = frozenset(row.path for row in table.rows if len(row.terms) > 1) if vectors is not None else frozenset()
    shapes = {(use.path, use.name): use for use in (trace_uses(model, params, batch, several) if several else ())}
    nodes = {}
    for row in table.rows:
        leaf = leaves[row.path]
        taps, bases = {}, {}
        for term in row.terms:
            if vectors is None:
                owned = {"A": term.inputs, "N": ()} if term.owner == row.path else {}
                names = owned | {"G": term.grads} if term.use in MATRIX else {"S": row.shape[row.stacked :]}
            elif term.use not in MATRIX:
                continue
            elif row.path in several:
                use = shapes[row.path, term.use]
                names = {"X": use.inputs, "Y": use.outputs}
            else:
                names = {"S": row.shape[row.stacked :]}
                found = vectors.get(row.path, {})
                sides = ("right", "left") if term.use == "transposed" else ("left", "right")
                bases[term.use] = {n: found[side] for n, side in zip("AG", sides, strict=True) if side in found}
            taps[term.use] = {name: layout.zeros(leaf, row, term, name, shape) for name, shape in names.items()}
        if taps:
            nodes[row.path] = Tapped(leaf, taps, bases)
    return nodes


def _tapped_pass(
    model: Model,
    settings: Settings,
    params: Params,
    batch: Batch,
    ids: Array,
    key: Key,
    nodes: dict[str, Tapped],
    second: bool,
) -> tuple[Sums, Array]:
    def logits(dummies: Sums) -> tuple[Array, tuple]:
        tapped = {path: Tapped(node.value, dummies[path], node.bases) for path, node in nodes.items()}
        predictions = batch.predict(model, map_paths(lambda path, leaf: tapped.get(path, leaf), params))
        return predictions.logits, (predictions.targets, predictions.weights)

    z, pullback, (targets, weights) = jax.vjp(logits, {path: node.taps for path, node in nodes.items()}, has_aux=True)
    score, number = scores.score_of(settings, z, targets, weights, ids, key)
    pulled = accumulate(lambda draw: pullback(score(draw[0]).astype(z.dtype))[0], jnp.arange(number), 1)
    if settings.labels == "exact" and settings.fisher == "true":
        if not second:
            # One column of the root reaches the inputs of one place only; how often an input counts must not depend
            # on that, so the sums over inputs are those of a sampled pass.
            sampled = replace(settings, labels="sampled")
            once = pullback(scores.score_of(sampled, z, targets, weights, ids, key)[0](0).astype(z.dtype))[0]
            pulled = jax.tree_util.tree_map_with_path(
                lambda where, every, one: one if where[-1].key in ("A", "N") else every, pulled, once
            )
        number = 1
    return pulled, jnp.sum(weights) * number
