"""Functions of an operator in a Krylov space: `f(A) b` for any f, and every damping, from one Lanczos run.

With `A Q^T = Q^T T + r e^T` and `Q^T e_1 = b / ||b||`,

    f(A) b ~ ||b|| Q^T f(T) e_1,        T = S diag(theta) S^T,

which is exact for polynomials of degree below k, and exact altogether once the space is exhausted. Shifting A shifts
T and leaves the space alone, so the solutions of `(A + lambda I) x = b` for every lambda come from the same run, and
so do their norms, their decrease of the quadratic model and their residuals, k numbers each and no vector.

On a spectrum of bulk and outliers take more steps than there are outliers: `A^(-1/4) b` with 20 of them, from 1 to 1000
over a bulk between 0.1 and 0.2, has an error of 7% after 10 steps, of 0.4% after 20 and of rounding after 40.

References: Druskin and Knizhnerman 1989; Higham, "Functions of matrices", SIAM 2008, chapter 13; Frommer and
Simoncini 2008 (the identity for the residual of a shifted system).
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from jaxunlearn.operators import LinearOperator
from jaxunlearn.solvers import block, host_basis
from jaxunlearn.solvers.host_basis import HostBasis
from jaxunlearn.solvers.lanczos import LanczosState
from jaxunlearn.solvers.lanczos import init as lanczos_init
from jaxunlearn.solvers.lanczos import update as lanczos_update
from jaxunlearn.solvers.protocol import RUNNING, drive
from jaxunlearn.solvers.status import SolveInfo, Status
from jaxunlearn.solvers.tridiagonal import Tridiagonalization, ritz


class DampingPath(NamedTuple):
    """The solutions of `(A + lambda I) x = b` for an array of dampings, without a solution being formed.

    Attributes:
        damping: `lambda`, shape [d].
        solution_norm: `||x||`.
        slope: `b.x`.
        curvature: `x.A x`, undamped: for A the Gauss-Newton matrix twice the predicted KL of the step x.
        decrease: `b.x - x.A x / 2`, by how much the undamped quadratic model falls.
        residual: `||b - (A + lambda I) x||`, beyond the Krylov space.
        positive_definite: whether `T + lambda I` is; where it is not, x is a saddle of the damped model.
    """

    damping: Float[Array, " d"]
    solution_norm: Float[Array, " d"]
    slope: Float[Array, " d"]
    curvature: Float[Array, " d"]
    decrease: Float[Array, " d"]
    residual: Float[Array, " d"]
    positive_definite: Bool[Array, " d"]


class KrylovSolver:
    """What the solvers on a Lanczos basis share: all but `result(state) -> (x, info)`, which makes x out of T.

    They follow `protocol.IterativeSolver`, so each runs inside `jit` and, by `solve_on_host`, on the host. A solver is
    a frozen dataclass with the fields below; its basis takes `4 steps` bytes a parameter in f32.

    Attributes:
        steps: products to spend.
        basis: where it is kept: "device" or, for `solve_with_host_basis`, "host".
    """

    steps: int
    basis: Literal["device", "host"]

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"{type(self).__name__}(steps={self.steps}): at least one product is needed")
        if self.basis not in ("device", "host"):
            raise ValueError(f'{type(self).__name__}(basis={self.basis!r}): give "device" or "host"')

    def __call__(self, A: LinearOperator, b: PyTree, x0: PyTree | None = None) -> tuple[PyTree, SolveInfo]:
        if self.basis == "host":
            raise ValueError(f'{self} keeps its basis on the host: use solve_with_host_basis, or give basis="device"')
        return self.result(drive(self, A, b, x0))

    def init(self, b: PyTree, x0: PyTree | None = None, Ax0: PyTree | None = None) -> LanczosState:
        """The Krylov space starts from b; there is no warm start."""
        if x0 is not None:
            raise ValueError(f"{self}: its space starts from b and has no use for a start x0; pass None")
        return self.start_from(b)

    def start_from(
        self, v: PyTree, carried: PyTree | None = None, b_norm: Float[Array, ""] | None = None
    ) -> LanczosState:
        """State of a run from the start vector v."""
        return lanczos_init(
            v, self.steps, carried=carried, b_norm=b_norm, basis=HostBasis() if self.basis == "host" else None
        )

    def direction(self, state: LanczosState) -> PyTree:
        """The vector whose product `update` asks for."""
        return state.vector

    def update(self, state: LanczosState, product: PyTree) -> LanczosState:
        """One Lanczos step."""
        return lanczos_update(state, product)


def combine(T: Tridiagonalization, y: Float[Array, " k"]) -> PyTree:
    """`Q^T y`: a point of the Krylov space from its coordinates."""
    rows = host_basis if isinstance(T.basis, HostBasis) else block
    return rows.expand(T.basis, y, T.residual)


def project(T: Tridiagonalization, v: PyTree) -> Float[Array, " k"]:
    """`Q v`: the coordinates of the point of the Krylov space that is nearest to v."""
    if not isinstance(T.basis, HostBasis):
        return block.project(T.basis, v)
    c = host_basis.project(T.basis, v)
    return jnp.zeros_like(T.diagonal).at[: c.shape[0]].set(c)


def coordinates(T: Tridiagonalization, f: Callable[[Array], Array]) -> Float[Array, " k"]:
    """`||b|| f(T) e_1`: the coordinates of `f(A) b` in the Krylov space; f acts on an array of eigenvalues."""
    theta, S = ritz(T)
    return T.norm * (S @ (f(theta) * S[0]))


def matrix_function(T: Tridiagonalization, f: Callable[[Array], Array]) -> PyTree:
    """`f(A) b`, b the start vector of the run.

    Example:
        >>> from jaxunlearn.solvers import lanczos
        >>> scale = jnp.array([1.0, 4.0, 9.0])
        >>> T = lanczos(lambda v: scale * v, jnp.ones(3), steps=3)
        >>> matrix_function(T, jnp.sqrt).round(4).tolist()
        [1.0, 2.0, 3.0]
    """
    return combine(T, coordinates(T, f))


def power(T: Tridiagonalization, p: float, damping: Float[Array, ""] | float = 0.0) -> PyTree:
    """`(A + damping I)^p b`; see `spectral_power` for what is done about Ritz values that are zero or negative."""
    return matrix_function(T, lambda theta: spectral_power(theta + damping, p))


def solution(T: Tridiagonalization, damping: Float[Array, ""] | float = 0.0) -> PyTree:
    """`(A + damping I)^-1 b`."""
    return power(T, -1.0, damping)


def spectral_power(theta: Float[Array, " k"], p: float, *, absolute: bool = False) -> Float[Array, " k"]:
    """`theta^p`, finite for every theta.

    Negative values keep their sign under an integer power. A power that is not an integer is taken of `|theta|`: of
    the two real readings (clip to zero, or absolute value) the one that does not make a strongly curved direction
    look flat (Dauphin et al., NeurIPS 2014, use it for p = -1: `absolute=True`). Under a negative power values within
    rounding of zero count as the rounding unit of the largest one.
    """
    size = jnp.abs(theta)
    powered = (jnp.maximum(size, _floor(theta)) if p < 0 else size) ** p
    keeps_sign = float(p).is_integer() and int(p) % 2 == 1 and not absolute
    return jnp.where(theta < 0, -powered, powered) if keeps_sign else powered


def indefinite(theta: Float[Array, " k"]) -> Bool[Array, ""]:
    """Whether some Ritz value is negative by more than rounding."""
    return jnp.min(theta) < -10 * jnp.finfo(theta.dtype).eps * jnp.max(jnp.abs(theta))


def last(T: Tridiagonalization, y: Float[Array, "*d k"]) -> Float[Array, "*d"]:
    """`||r|| |e.y|`, the length of `r e^T y`: how far A takes the point with coordinates y out of the Krylov space."""
    return T.residual_norm * jnp.abs(jnp.take(y, jnp.maximum(T.steps - 1, 0), axis=-1))


def damping_path(T: Tridiagonalization, dampings: Float[Array, " d"]) -> DampingPath:
    """What the solution does for every damping: choose one by its norm, its predicted KL or its residual.

    Example:
        >>> from jaxunlearn.solvers import lanczos
        >>> scale = jnp.array([1.0, 3.0])
        >>> T = lanczos(lambda v: scale * v, jnp.array([2.0, 4.0]), steps=2)
        >>> path = damping_path(T, jnp.array([0.0, 1.0]))  # solutions (2, 4/3) and (1, 1)
        >>> path.solution_norm.round(3).tolist(), path.curvature.round(3).tolist()
        ([2.40..., 1.41...], [9.33..., 4.0])
    """
    theta, S = ritz(T)
    dampings = jnp.asarray(dampings, theta.dtype)
    shifted = theta + dampings[:, None]
    z = T.norm * S[0] / (jnp.where(shifted < 0, -1.0, 1.0) * jnp.maximum(jnp.abs(shifted), _floor(shifted)))
    slope, curvature = T.norm * (z @ S[0]), jnp.sum(theta * z**2, axis=-1)
    return DampingPath(
        dampings, jnp.linalg.norm(z, axis=-1), slope, curvature, slope - curvature / 2, last(T, z @ S.T),
        jnp.min(shifted, axis=-1) > 0,
    )  # fmt: skip


def _floor(theta: Float[Array, "*d k"]) -> Float[Array, "*d 1"]:
    """What a zero counts as where it is divided by: the rounding unit of the largest value, 1 among zeros."""
    largest = jnp.max(jnp.abs(theta), axis=-1, keepdims=True)
    return jnp.where(largest > 0, jnp.finfo(theta.dtype).eps * largest, 1.0)


def info(
    T: Tridiagonalization, theta: Float[Array, " k"], error: Array, norms: Float[Array, " n"], *, converged: Array
) -> SolveInfo:
    """The record of a solve that spent all its steps: `CONVERGED`, `MAX_STEPS` or `NON_FINITE`."""
    broken = T.status == int(Status.NON_FINITE)
    status = jnp.where(converged, int(Status.CONVERGED), int(Status.MAX_STEPS))
    status = jnp.where(broken, int(Status.NON_FINITE), jnp.where(T.status == RUNNING, RUNNING, status))
    reached = jnp.arange(T.diagonal.shape[0]) < T.steps
    return SolveInfo(
        status.astype(jnp.int32), T.steps + broken, error, norms, theta[0], theta[-1],
        alphas=jnp.where(reached, T.diagonal, 0.0), betas=jnp.append(T.off_diagonal, 0.0),
    )  # fmt: skip
