"""Randomised Nystrom approximation of a positive semidefinite operator, and the preconditioner made of it.

With k random vectors as the rows of `W` and `Y = A W`, the best positive semidefinite guess at A from these products is

    A_nys = Y^T (W Y^T)^+ Y = U^T diag(s) U,        0 <= A_nys <= A,

with orthonormal rows in U. Where the spectrum has a few outliers over a small bulk, as curvature has, A_nys catches the
outliers, and

    P^-1 = (s_k + mu) U^T diag(1 / (s + mu)) U + (I - U^T U)

flattens them: once k is about twice the effective dimension `tr A (A + mu I)^-1`, the preconditioned `A + mu I` has a
condition number of about a constant (at most 28 in expectation), and CG takes a few dozen steps whatever the
conditioning was.

The pseudo-inverse is taken of a shifted matrix, `Y + nu W` in place of Y, and nu is subtracted from the eigenvalues at
the end (Tropp et al. 2017); nu is the size of the rounding of the product. Everything is a k x k eigenproblem of Gram
matrices, and U is orthonormalised twice, so no leaf is flattened. Memory: `4 k` bytes a parameter for U, five times
that while it is made (measured).

References: Frangella, Tropp and Udell, "Randomized Nystrom preconditioning", SIMAX 2023; Tropp, Yurtsever, Udell and
Cevher, "Fixed-rank approximation of a positive-semidefinite matrix from streaming data", NeurIPS 2017.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxunlearn import tree
from jaxunlearn.operators import LinearOperator, block_product
from jaxunlearn.solvers import block
from jaxunlearn.solvers.cg import CG
from jaxunlearn.solvers.status import SolveInfo


@dataclass(frozen=True, eq=False, kw_only=True)
class NystromApproximation(LinearOperator):
    """`U^T diag(s) U + damping I`, closed under damping and powers.

    Attributes:
        vectors: `U`, leaves [k, *shape], orthonormal rows; zero rows where A has no rank left.
        values: `s`, descending, shape [k].
        damping: added multiple of the identity.
    """

    vectors: PyTree
    values: Float[Array, " k"]
    damping: Float[Array, ""] | float = 0.0

    def damped(self, damping: Float[Array, ""] | float) -> "NystromApproximation":
        return _approximation(self.vectors, self.values, self.damping + damping, self.like)

    def power(self, p: float) -> LinearOperator:
        """`(U^T diag(s) U + damping I)^p`; a negative power needs positive damping."""
        lam = jnp.asarray(self.damping, self.values.dtype)
        return _spectral(self.vectors, lam**p, (self.values + lam) ** p, self.like)

    def preconditioner(self, damping: Float[Array, ""] | float = 0.0) -> LinearOperator:
        """`P^-1` for `A + damping I`, with the damping that this operator has already counted in.

        Hand it to `CG(preconditioner=...)`.
        """
        shifted = self.values + self.damping + damping
        unit = jnp.finfo(shifted.dtype)
        shifted = jnp.maximum(shifted, jnp.maximum(unit.eps * shifted[0], unit.tiny))
        return _spectral(self.vectors, jnp.ones_like(shifted[-1]), shifted[-1] / shifted, self.like)


def nystrom(
    A: LinearOperator, key: Array, rank: int, *, batch_size: int | None = None, on_host: bool = False
) -> NystromApproximation:
    """Nystrom approximation from `rank` products with random vectors.

    Args:
        A: a positive semidefinite operator, without its damping if the preconditioner shall serve several.
        key: random key.
        rank: k; about twice the number of eigenvalues above the damping.
        batch_size: vectors multiplied at once (`operators.block_product`).
        on_host: multiply one vector after the other from the host, for operators that cannot be compiled
            (`curvature.streamed`).

    Raises:
        ValueError: when A is not known to be positive semidefinite.

    Example:
        >>> scale = jnp.array([100.0, 10.0, 0.0, 0.0])
        >>> A = LinearOperator(lambda v: scale * v, like=scale, psd=True)
        >>> found = nystrom(A, jax.random.key(0), rank=2)
        >>> found.values.round(2).tolist(), found.damped(1.0).power(-1.0)(jnp.ones(4)).round(3).tolist()
        ([100.0, 10.0], [0.01..., 0.09..., 1.0, 1.0])
    """
    if not A.psd:
        raise ValueError(
            "nystrom(): the operator is not known to be positive semidefinite (psd=False), without which the "
            "approximation may be anything; use the Gauss-Newton or Fisher operator of the same data"
        )
    if rank < 1:
        raise ValueError(f"nystrom(rank={rank}): at least one product is needed")
    sketch = jax.lax.map(lambda k: tree.normal_like(k, A.like), jax.random.split(key, rank))
    W = block.orthonormalise(sketch)
    Y = _one_by_one(A, W) if on_host else block_product(A, W, batch_size)
    # How much the product rounds is decided by the coarsest of the parameters' dtypes.
    unit = max(float(jnp.finfo(a.dtype).eps) for a in jax.tree.leaves(A.like))
    size = jnp.linalg.norm(_symmetric(block.gram(Y, Y))) ** 0.5
    nu = jnp.maximum(unit * size, jnp.finfo(size.dtype).tiny)
    Y = tree.add(Y, tree.scale(nu, W))
    core, basis = jnp.linalg.eigh(_symmetric(block.gram(W, Y)))
    B = block.mix(Y, basis * jnp.maximum(core, nu) ** -0.5)
    s, rotation = jnp.linalg.eigh(_symmetric(block.gram(B, B)))
    s, rotation = s[::-1], rotation[:, ::-1]
    real = s > 4 * nu  # below, a direction is made of rounding
    U = block.mix(B, rotation * jnp.where(real, jnp.where(real, s, 1.0) ** -0.5, 0.0))
    return _approximation(_nearest_orthonormal(U), jnp.where(real, s - nu, 0.0), 0.0, A.like)


@dataclass(frozen=True)
class NystromCG:
    """CG with a Nystrom preconditioner made anew for each operator: `rank` more products than `info.steps` says.

    It pays where CG alone would take several times `rank` steps. The operator arrives damped and is sketched as it is.

    Args:
        rank: random vectors, about twice the number of outlying eigenvalues.
        max_steps: as in `CG`.
        rtol: as in `CG`.
        progress: as in `CG`.
        seed: of the random vectors.
        batch_size: vectors multiplied at once.

    Example:
        >>> scale = jnp.concatenate([jnp.geomspace(10.0, 1e4, 10), jnp.ones(90)])
        >>> A = LinearOperator(lambda v: scale * v, like=scale, psd=True)
        >>> plain, helped = CG(200, 1e-4, None)(A, jnp.ones(100))[1], NystromCG(20, 200, 1e-4)(A, jnp.ones(100))[1]
        >>> bool(helped.steps < plain.steps / 2)
        True
    """

    rank: int = 20
    max_steps: int = 20
    rtol: float = 1e-3
    progress: float | None = 5e-4
    seed: int = 0
    batch_size: int | None = None

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"NystromCG(rank={self.rank}): at least one random vector is needed")
        CG(self.max_steps, self.rtol, self.progress)

    def __call__(self, A: LinearOperator, b: PyTree, x0: PyTree | None = None) -> tuple[PyTree, SolveInfo]:
        found = nystrom(A, jax.random.key(self.seed), self.rank, batch_size=self.batch_size)
        return CG(self.max_steps, self.rtol, self.progress, found.preconditioner())(A, b, x0)


def _one_by_one(A: LinearOperator, W: PyTree) -> PyTree:
    rows = [A(jax.tree.map(lambda x, i=i: x[i], W)) for i in range(len(jax.tree.leaves(W)[0]))]
    return tree.shard_like(jax.tree.map(lambda *parts: jnp.stack(parts), *rows), W)


def _approximation(U: PyTree, s: Array, damping: Array | float, like: PyTree) -> NystromApproximation:
    A = _spectral(U, damping, s + damping, like)
    return NystromApproximation(A.mv, like, True, vectors=U, values=s, damping=damping)


def _spectral(U: PyTree, outside: Array | float, inside: Float[Array, " k"], like: PyTree) -> LinearOperator:
    """`inside_i` along the i-th row of U, `outside` along everything orthogonal to them."""

    def mv(v: PyTree) -> PyTree:
        return tree.axpy(outside, v, block.expand(U, (inside - outside) * block.project(U, v), v))

    return LinearOperator(mv, like, psd=True)


def _nearest_orthonormal(U: PyTree) -> PyTree:
    """`(U U^T)^(-1/2) U`: the second pass, which keeps each row what it is. Zero rows stay zero."""
    values, vectors = jnp.linalg.eigh(_symmetric(block.gram(U, U)))
    root = (vectors * jnp.where(values > 0.5, jnp.maximum(values, 0.5) ** -0.5, 0.0)) @ vectors.T
    return block.mix(U, root)


def _symmetric(M: Float[Array, "k k"]) -> Float[Array, "k k"]:
    return (M + M.T) / 2
