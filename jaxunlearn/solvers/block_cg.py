"""Block conjugate gradients: k systems `A x_j = b_j` at once, each searching in the Krylov spaces of all.

One block product (A times k vectors, which share the forward pass of a curvature product) feeds k searches. A block of
k finds k outlying eigenvalues a step, so on a spectrum with spikes it takes far fewer block products than the k
separate solves take products (O'Leary 1980).

Residuals that become dependent, or vanish at different times, make the k x k matrices of the textbook recurrence
singular. Here the residuals are kept factorised, `R = Q C` with orthonormal rows in Q and a k x k matrix C (Dubrulle
2001), so that the recurrence sees orthonormal vectors only and all badness of scale is in C:

    M = P^T A P,        X += P M^-1 C,        Q' Z = qr(Q - A P M^-1),        C <- Z C,        P <- Q' + P Z^T

The factorisation is Gram-Schmidt, done twice. A vector within rounding of those before it becomes a zero row and stays
one: its system goes on through the others' directions. Blocks have their k vectors along the leading axis of every
leaf, which is never sharded; the k x k matrices are on every device.

References: O'Leary, "The block conjugate gradient algorithm and related methods", Linear Algebra Appl. 29, 1980;
Dubrulle, "Retooling the method of block conjugate gradients", ETNA 12, 2001.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxunlearn import tree
from jaxunlearn.operators import LinearOperator, block_product
from jaxunlearn.solvers import block
from jaxunlearn.solvers.protocol import RUNNING, drive, first, padded, relative, zeros
from jaxunlearn.solvers.status import SolveInfo, Status


class BlockCGState(NamedTuple):
    """State between two block products.

    Attributes:
        x: iterates, leaves [k, ...].
        q: orthonormal residual directions; `b_j - A x_j = sum_i C_ij q_i`.
        p: search directions, the next block to be multiplied.
        c: the matrix C.
        b_norms: `||b_j||`.
        steps: block products spent.
        status: a `Status` code.
        residual_norms: by step and system.
        min_curvature, max_curvature: as in `SolveInfo`.
    """

    x: PyTree
    q: PyTree
    p: PyTree
    c: Float[Array, "k k"]
    b_norms: Float[Array, " k"]
    steps: Int[Array, ""]
    status: Int[Array, ""]
    residual_norms: Float[Array, "n k"]
    min_curvature: Float[Array, ""]
    max_curvature: Float[Array, ""]


@dataclass(frozen=True)
class BlockCG:
    """Solve `A x_j = b_j` for k right-hand sides, stacked along a leading axis: `X, info = BlockCG(...)(A, B)`.

    `info.steps` counts block products, `info.residual_norms` has shape [max_steps + 1, k], `info.relative_residual` is
    that of the worst system. There is no preconditioner.

    Args:
        max_steps: most block products to spend.
        rtol: converged when `||b_j - A x_j|| <= rtol ||b_j||` for every j.
        batch_size: vectors multiplied at once (`operators.block_product`).

    Raises:
        ValueError: for settings out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> A = LinearOperator(lambda v: jnp.array([1.0, 2.0, 4.0, 8.0]) * v, like=jnp.zeros(4), psd=True)
        >>> X, info = BlockCG(rtol=1e-6)(A, jnp.array([[1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 1.0, 2.0]]))
        >>> X.round(3).tolist(), int(info.steps)
        ([[1.0, 0.5, 0.25, 0.125], [0.0, 0.5, 0.25, 0.25]], 2)
    """

    max_steps: int = 20
    rtol: float = 1e-3
    batch_size: int | None = None

    def __post_init__(self):
        if self.max_steps < 1:
            raise ValueError(f"BlockCG(max_steps={self.max_steps}): at least one block product is needed")
        if not 0 <= self.rtol < 1:
            raise ValueError(f"BlockCG(rtol={self.rtol}): give a relative tolerance between 0 and 1")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(
                f"BlockCG(batch_size={self.batch_size}): give 1 or more vectors, or None for one at a time"
            )

    def __call__(self, A: LinearOperator, B: PyTree, x0: PyTree | None = None) -> tuple[PyTree, SolveInfo]:
        return self.result(drive(self, LinearOperator(lambda V: block_product(A, V, self.batch_size), B, A.psd), B, x0))

    def init(self, b: PyTree, x0: PyTree | None = None, Ax0: PyTree | None = None) -> BlockCGState:
        """State before the first step."""
        b_norms = jnp.sqrt(_squares(b))
        x = zeros(b)
        r = b
        if x0 is not None:
            x, r = _choose(b_norms > 0, x0, x), _choose(b_norms > 0, tree.sub(b, Ax0), b)
        r_norms = jnp.sqrt(_squares(r))
        q, z = orthonormal_rows(_scaled_rows(1.0 / jnp.where(r_norms > 0, r_norms, 1.0), r))
        state = BlockCGState(
            x, q, q, z * r_norms, b_norms, jnp.int32(0), jnp.int32(RUNNING), first(r_norms, self.max_steps + 1),
            jnp.array(jnp.inf, b_norms.dtype), jnp.array(-jnp.inf, b_norms.dtype),
        )  # fmt: skip
        return self._judge(state)

    def direction(self, s: BlockCGState) -> PyTree:
        """The block of search directions; rows that were given up are zero."""
        return s.p

    def update(self, s: BlockCGState, Ap: PyTree) -> BlockCGState:
        """Another k-dimensional piece of the search space, and the best iterates in it."""
        M = block.gram(s.p, Ap)
        finite = jnp.all(jnp.isfinite(M))
        M = jnp.where(finite, M + M.T, 2 * jnp.eye(M.shape[0], dtype=M.dtype)) / 2
        pp = _squares(s.p)
        active = pp > 0
        inverse, negative = _inverse(M, active)
        # As in CG, only the first directions may be followed against their curvature, by its absolute value.
        move = finite & (~negative | (s.steps == 0))
        inverse = jnp.where(move, inverse, 0.0)
        Ap = tree.where(finite, Ap, tree.zeros_like(Ap))
        x = tree.add(s.x, block.mix(s.p, inverse @ s.c))
        q, z = orthonormal_rows(tree.sub(s.q, block.mix(Ap, inverse)))
        c = z @ s.c
        steps = s.steps + 1
        rayleigh = jnp.diag(M) / jnp.where(active, pp, 1.0)
        lowest = jnp.minimum(s.min_curvature, jnp.min(jnp.where(active, rayleigh, jnp.inf)))
        highest = jnp.maximum(s.max_curvature, jnp.max(jnp.where(active, rayleigh, -jnp.inf)))
        status = jnp.where(negative, int(Status.NEGATIVE_CURVATURE), RUNNING)
        status = jnp.where(finite, status, int(Status.NON_FINITE))
        state = BlockCGState(
            x, q, tree.add(q, block.mix(s.p, z.T)), c, s.b_norms, steps, status.astype(jnp.int32),
            s.residual_norms.at[steps].set(jnp.linalg.norm(c, axis=0)),
            jnp.where(finite, lowest, s.min_curvature), jnp.where(finite, highest, s.max_curvature),
        )  # fmt: skip
        return self._judge(state)

    def result(self, s: BlockCGState) -> tuple[PyTree, SolveInfo]:
        """The iterates and the record of the solve so far."""
        worst = jnp.max(relative(s.residual_norms[s.steps], s.b_norms))
        norms = padded(s.residual_norms, s.steps)
        return s.x, SolveInfo(s.status, s.steps, worst, norms, s.min_curvature, s.max_curvature)

    def _judge(self, s: BlockCGState) -> BlockCGState:
        status = jnp.where(s.steps >= self.max_steps, int(Status.MAX_STEPS), RUNNING)
        converged = jnp.all(s.residual_norms[s.steps] <= self.rtol * s.b_norms)
        status = jnp.where(converged, int(Status.CONVERGED), status)
        return s._replace(status=jnp.where(s.status == RUNNING, status, s.status).astype(jnp.int32))


def orthonormal_rows(V: PyTree) -> tuple[PyTree, Float[Array, "k k"]]:
    """`V = Z^T Q`: orthonormal rows Q and upper triangular Z (the QR factorisation of the transpose).

    Rows of V of about unit length are expected. One within rounding of the span of those before it becomes a zero row.
    Gram-Schmidt, twice (Giraud et al. 2005, "The loss of orthogonality in the Gram-Schmidt process").

    Example:
        >>> import jax.numpy as jnp
        >>> Q, Z = orthonormal_rows(jnp.array([[1.0, 0.0], [3.0, 2.0], [1.0, 1.0]]))
        >>> Q.tolist(), Z.tolist()
        ([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], [[1.0, 3.0, 1.0], [0.0, 2.0, 1.0], [0.0, 0.0, 0.0]])
    """
    k = jax.tree.leaves(V)[0].shape[0]

    def row(j: Array, done: tuple[PyTree, Array]) -> tuple[PyTree, Array]:
        Q, Z = done
        v = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, j, 0, keepdims=False), V)
        before = tree.norm(v)
        once = block.project(Q, v)
        v = tree.sub(v, block.expand(Q, once, v))
        twice = block.project(Q, v)
        v = tree.sub(v, block.expand(Q, twice, v))
        size = tree.norm(v)
        keep = size > 10 * jnp.finfo(size.dtype).eps * jnp.maximum(before, 1.0)
        v = tree.scale(jnp.where(keep, 1.0 / jnp.where(keep, size, 1.0), 0.0), v)
        return block.put(Q, j, v), Z.at[:, j].set(once + twice).at[j, j].set(jnp.where(keep, size, 0.0))

    dtype = jnp.result_type(*jax.tree.leaves(V))
    return jax.lax.fori_loop(0, k, row, (zeros(V), jnp.zeros((k, k), dtype)))


def _inverse(M: Float[Array, "k k"], active: Bool[Array, " k"]) -> tuple[Float[Array, "k k"], Bool[Array, ""]]:
    """`|M|^-1` on the active rows, null directions left out, and whether M has a negative or zero eigenvalue there."""
    diagonal = jnp.diag(M)
    d = jnp.where(active & (diagonal != 0), jnp.abs(diagonal), 1.0) ** -0.5
    values, vectors = jnp.linalg.eigh(d[:, None] * M * d + jnp.diag(jnp.where(active, 0.0, 1.0)))
    null = 4 * M.shape[0] * jnp.finfo(M.dtype).eps
    keep = jnp.abs(values) > null
    inverse = (vectors * jnp.where(keep, 1.0 / jnp.where(keep, jnp.abs(values), 1.0), 0.0)) @ vectors.T
    negative = jnp.any(values < -null) | jnp.any(active & (diagonal <= 0))
    return d[:, None] * jnp.where(active[:, None] & active, inverse, 0.0) * d, negative


def _squares(V: PyTree) -> Float[Array, " k"]:
    parts = jax.tree.map(lambda a: jnp.sum(a * a, axis=tuple(range(1, a.ndim))), V)
    return jax.tree.reduce(jnp.add, parts)


def _scaled_rows(c: Float[Array, " k"], V: PyTree) -> PyTree:
    return jax.tree.map(lambda a: (c.reshape((-1,) + (1,) * (a.ndim - 1)) * a).astype(a.dtype), V)


def _choose(rows: Bool[Array, " k"], V: PyTree, W: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(rows.reshape((-1,) + (1,) * (a.ndim - 1)), a, b), V, W)
