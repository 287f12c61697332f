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


@dataclass(frozen=True, eq=False)
class Factor:
    """A square root `S` of a positive semidefinite operator, `A = S S^T`, as a map from a dual space.

    With `eps` standard normal in the dual space, `S eps` has covariance A, at the cost of half a product.

    Attributes:
        forward: `c -> S c`, from a dual tree to an f32 tree with the shapes and shardings of `like`.
        transpose: `v -> S^T v`, the other way.
        like: a tree (usually the parameters) that gives shapes and shardings.

    Example:
        >>> import jax.numpy as jnp
        >>> S = Factor(lambda c: jnp.array([2.0, 1.0]) * c, lambda v: jnp.array([2.0, 1.0]) @ v, like=jnp.zeros(2))
        >>> S.operator()(jnp.array([1.0, 0.0])).tolist()  # [2, 1] [2, 1]^T
        [4.0, 2.0]
    """

    forward: Callable[[PyTree], PyTree]
    transpose: Callable[[PyTree], PyTree]
    like: PyTree

    def operator(self) -> LinearOperator:
        """`S S^T`."""
        return LinearOperator(lambda v: self.forward(self.transpose(v)), self.like, psd=True)

    def sample(self, key: Array) -> PyTree:
        """`S eps` with `eps` standard normal: a draw from the normal distribution of covariance `S S^T`."""
        return self.forward(tree.normal_like(key, self.transpose(tree.zeros_like(self.like))))


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


def scaled(c: Float[Array, ""] | float, A: LinearOperator, *, psd: bool | None = None) -> LinearOperator:
    """`c A`. A traced `c` has no known sign: say `psd=True` when A is and `c >= 0`."""
    known = isinstance(c, int | float) and c >= 0
    return LinearOperator(lambda v: tree.scale(c, A(v)), A.like, A.psd and known if psd is None else psd)


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


def difference(A: LinearOperator, B: LinearOperator, weight: Float[Array, ""] | float = 1.0) -> LinearOperator:
    """`A - weight B`, for example the curvature of retain less that of forget. Never known to be semidefinite."""
    return LinearOperator(lambda v: tree.axpy(-weight, B(v), A(v)), A.like)


def pooled(*terms: tuple[LinearOperator, Float[Array, ""] | float]) -> LinearOperator:
    """`sum_i n_i A_i / sum_i n_i`: the mean over a union of data sets from the means `A_i` over `n_i` loss tokens.

    A negative count removes a data set from one that contains it, exactly: with `D = D_r + D_f`,
    `pooled((H_D, n_D), (H_f, -n_f))` is `H_r`, the curvature of a retain set that is not at hand.

    Example:
        >>> import jax.numpy as jnp
        >>> A, B = identity(jnp.zeros(2), 1.0), identity(jnp.zeros(2), 4.0)
        >>> pooled((A, 20), (B, 10))(jnp.ones(2)).tolist()
        [2.0, 2.0]
    """
    total = sum(n for _, n in terms)
    if isinstance(total, int | float) and total <= 0:
        raise ValueError(f"pooled(): the counts add to {total}; a mean needs a positive number of loss tokens")
    return summed(*(scaled(n / total, A) for A, n in terms))


def restricted(A: LinearOperator, mask: PyTree) -> LinearOperator:
    """`M A M` with `M = diag(mask)`: the block of A on the parameters where `mask` is 1."""

    def keep(v: PyTree) -> PyTree:
        return jax.tree.map(lambda a, m: jnp.where(m, a, jnp.zeros_like(a)), v, mask)

    return LinearOperator(lambda v: keep(A(keep(v))), A.like, A.psd)


def block_product(A: LinearOperator, V: PyTree, batch_size: int | None = None) -> PyTree:
    """`A V` for k vectors stacked along a leading axis of every leaf; the result is laid out like V.

    Args:
        A: an operator on single vectors.
        V: leaves [k, ...].
        batch_size: vectors multiplied at once. They share whatever does not depend on them (the forward pass of a
            curvature product) at `batch_size` times the memory of one product's tangents; `None` takes one at a time.

    Example:
        >>> import jax.numpy as jnp
        >>> A = LinearOperator(lambda v: jnp.array([1.0, 2.0]) * v, like=jnp.zeros(2))
        >>> block_product(A, jnp.array([[1.0, 1.0], [3.0, 0.5]]), batch_size=2).tolist()
        [[1.0, 2.0], [3.0, 1.0]]
    """
    return tree.shard_like(jax.lax.map(A, V, batch_size=batch_size), V)


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
