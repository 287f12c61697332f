"""The Kronecker eigenbasis: `A (x) G = (Q_A (x) Q_G) diag(Lambda) (Q_A (x) Q_G)^T` from two small decompositions.

For a sum of terms, such as a table that is the head as well, there is no common eigenbasis. Each side then takes the
eigenvectors of its factors' sum, each weighted by the mean eigenvalue of its partner,

    Q_left = eigenvectors of  sum_k (tr R_k / n) L_k,      Lambda = diagonal of the sum in that basis,

the diagonal that is nearest to the sum in the Frobenius norm; it is exact for one term. Products never use it; powers
do.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxunlearn.curvature.kronecker import layout
from jaxunlearn.curvature.kronecker.factors import KroneckerFactors
from jaxunlearn.curvature.kronecker.paths import paths_of
from jaxunlearn.curvature.kronecker.settings import Settings
from jaxunlearn.curvature.kronecker.table import Row, Table
from jaxunlearn.sharding import on_host
from jaxunlearn.sharding.regions import auto
from jaxunlearn.types import Params

Vectors = dict[str, dict[str, Array]]


@partial(jax.tree_util.register_dataclass, data_fields=("vectors", "values"), meta_fields=("settings", "table"))
@dataclass(frozen=True, eq=False)
class KroneckerEigen:
    """A block-diagonal matrix by its eigenvectors and eigenvalues; a pytree, to be kept, saved and applied.

    Attributes:
        settings: what was approximated.
        table: the block of each parameter.
        vectors: by path, "left" [*stack, m, m] and "right" [*stack, n, n]; a side that is missing has the standard
            basis, or that of the parameter with which it shares its input.
        values: by path, eigenvalues in the layout of the parameter; none for a zero block.
    """

    settings: Settings
    table: Table
    vectors: Vectors
    values: dict[str, Array]

    def basis(self, row: Row) -> tuple[Array | None, Array | None]:
        """`(Q_left, Q_right)` of a row, None for the standard basis."""
        found = [self.vectors.get(_keeper(self.table, row, side), {}).get(side) for side in ("left", "right")]
        return found[0], found[1]

    def with_moments(self, moments: KroneckerFactors) -> "KroneckerEigen":
        """EK-FAC: the eigenvalues of matrices replaced by second moments along the eigenvectors.

        Raises:
            ValueError: when `moments` belong to other parameters.
        """
        if moments.table != self.table:
            raise ValueError("these second moments are of other parameters than the eigenvectors")
        new = {row.path: moments.squares(row) for row in self.table.rows if row.path in moments.sums}
        return replace(self, values=self.values | new)


def eigendecompose(factors: KroneckerFactors, params: Params, *, eigen: str | None = None) -> KroneckerEigen:
    """Eigenvectors and eigenvalues of all blocks.

    Args:
        factors: the sums of a pass over data.
        params: the parameters, for layouts.
        eigen: "device": `jnp.linalg.eigh` in f32 (float64 if the factors are). "host": LAPACK in float64, one factor at
            a time. Default: as the settings say.

    Raises:
        ValueError: when the host is asked for while tracing.
    """
    kind = factors.settings.eigen if eigen is None else eigen
    if kind != "host":
        return _on_device(layout.concrete(params), factors, params)
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(factors)):
        raise ValueError(
            'eigen="host" takes factors out of the program, which jax.jit forbids: call kronecker_factors and '
            'from_factors outside of jit, or use eigen="device"'
        )
    gathered = replace(factors, sums=jax.tree.map(_host, factors.sums), count=np.float64(factors.count))
    vectors, values = _decompose(gathered, np.linalg.eigh, _eps(factors))
    like = _likes(factors, params)
    return KroneckerEigen(
        factors.settings, factors.table, layout.put_like(vectors, like[0]), layout.put_like(values, like[1])
    )


@partial(jax.jit, static_argnums=0)
def _on_device(places: layout.Places, factors: KroneckerFactors, params: Params) -> KroneckerEigen:
    like = _likes(factors, params)
    vectors, values = auto(lambda f: _decompose(f, jnp.linalg.eigh, _eps(factors)), factors, like=like)
    vectors = layout.constrain_eigen(vectors, factors.table, dict(places))
    values = layout.constrain_eigen(values, factors.table, dict(places))
    return KroneckerEigen(factors.settings, factors.table, vectors, values)


def _decompose(factors: KroneckerFactors, eigh: Callable[[Any], tuple], eps: float) -> tuple[Vectors, dict[str, Array]]:
    """`(vectors, values)`, with numpy or jax.numpy arrays, as `factors` has."""
    table = factors.table
    vectors: Vectors = {}
    spectra: dict[tuple[str, str], Any] = {}
    for row in table.rows:
        pairs = factors.sides(row) if _is_matrix(row) else []
        for number, side in enumerate(("left", "right")):
            if not pairs or _keeper(table, row, side) != row.path:
                continue
            dense = [len(pair[number].shape) - row.stacked == 2 for pair in pairs]
            if any(dense):
                matrix = pairs[0][number] if len(pairs) == 1 else sum(_weighted(pair, number, row) for pair in pairs)
                w, Q = eigh(matrix)
                # Below the rounding of the factors an eigenvalue is noise, and may be negative.
                w = w * (w > eps * w.shape[-1] * w[..., -1:])
                vectors.setdefault(row.path, {})[side] = Q
                spectra[row.path, side] = w
    values = {}
    for row in table.rows:
        if row.block == "diagonal":
            values[row.path] = factors.squares(row)
        elif _is_matrix(row):
            total = 0.0
            for pair in factors.sides(row):
                sides = []
                for factor, side in zip(pair, ("left", "right"), strict=True):
                    keeper = _keeper(table, row, side)
                    Q = vectors.get(keeper, {}).get(side)
                    sides.append(
                        spectra[keeper, side] if Q is not None and len(row.terms) == 1 else _diagonal(factor, Q, row)
                    )
                total = total + sides[0][..., :, None] * sides[1][..., None, :]
            values[row.path] = total
    return vectors, values


def _keeper(table: Table, row: Row, side: str) -> str:
    """The path that keeps the eigenvectors of one side: those of a shared input are kept once."""
    if len(row.terms) != 1:
        return row.path
    (term,) = row.terms
    inputs = "right" if term.use == "transposed" else "left"
    shared = side == inputs and term.owner != row.path and len(table[term.owner].terms) == 1
    return term.owner if shared else row.path


def _likes(factors: KroneckerFactors, params: Params) -> tuple[dict, dict]:
    """Arrays in the shapes and layouts of `(vectors, values)`."""
    leaves = dict(paths_of(params))
    vectors: dict = {}
    values = {}
    for row in factors.table.rows:
        if row.block != "zero":
            values[row.path] = leaves[row.path]
        for term in row.terms if _is_matrix(row) else ():
            for side, shape in (("left", term.left), ("right", term.right)):
                if len(shape) == 2 and _keeper(factors.table, row, side) == row.path:
                    name = "A" if (side == "left") != (term.use == "transposed") else "G"
                    kept = factors.sums[term.owner if name == "A" else row.path]
                    vectors.setdefault(row.path, {})[side] = kept[term.use][name]
    return vectors, values


def _is_matrix(row: Row) -> bool:
    return row.block not in ("zero", "diagonal")


def _weighted(pair: tuple, number: int, row: Row) -> Any:
    """One side of a term as a matrix, times the mean eigenvalue of the other."""
    return _square(pair[number], row) * mean_eigenvalue(pair[1 - number], row)[..., None, None]


def _square(factor: Any, row: Row) -> Any:
    if len(factor.shape) - row.stacked == 2:
        return factor
    return factor[..., None] * np.eye(factor.shape[-1], dtype=factor.dtype)


def mean_eigenvalue(factor: Any, row: Row) -> Any:
    """Mean eigenvalue of a factor [*stack, d, d] or a diagonal [*stack, d], one for each of the stack."""
    if len(factor.shape) - row.stacked == 2:
        return (factor * np.eye(factor.shape[-1], dtype=factor.dtype)).sum((-1, -2)) / factor.shape[-1]
    return factor.mean(-1)


def _diagonal(factor: Any, Q: Any, row: Row) -> Any:
    """Diagonal of `Q^T factor Q`."""
    if len(factor.shape) - row.stacked == 1:
        return factor if Q is None else (factor[..., :, None] * Q**2).sum(-2)
    return (Q * (factor @ Q)).sum(-2)


def _eps(factors: KroneckerFactors) -> float:
    return max((float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(factors.sums)), default=0.0)


def _host(x: Array) -> np.ndarray:
    return on_host(x).astype(np.float64)
