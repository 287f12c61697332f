"""Kronecker-factored curvature as a linear operator with closed-form powers.

With `V` a parameter's part of a vector, a K-FAC block multiplies by its factors and any power goes through the
eigenbasis, damping included:

    (A (x) G) V              = A V G
    (A (x) G + lambda I)^p V = Q_A [ (Lambda + lambda)^p * (Q_A^T V Q_G) ] Q_G^T

An EK-FAC block is the second form throughout. Four products of matrices of the size of a layer, no pass over data.

Where an eigenvalue is 0, up to rounding, an undamped power is that of the pseudo-inverse and gives 0. So an undamped
inverse leaves out parameters without curvature (zero blocks), where a damped one divides by lambda.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxunlearn import tree
from jaxunlearn.curvature.kronecker.eigen import KroneckerEigen, eigendecompose
from jaxunlearn.curvature.kronecker.factors import KroneckerFactors
from jaxunlearn.curvature.kronecker.layout import wide
from jaxunlearn.curvature.kronecker.paths import map_paths, paths_of
from jaxunlearn.curvature.kronecker.table import Row, Table
from jaxunlearn.operators import LinearOperator
from jaxunlearn.sharding.regions import auto
from jaxunlearn.types import Params

Damping = Float[Array, ""] | float | dict[str, Array]
Sides = dict[str, list[tuple[Array, Array]]]


@dataclass(frozen=True, eq=False, kw_only=True)
class KroneckerOperator(LinearOperator):
    """A block-diagonal, Kronecker-factored matrix.

    Attributes:
        eigen: eigenvectors and eigenvalues of the blocks.
        sides: K-FAC's factors, whose products are exact; none for EK-FAC.
        damping: `lambda`, one number or one a parameter (broadcast over it).
    """

    eigen: KroneckerEigen
    sides: Sides
    damping: Damping = 0.0

    @property
    def table(self) -> Table:
        """Which block each parameter has; `print` it."""
        return self.eigen.table

    def damped(self, damping: Damping) -> "KroneckerOperator":
        """`A + damping I`; a dictionary by path damps each parameter by itself."""
        if not isinstance(self.damping, dict) and not isinstance(damping, dict):
            total: Damping = self.damping + damping
        else:
            paths = [row.path for row in self.table.rows]
            total = {path: _at(self.damping, path) + _at(damping, path) for path in paths}
        return _operator(self.like, self.eigen, self.sides, total)

    def damped_by_mean(self, share: float = 0.1) -> "KroneckerOperator":
        """Each matrix damped by `share` times the mean of its own eigenvalues (Grosse et al. 2023, share 0.1).

        Reference: Grosse et al., "Studying large language model generalization with influence functions", 2023.
        """
        return self.damped({path: share * mean for path, mean in mean_eigenvalues(self.eigen).items()})

    def function(self, f: Callable[[Row, Array], Array]) -> LinearOperator:
        """`Q_A [ f(row, Lambda) * (Q_A^T V Q_G) ] Q_G^T`: any function of the undamped eigenvalues of each block.

        Args:
            f: gives a factor for each eigenvalue, in their shape, which is that of the parameter (a single 0 for a
                zero block).
        """

        def block(row: Row, V: Array, eigen: KroneckerEigen, sides: Sides, damping: Damping) -> Array:
            return _in_basis(row, V, eigen, lambda values: f(row, values))

        return LinearOperator(_by_block(block, self.like, (self.eigen, self.sides, self.damping)), self.like)

    def power(self, p: float) -> LinearOperator:
        """`A^p`, damping included."""

        def block(row: Row, V: Array, eigen: KroneckerEigen, sides: Sides, damping: Damping) -> Array:
            def function(values: Array) -> Array:
                base = jnp.where(values > _noise(row, values), values, 0.0) + _at(damping, row.path)
                return jnp.where(base > 0, jnp.where(base > 0, base, 1.0) ** p, 0.0)

            return _in_basis(row, V, eigen, function)

        return LinearOperator(_by_block(block, self.like, (self.eigen, self.sides, self.damping)), self.like, psd=True)


def from_eigen(eigen: KroneckerEigen, params: Params) -> KroneckerOperator:
    """The operator of an eigendecomposition, for example of EK-FAC.

    Raises:
        ValueError: listing the parameters that do not fit.
    """
    _check_fit(eigen.table, params)
    return _operator(params, eigen, {}, 0.0)


def from_factors(factors: KroneckerFactors, params: Params, *, eigen: str | None = None) -> KroneckerOperator:
    """K-FAC of accumulated factors.

    Args:
        factors: a pass over data, or the sum of several.
        params: the parameters, whose shapes and layouts vectors have.
        eigen: "device", or "host" for float64; default as in the settings.

    Raises:
        ValueError: listing the parameters that do not fit, or when the host is asked for while tracing.
    """
    _check_fit(factors.table, params)
    return _operator(params, eigendecompose(factors, params, eigen=eigen), _all_sides(factors), 0.0)


def mean_eigenvalues(eigen: KroneckerEigen) -> dict[str, Array]:
    """By path, the mean eigenvalue of each matrix (or vector) of a stack, [*stack, 1, 1]; 0 for a zero block."""
    means = {}
    for row in eigen.table.rows:
        values = eigen.values.get(row.path)
        axes = tuple(range(row.stacked, len(row.shape)))
        means[row.path] = jnp.float32(0.0) if values is None else jnp.mean(values, axis=axes, keepdims=True)
    return means


def differences(table: Table, params: Params) -> list[str]:
    """Every difference between the parameters of `table` and `params`, one a line."""
    here = {path: tuple(x.shape) for path, x in paths_of(params)}
    there = {row.path: row.shape for row in table.rows}
    problems = [f"{path} {list(there[path])} is not among these parameters" for path in there if path not in here]
    for path, shape in here.items():
        if path not in there:
            problems.append(f"{path} {list(shape)} has no block")
        elif there[path] != shape:
            problems.append(f"{path} is {list(shape)}, its block is for {list(there[path])}")
    return problems


def _check_fit(table: Table, params: Params) -> None:
    if problems := differences(table, params):
        raise ValueError("these factors do not fit the parameters:\n- " + "\n- ".join(problems))


@jax.jit
def _all_sides(factors: KroneckerFactors) -> Sides:
    return {row.path: factors.sides(row) for row in factors.table.rows if row.terms and row.block != "diagonal"}


def _operator(like: Params, eigen: KroneckerEigen, sides: Sides, damping: Damping) -> KroneckerOperator:
    def block(row: Row, V: Array, eigen: KroneckerEigen, sides: Sides, damping: Damping) -> Array:
        if row.path in sides:
            product = sum(_sandwich(left, V, right, row) for left, right in sides[row.path])
        else:
            product = _in_basis(row, V, eigen, lambda values: values)
        return product + _at(damping, row.path) * V

    mv = _by_block(block, like, (eigen, sides, damping))
    return KroneckerOperator(mv, like, True, eigen=eigen, sides=sides, damping=damping)


def _by_block(block: Callable[..., Array], like: Params, data: tuple) -> Callable[[PyTree], PyTree]:
    """`v -> (block(row, V, *data) of each parameter)`, laid out like the parameters."""
    table = data[0].table

    def mv(v: PyTree) -> PyTree:
        def whole(v: PyTree, data: tuple) -> PyTree:
            return map_paths(lambda path, V: block(table[path], V, *data).astype(V.dtype), v)

        return tree.shard_like(auto(whole, jax.tree.map(wide, v), data, like=like), like)

    return mv


def _in_basis(row: Row, V: Array, eigen: KroneckerEigen, function: Callable[[Array], Array]) -> Array:
    left, right = eigen.basis(row)
    values = eigen.values.get(row.path, jnp.zeros((), V.dtype))
    return _sandwich(left, function(values) * _sandwich(_transposed(left), V, right, row), _transposed(right), row)


def _noise(row: Row, values: Array) -> Array:
    """What rounding leaves of an eigenvalue 0: the square of a projection accurate to `eps` of the largest."""
    axes = tuple(range(row.stacked, values.ndim))
    size = max(row.shape[row.stacked :], default=1)
    return (jnp.finfo(values.dtype).eps * size) ** 2 * jnp.max(values, axis=axes, keepdims=True)


def _transposed(Q: Array | None) -> Array | None:
    return None if Q is None else jnp.swapaxes(Q, -1, -2)


def _sandwich(left: Array | None, V: Array, right: Array | None, row: Row) -> Array:
    """`left V right`, each side a matrix, a diagonal or None for the identity."""
    if left is not None:
        dense = left.ndim - row.stacked == 2
        V = jnp.matmul(left, V, precision="highest") if dense else left[..., :, None] * V
    if right is not None:
        dense = right.ndim - row.stacked == 2
        V = jnp.matmul(V, right, precision="highest") if dense else V * right[..., None, :]
    return V


def _at(damping: Damping, path: str) -> Any:
    return damping.get(path, 0.0) if isinstance(damping, dict) else damping
