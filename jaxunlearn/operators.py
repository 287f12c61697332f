"""Linear operators on parameter pytrees: a product, the structure it acts on, and whether it is positive semidefinite.

An operator is built inside the traced function that uses it and closes over traced arrays; the algebra below
(damping, scaling, sums, restriction) makes new operators without touching the product.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxunlearn import tree


@dataclass(frozen=True, eq=False)
class LinearOperator:
    """A symmetric map `v -> A v` on pytrees.

    Attributes:
        mv: the product; takes and returns an f32 tree with the shapes and shardings of `like`.
        like: a tree (usually the parameters) that gives shapes and shardings.
        psd: True when `<v, A v> >= 0` for every v is known by construction.

    Example:
        >>> import jax.numpy as jnp
        >>> A = LinearOperator(lambda v: 2.0 * v, like=jnp.zeros(3), psd=True)
        >>> float(A.damped(1.0)(jnp.ones(3))[0])
        3.0
    """

    mv: Callable[[PyTree], PyTree]
    like: PyTree
    psd: bool = False

    def __call__(self, v: PyTree) -> PyTree:
        return self.mv(v)

    def damped(self, damping: Float[Array, ""] | float) -> "LinearOperator":
        """`A + damping * I` (Tikhonov damping; `damping` in the units of A)."""
        return LinearOperator(lambda v: tree.axpy(damping, v, self(v)), self.like, self.psd)

    def power(self, p: float) -> "LinearOperator":
        """`A^p`; only operators with a closed form (the dual form of the empirical Fisher) have one."""
        raise TypeError(
            f"{type(self).__name__} has no closed-form power {p}; use the empirical Fisher in its dual form "
            "(curvature.empirical_fisher), or solve with solvers.cg for p = -1"
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class ScaledIdentity(LinearOperator):
    """`c I`, closed under damping and powers."""

    c: Float[Array, ""] | float = 1.0

    def damped(self, damping: Float[Array, ""] | float) -> "ScaledIdentity":
        return identity(self.like, self.c + damping)

    def power(self, p: float) -> "ScaledIdentity":
        return identity(self.like, self.c**p)


def identity(like: PyTree, c: Float[Array, ""] | float = 1.0) -> ScaledIdentity:
    """`c I`: with c = 1 the metric of plain gradient methods."""
    return ScaledIdentity(lambda v: tree.scale(c, v), like, True, c=c)


def scaled(c: Float[Array, ""] | float, A: LinearOperator, *, psd: bool = False) -> LinearOperator:
    """`c A`; say `psd=True` when A is and `c >= 0`."""
    return LinearOperator(lambda v: tree.scale(c, A(v)), A.like, psd)


def summed(*terms: LinearOperator) -> LinearOperator:
    """`A + B + ...` over one parameter structure, for example curvature on several data sets."""
    if not terms:
        raise ValueError("summed() needs at least one operator")

    def mv(v: PyTree) -> PyTree:
        out = terms[0](v)
        for term in terms[1:]:
            out = tree.add(out, term(v))
        return out

    return LinearOperator(mv, terms[0].like, all(term.psd for term in terms))


def restricted(A: LinearOperator, mask: PyTree) -> LinearOperator:
    """`M A M` with `M = diag(mask)`: the block of A on the parameters where `mask` is 1."""

    def keep(v: PyTree) -> PyTree:
        return jax.tree.map(lambda a, m: jnp.where(m, a, jnp.zeros_like(a)), v, mask)

    return LinearOperator(lambda v: keep(A(keep(v))), A.like, A.psd)


def to_dense(A: LinearOperator) -> Float[Array, "d d"]:
    """The matrix of A over the concatenated raveled leaves; for tests and problems of a few thousand unknowns."""
    leaves, structure = jax.tree.flatten(tree.to_vector(A.like))
    sizes = [leaf.size for leaf in leaves]
    bounds = [sum(sizes[:i]) for i in range(len(sizes) + 1)]

    def column(e: Array) -> Array:
        parts = [
            e[a:b].reshape(leaf.shape).astype(leaf.dtype)
            for a, b, leaf in zip(bounds[:-1], bounds[1:], leaves, strict=True)
        ]
        return jnp.concatenate([y.reshape(-1) for y in jax.tree.leaves(A(jax.tree.unflatten(structure, parts)))])

    return jax.lax.map(column, jnp.eye(bounds[-1], dtype=leaves[0].dtype)).T
