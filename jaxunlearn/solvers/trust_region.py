"""Cubic-regularised and trust-region steps: the best step of an indefinite quadratic model, from one Lanczos run.

For a gradient g (here `b = -g`) and a symmetric A of any signature,

    cubic:          min_d  g.d + d.A d / 2 + (L / 6) ||d||^3        lambda = (L / 2) ||d||
    trust region:   min_d  g.d + d.A d / 2,  ||d|| <= radius        lambda (radius - ||d||) = 0

A step is a global minimum if and only if

    (A + lambda I) d = -g,        A + lambda I >= 0,        lambda >= 0,

so either problem is a search for one number, the damping that suits the step: see `secular`. In a Krylov space A is the
tridiagonal T, and k products answer for every lambda. Negative curvature is no obstacle but an opportunity, the step
goes along it: this is how a Newton method leaves a saddle.

A Krylov space of b never holds an eigenvector that b is exactly orthogonal to (the hard case of A, against that of T).
Where that may happen, at a saddle with symmetry, `perturbation` starts the run from b plus a little noise; the model
keeps the b that was given.

References: Nesterov and Polyak, "Cubic regularization of Newton method", 2006; Cartis, Gould and Toint, "Adaptive
cubic regularisation methods", 2011; Gould, Lucidi, Roma and Toint, "Solving the trust-region subproblem using the
Lanczos method", 1999; Carmon and Duchi, "Analysis of Krylov subspace solutions of regularized nonconvex quadratic
problems", 2018 (the perturbation).
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxunlearn import tree
from jaxunlearn.solvers import krylov
from jaxunlearn.solvers.lanczos import LanczosState, tridiagonalization
from jaxunlearn.solvers.protocol import relative
from jaxunlearn.solvers.secular import secular
from jaxunlearn.solvers.tridiagonal import Tridiagonalization, ritz


class SecularInfo(NamedTuple):
    """What a cubic or trust-region solve did: the fields of `SolveInfo`, and three more.

    Attributes:
        status: a `Status` code; `CONVERGED` when `relative_residual <= rtol`.
        steps: operator products spent.
        relative_residual: `||b - (A + damping I) x|| / ||b||`.
        residual_norms: `||b - (A + damping I) x||` of x = 0 with no damping and of the step, shape [2].
        min_curvature: smallest Ritz value.
        max_curvature: largest one.
        damping: `lambda`, the damping under which the step is the solution of the linear system.
        decrease: by how much the regularised (cubic) or the plain (trust region) model falls, at least 0.
        hard_case: whether a multiple of the lowest Ritz vector had to be added.
    """

    status: Int[Array, ""]
    steps: Int[Array, ""]
    relative_residual: Float[Array, ""]
    residual_norms: Float[Array, " 2"]
    min_curvature: Float[Array, ""]
    max_curvature: Float[Array, ""]
    damping: Float[Array, ""]
    decrease: Float[Array, ""]
    hard_case: Bool[Array, ""]


class SecularSolver(krylov.KrylovSolver):
    """What both problems share. A problem is `length(damping)`, the length that a step has under its own damping, and
    `penalty(length)`, what the model adds to the quadratic for it.
    """

    rtol: float
    perturbation: float
    seed: int

    def __post_init__(self):
        super().__post_init__()
        for name in ("rtol", "perturbation"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{type(self).__name__}({name}={getattr(self, name)}): give a share between 0 and 1, below 1"
                )

    def init(self, b: PyTree, x0: PyTree | None = None, Ax0: PyTree | None = None) -> LanczosState:
        """State before the first product."""
        if self.perturbation == 0 or x0 is not None:
            return super().init(b, x0)
        b_norm, noise = tree.norm(b), tree.normal_like(jax.random.key(self.seed), b)
        v = tree.axpy(self.perturbation * b_norm / tree.norm(noise), noise, b)
        return self.start_from(v, b, b_norm)

    def result(self, state: LanczosState) -> tuple[PyTree, SecularInfo]:
        """`(x, SecularInfo)` after any number of steps."""
        T, b = tridiagonalization(state), state.carried
        inside = beyond = None
        if b is not None:  # what of b lies beyond the space is a residual too
            inside = krylov.project(T, b)
            beyond = tree.sub(b, krylov.combine(T, inside))
        y, info = _in_the_space(self, T._replace(basis=None), inside, beyond, state.b_norm)
        return krylov.combine(T, y), info


@partial(jax.jit, static_argnums=0)
def _in_the_space(
    solver: SecularSolver, T: Tridiagonalization, inside: Array | None, beyond: PyTree | None, b_norm: Array
) -> tuple[Array, SecularInfo]:
    """Coordinates of the step, and the record: all but the basis."""
    theta, S = ritz(T)
    c = (jnp.zeros_like(theta).at[0].set(T.norm) if inside is None else inside) @ S
    damping, z, hard = secular(theta, c, solver.length)
    y, size = S @ z, jnp.linalg.norm(z)
    residual = krylov.last(T, y)
    if beyond is not None:
        residual = tree.norm(tree.axpy(-y[jnp.maximum(T.steps - 1, 0)], T.residual, beyond))
    rounding = jnp.finfo(theta.dtype).eps * (jnp.max(jnp.abs(theta)) + damping) * size
    residual = jnp.maximum(residual, rounding)
    error = relative(residual, b_norm)
    base = krylov.info(T, theta, error, jnp.stack([b_norm, residual]), converged=error <= solver.rtol)
    decrease = jnp.sum(c * z) - jnp.sum(theta * z**2) / 2 - solver.penalty(size)
    return y, SecularInfo(*base[:6], damping, decrease, hard)


@dataclass(frozen=True)
class CubicRegularized(SecularSolver):
    """`x` minimises `x.A x / 2 - b.x + (L / 6) ||x||^3` in a Krylov space, b minus the gradient, A any symmetric map.

    Args:
        L: Lipschitz constant of the Hessian that the cubic term stands for, positive.
        steps: products to spend.
        rtol: relative residual of `(A + damping I) x = b` for the status `CONVERGED`. All steps are spent in any case.
        perturbation: length of the noise in the start vector, as a share of `||b||`; for the hard case.
        seed: of the noise.
        basis: "host" keeps it in the hosts' memory, for `solve_with_host_basis`.

    Raises:
        ValueError: for settings out of range, and for a start `x0`.

    Example:
        >>> from jaxunlearn.operators import LinearOperator
        >>> scale = jnp.array([-1.0, 2.0])  # indefinite: the damping must exceed 1
        >>> x, info = CubicRegularized(3.0, steps=2)(LinearOperator(lambda v: scale * v, scale), jnp.array([1.0, 0.0]))
        >>> x.round(3).tolist(), round(float(info.damping), 3)  # (lambda - 1) x = 1, lambda = 3 x / 2
        ([1.21..., 0.0], 1.82...)
    """

    L: float
    steps: int = 20
    rtol: float = 1e-3
    perturbation: float = 0.0
    seed: int = 0
    basis: Literal["device", "host"] = "device"

    def __post_init__(self):
        super().__post_init__()
        if not self.L > 0:
            raise ValueError(f"CubicRegularized(L={self.L}): give a positive Lipschitz constant")

    def length(self, damping: Float[Array, ""]) -> Float[Array, ""]:
        """`2 lambda / L`."""
        return 2 * damping / self.L

    def penalty(self, size: Float[Array, ""]) -> Float[Array, ""]:
        """`(L / 6) ||x||^3`."""
        return self.L / 6 * size**3


@dataclass(frozen=True)
class TrustRegionLanczos(SecularSolver):
    """`x` minimises `x.A x / 2 - b.x` over `||x|| <= radius` in a Krylov space, b minus the gradient.

    A is any symmetric map. The length is Euclidean; `damping` is 0 where x is inside.

    Args:
        radius: bound on the length of the step, positive.
        steps, rtol, perturbation, seed, basis: as in `CubicRegularized`.

    Raises:
        ValueError: for settings out of range, and for a start `x0`.

    Example:
        >>> from jaxunlearn.operators import LinearOperator
        >>> scale = jnp.array([-1.0, 2.0])
        >>> A = LinearOperator(lambda v: scale * v, like=scale)
        >>> x, info = TrustRegionLanczos(2.0, steps=2)(A, jnp.array([1.0, 0.0]))
        >>> x.round(3).tolist(), round(float(info.damping), 3)
        ([2.0, 0.0], 1.5)
    """

    radius: float
    steps: int = 20
    rtol: float = 1e-3
    perturbation: float = 0.0
    seed: int = 0
    basis: Literal["device", "host"] = "device"

    def __post_init__(self):
        super().__post_init__()
        if not self.radius > 0:
            raise ValueError(f"TrustRegionLanczos(radius={self.radius}): give a positive length")

    def length(self, damping: Float[Array, ""]) -> Float[Array, ""]:
        """The radius."""
        return jnp.full_like(damping, self.radius)

    def penalty(self, size: Float[Array, ""]) -> Float[Array, ""]:
        """Nothing: the bound is on the length itself."""
        return jnp.zeros_like(size)
