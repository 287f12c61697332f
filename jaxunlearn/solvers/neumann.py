"""The Neumann series: `A^-1 b = s sum_j (I - s A)^j b`, summed by the iteration `x += s (b - A x)`.

It converges for positive definite A when `0 < s < 2 / lambda_max`, and then its residual `(I - s A)^j r_0` shrinks
every step. The scale s is the hard part in practice: guessed too large the series explodes, guessed too small it stands
still. Here it is one over an upper bound on the largest eigenvalue, taken from the first few products
(`spectral_bound`), and nobody has to choose it.

What it costs: with condition number `kappa`, a residual of eps takes about

    kappa ln(1 / eps)             products of the series,
    sqrt(kappa) ln(2 / eps) / 2   of CG,

so for a curvature damped to `kappa = 1000` about fifty times as many. CG is the better solver of a fixed system. The
series has its place where the operator changes at every step, as a minibatch curvature does (`LiSSA`), where a product
is too inexact for the recurrences of CG, and as a reference for methods that are defined by j steps of it.

Damping is the operator's: `Neumann()(A.damped(0.1), b)`.

References: Lorraine, Vicol and Duvenaud, "Optimizing millions of hyperparameters by implicit differentiation", AISTATS
2020 (the truncated series as an inverse); Agarwal, Bullins and Hazan, JMLR 18, 2017.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxunlearn import tree
from jaxunlearn.operators import LinearOperator
from jaxunlearn.solvers import spectral_bound
from jaxunlearn.solvers.protocol import RUNNING, drive, first, padded, relative, start
from jaxunlearn.solvers.status import SolveInfo, Status

# Rounding, and noise in a product, may lengthen a residual that stands still; a wrong scale lengthens it every step.
GROWTH = 1.01


class NeumannState(NamedTuple):
    """State between two products, the first few of which probe for the scale.

    Attributes:
        x: iterate.
        r: residual `b - A x`.
        probe: the Lanczos process that finds the scale.
        scale: s; 0 while probing.
        lowest: smallest residual norm so far.
        b_norm: `||b||`.
        steps: products spent, probes included.
        status: a `Status` code.
        residual_norms, min_curvature, max_curvature: as in `SolveInfo`.
    """

    x: PyTree
    r: PyTree
    probe: spectral_bound.Probe
    scale: Float[Array, ""]
    lowest: Float[Array, ""]
    b_norm: Float[Array, ""]
    steps: Int[Array, ""]
    status: Int[Array, ""]
    residual_norms: Float[Array, " n"]
    min_curvature: Float[Array, ""]
    max_curvature: Float[Array, ""]


@dataclass(frozen=True)
class Neumann:
    """Solve `A x = b` for a positive definite A by the Neumann series; call it as `x, info = Neumann(...)(A, b)`.

    `info.scale` is the scale that was chosen; a residual that grows ends the solve with `DIVERGED`, or with
    `NEGATIVE_CURVATURE` if the residual itself points along negative curvature, and the iterate before the growth.

    Args:
        max_steps: most products to spend, those for the scale included.
        rtol: converged when `||b - A x|| <= rtol ||b||`.
        probes: products spent on the scale.

    Raises:
        ValueError: for settings out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> A = LinearOperator(lambda v: jnp.array([1.0, 2.0, 4.0]) * v, like=jnp.zeros(3), psd=True)
        >>> x, info = Neumann(rtol=1e-5)(A, jnp.ones(3))
        >>> x.round(3).tolist(), round(float(info.scale), 4), Status(int(info.status)).name
        ([1.0, 0.5, 0.25], 0.25, 'CONVERGED')
    """

    max_steps: int = 100
    rtol: float = 1e-3
    probes: int = 8

    def __post_init__(self):
        if self.probes < 1:
            raise ValueError(f"Neumann(probes={self.probes}): the scale takes at least one product")
        if self.max_steps <= self.probes:
            raise ValueError(
                f"Neumann(max_steps={self.max_steps}): {self.probes} products go into the scale (probes); allow more"
            )
        if not 0 <= self.rtol < 1:
            raise ValueError(f"Neumann(rtol={self.rtol}): give a relative tolerance between 0 and 1")

    def __call__(self, A: LinearOperator, b: PyTree, x0: PyTree | None = None) -> tuple[PyTree, SolveInfo]:
        return self.result(drive(self, A, b, x0))

    def init(self, b: PyTree, x0: PyTree | None = None, Ax0: PyTree | None = None) -> NeumannState:
        """State before the first probe."""
        x, r, b_norm = start(b, x0, Ax0)
        r_norm = tree.norm(r)
        status = jnp.where(r_norm <= self.rtol * b_norm, int(Status.CONVERGED), RUNNING)
        return NeumannState(
            x, r, spectral_bound.init(b, self.probes), jnp.zeros_like(r_norm), r_norm, b_norm, jnp.int32(0),
            status.astype(jnp.int32), first(r_norm, self.max_steps + 1),
            jnp.full_like(r_norm, jnp.inf), jnp.full_like(r_norm, -jnp.inf),
        )  # fmt: skip

    def direction(self, s: NeumannState) -> PyTree:
        """A Lanczos vector while probing, then the residual."""
        return tree.where(s.steps < self.probes, s.probe.v, s.r)

    def update(self, s: NeumannState, product: PyTree) -> NeumannState:
        """One probe, or one term of the series."""
        return jax.lax.cond(s.steps < self.probes, self._probe, self._iterate, s, product)

    def result(self, s: NeumannState) -> tuple[PyTree, SolveInfo]:
        """The iterate and the record of the solve so far."""
        return s.x, SolveInfo(
            s.status, s.steps, relative(s.residual_norms[s.steps], s.b_norm), padded(s.residual_norms, s.steps),
            s.min_curvature, s.max_curvature, scale=s.scale,
        )  # fmt: skip

    def _probe(self, s: NeumannState, Av: PyTree) -> NeumannState:
        finite = jnp.isfinite(tree.vdot(s.probe.v, Av))
        probe = spectral_bound.update(s.probe, Av)
        done = finite & (probe.steps == self.probes)
        found = spectral_bound.bound(jax.tree.map(lambda a: jnp.where(done, a, jnp.zeros_like(a)), probe))
        positive = found.highest > 0
        status = jnp.where(finite, RUNNING, int(Status.NON_FINITE))
        status = jnp.where(done & ~positive, int(Status.NEGATIVE_CURVATURE), status)
        return s._replace(
            probe=probe,
            scale=jnp.where(done & positive, 1.0 / jnp.where(positive, found.upper, 1.0), 0.0),
            steps=s.steps + 1,
            status=status.astype(jnp.int32),
            residual_norms=s.residual_norms.at[s.steps + 1].set(s.lowest),
            min_curvature=jnp.where(done, jnp.minimum(s.min_curvature, found.lowest), s.min_curvature),
            max_curvature=jnp.where(done, jnp.maximum(s.max_curvature, found.highest), s.max_curvature),
        )

    def _iterate(self, s: NeumannState, Ar: PyTree) -> NeumannState:
        r = tree.axpy(-s.scale, Ar, s.r)
        old, r_norm, steps = s.residual_norms[s.steps], tree.norm(r), s.steps + 1
        curvature = tree.vdot(s.r, Ar) / jnp.where(old > 0, old, 1.0) ** 2
        finite = jnp.isfinite(r_norm) & jnp.isfinite(curvature)
        grown = finite & (r_norm > GROWTH * s.lowest)
        move = finite & ~grown
        r_norm = jnp.where(move, r_norm, old)
        status = jnp.where(steps >= self.max_steps, int(Status.MAX_STEPS), RUNNING)
        status = jnp.where(r_norm <= self.rtol * s.b_norm, int(Status.CONVERGED), status)
        against = jnp.where(curvature < 0, int(Status.NEGATIVE_CURVATURE), int(Status.DIVERGED))
        status = jnp.where(grown, against, jnp.where(finite, status, int(Status.NON_FINITE)))
        return s._replace(
            x=tree.axpy(jnp.where(move, s.scale, 0.0), s.r, s.x),
            r=tree.where(move, r, s.r),
            lowest=jnp.minimum(s.lowest, r_norm),
            steps=steps,
            status=status.astype(jnp.int32),
            residual_norms=s.residual_norms.at[steps].set(r_norm),
            min_curvature=jnp.where(finite, jnp.minimum(s.min_curvature, curvature), s.min_curvature),
            max_curvature=jnp.where(finite, jnp.maximum(s.max_curvature, curvature), s.max_curvature),
        )
