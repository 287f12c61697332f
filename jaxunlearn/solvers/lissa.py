"""LiSSA: the Neumann series with another minibatch's curvature at every step.

    x_(j+1) = x_j + s (b - A_j x_j),        E A_j = A

For independent draws every chain of `depth` steps has the mean of the truncated series,
`s sum_(j < depth) (I - s A)^j b`, so its bias falls like the Neumann series converges, and averaging `repeats`
independent chains takes its variance down by that factor. A step costs one product with one minibatch, however large
the data set: that, and not its rate, is what speaks for it. Where products of the whole set can be afforded, CG needs
far fewer of them (see `neumann`).

The scale must suit every minibatch, for a single expansive one blows a chain up. It is one over the largest bound
(`spectral_bound`) found on `draws` minibatches, and users cannot choose it. Positive semidefinite operators with
eigenvalues up to `2 / s` cannot lengthen x by more than `s ||b||` a step, so that growth beyond this is proof of a
wrong scale, or of negative curvature, and ends the solve.

Reference: Agarwal, Bullins and Hazan, "Second-order stochastic optimization for machine learning in linear time",
JMLR 18, 2017 (who assume operators scaled to norm 1); Koh and Liang, ICML 2017 (for influence functions).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxunlearn import tree
from jaxunlearn.operators import LinearOperator
from jaxunlearn.solvers import spectral_bound
from jaxunlearn.solvers.protocol import RUNNING, drive, first, relative, start, zeros
from jaxunlearn.solvers.status import SolveInfo, Status


class Draw(NamedTuple):
    """The product LiSSA asks for: `A_index v`."""

    index: Int[Array, ""]
    v: PyTree


@dataclass(frozen=True, eq=False, kw_only=True)
class SampledOperator(LinearOperator):
    """A sequence of operators that is multiplied one member at a time; a plain vector meets member 0."""

    at: Callable[[Int[Array, ""]], LinearOperator]

    def damped(self, damping: Float[Array, ""] | float) -> "SampledOperator":
        return sampled(lambda index: self.at(index).damped(damping), self.like, self.psd)


def sampled(at: Callable[[Int[Array, ""]], LinearOperator], like: PyTree, psd: bool = False) -> SampledOperator:
    """The operators `at(0), at(1), ...`, for example the curvature of one random minibatch each.

    Inside `jit` the index is traced: fold it into a key and draw rows with it, or slice a stored data set. On the host
    (`solve_on_host`) it is a concrete number, and `at` may read that minibatch from disk.

    Example:
        >>> import jax.numpy as jnp
        >>> A = sampled(lambda i: LinearOperator(lambda v: (1.0 + i) * v, jnp.zeros(2)), jnp.zeros(2))
        >>> A.damped(0.5)(Draw(jnp.int32(2), jnp.ones(2))).tolist()
        [3.5, 3.5]
    """

    def mv(v: PyTree | Draw) -> PyTree:
        index, v = v if isinstance(v, Draw) else (jnp.int32(0), v)
        return at(index)(v)

    return SampledOperator(mv, like, psd, at=at)


class LiSSAState(NamedTuple):
    """State between two products.

    Attributes:
        x: iterate of the chain.
        mean: average of the finished chains.
        b: right-hand side.
        x0: where every chain starts; `None` for 0.
        probe: the Lanczos process that finds the scale.
        bound: largest bound on an eigenvalue so far.
        growth: longest x that a right scale allows.
        b_norm: `||b||`.
        steps: products spent.
        status: a `Status` code.
        squares: mean over chains of `||b - A_j x_j||^2` by j.
        residual_norm: of the mean, measured with a fresh draw.
        min_curvature, max_curvature: as in `SolveInfo`.
    """

    x: PyTree
    mean: PyTree
    b: PyTree
    x0: PyTree | None
    probe: spectral_bound.Probe
    bound: Float[Array, ""]
    growth: Float[Array, ""]
    b_norm: Float[Array, ""]
    steps: Int[Array, ""]
    status: Int[Array, ""]
    squares: Float[Array, " n"]
    residual_norm: Float[Array, ""]
    min_curvature: Float[Array, ""]
    max_curvature: Float[Array, ""]


@dataclass(frozen=True)
class LiSSA:
    """Solve `E[A_j] x = b` for positive definite `A_j`; call it as `x, info = LiSSA(...)(sampled(at, like), b)`.

    It spends `draws * probes + repeats * depth + 1` products, the last one to measure the residual of the average on a
    minibatch of its own. `info.residual_norms[j]` is the root mean square over chains of `||b - A_j x_j||`, shape
    [depth + 1], the last entry that of the average. All of them contain the noise of a minibatch. The status is
    `CONVERGED` if that last residual is within rtol, else `MAX_STEPS`.

    Args:
        depth: steps of a chain; `kappa ln(1 / eps)` for a bias of eps.
        repeats: chains to average.
        rtol: what counts as converged.
        probes: products spent on the scale of one minibatch.
        draws: minibatches on which the scale is probed.

    Raises:
        ValueError: for settings out of range, or an operator that is not `sampled`.

    Example:
        >>> import jax.numpy as jnp
        >>> def at(i):
        ...     key = jax.random.fold_in(jax.random.key(0), i)
        ...     scale = jnp.array([1.0, 2.0]) * jax.random.uniform(key, (2,), minval=0.5, maxval=1.5)
        ...     return LinearOperator(lambda v: scale * v, scale)
        >>> x, info = LiSSA(depth=20, repeats=200)(sampled(at, jnp.zeros(2)), jnp.ones(2))
        >>> [round(float(v), 1) for v in x]
        [1.0, 0.5]
    """

    depth: int = 50
    repeats: int = 1
    rtol: float = 0.1
    probes: int = 8
    draws: int = 2

    def __post_init__(self):
        for name in ("depth", "repeats", "probes", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"LiSSA({name}={getattr(self, name)}): give 1 or more")
        if not 0 <= self.rtol < 1:
            raise ValueError(f"LiSSA(rtol={self.rtol}): give a relative tolerance between 0 and 1")

    def __call__(self, A: SampledOperator, b: PyTree, x0: PyTree | None = None) -> tuple[PyTree, SolveInfo]:
        if not isinstance(A, SampledOperator):
            raise ValueError(
                f"LiSSA was given a {type(A).__name__}: give it solvers.sampled(index -> operator, like), or solve a "
                "fixed operator with Neumann or CG"
            )
        return self.result(drive(self, A, b, x0))

    def init(self, b: PyTree, x0: PyTree | None = None, Ax0: PyTree | None = None) -> LiSSAState:
        """State before the first probe. All chains start at `x0`, whose residual decides whether any is needed."""
        x, r, b_norm = start(b, x0, Ax0)
        r_norm = tree.norm(r)
        status = jnp.where(r_norm <= (0.0 if x0 is None else self.rtol) * b_norm, int(Status.CONVERGED), RUNNING)
        return LiSSAState(
            x, x, b, None if x0 is None else x, spectral_bound.init(b, self.probes), jnp.zeros_like(r_norm),
            tree.norm(x), b_norm, jnp.int32(0), status.astype(jnp.int32), first(r_norm**2, self.depth + 1), r_norm,
            jnp.full_like(r_norm, jnp.inf), jnp.full_like(r_norm, -jnp.inf),
        )  # fmt: skip

    def direction(self, s: LiSSAState) -> Draw:
        """A Lanczos vector while probing, then the iterate, at last the average; each with its own draw.

        Only the probes of one Lanczos process share a draw, for a process needs a fixed operator.
        """
        probing, last = s.steps < self._first, s.steps == self._last
        index = jnp.where(probing, s.steps // self.probes, self.draws + s.steps - self._first)
        return Draw(index, tree.where(probing, s.probe.v, tree.where(last, s.mean, s.x)))

    def update(self, s: LiSSAState, product: PyTree) -> LiSSAState:
        """One probe, one step of a chain, or the measurement at the end."""
        phase = jnp.where(s.steps < self._first, 0, jnp.where(s.steps < self._last, 1, 2))
        return jax.lax.switch(phase, (self._probe, self._iterate, self._measure), s, product)

    def result(self, s: LiSSAState) -> tuple[PyTree, SolveInfo]:
        """The average of the chains that are finished, and the record of the solve so far."""
        norms = jnp.sqrt(s.squares.at[-1].set(s.residual_norm**2))
        return s.mean, SolveInfo(
            s.status, s.steps, relative(s.residual_norm, s.b_norm), norms, s.min_curvature, s.max_curvature,
            scale=self._scale(s),
        )  # fmt: skip

    @property
    def _first(self) -> int:
        return self.draws * self.probes

    @property
    def _last(self) -> int:
        return self._first + self.repeats * self.depth

    def _scale(self, s: LiSSAState) -> Array:
        return jnp.where(s.bound > 0, 1.0 / jnp.where(s.bound > 0, s.bound, 1.0), 0.0)

    def _probe(self, s: LiSSAState, Av: PyTree) -> LiSSAState:
        finite = jnp.isfinite(tree.vdot(s.probe.v, Av))
        probe = spectral_bound.update(s.probe, Av)
        done = finite & (probe.steps == self.probes)
        found = spectral_bound.bound(jax.tree.map(lambda a: jnp.where(done, a, jnp.zeros_like(a)), probe))
        bound = jnp.where(done, jnp.maximum(s.bound, found.upper), s.bound)
        steps = s.steps + 1
        useless = (steps == self._first) & ~(bound > 0)
        status = jnp.where(useless, int(Status.NEGATIVE_CURVATURE), RUNNING)
        fresh = spectral_bound.init(s.b, self.probes)
        return s._replace(
            probe=jax.tree.map(lambda a, b: jnp.where(done, a, b), fresh, probe),
            bound=bound,
            steps=steps,
            status=jnp.where(finite, status, int(Status.NON_FINITE)).astype(jnp.int32),
            min_curvature=jnp.where(done, jnp.minimum(s.min_curvature, found.lowest), s.min_curvature),
            max_curvature=jnp.where(done, jnp.maximum(s.max_curvature, found.highest), s.max_curvature),
        )

    def _iterate(self, s: LiSSAState, Ax: PyTree) -> LiSSAState:
        chain, j = jnp.divmod(s.steps - self._first, self.depth)
        origin = zeros(s.b) if s.x0 is None else s.x0
        r = tree.sub(s.b, Ax)
        square, scale = tree.vdot(r, r), self._scale(s)
        x = tree.axpy(scale, r, s.x)
        size = tree.norm(x)
        growth = s.growth + scale * s.b_norm
        finite = jnp.isfinite(square)
        # A tenth of slack for products in low precision.
        diverged = finite & (size > 1.1 * growth)
        done = finite & ~diverged & (j + 1 == self.depth)
        status = jnp.where(diverged, int(Status.DIVERGED), RUNNING)
        mean = tree.add(s.mean, tree.scale(1.0 / (chain + 1), tree.sub(x, s.mean)))
        return s._replace(
            x=tree.where(done, origin, x),
            mean=tree.where(done, mean, s.mean),
            growth=jnp.where(done, tree.norm(origin), growth),
            steps=s.steps + 1,
            status=jnp.where(finite, status, int(Status.NON_FINITE)).astype(jnp.int32),
            squares=s.squares.at[j].add(jnp.where(finite, square - s.squares[j], 0.0) / (chain + 1)),
        )

    def _measure(self, s: LiSSAState, Ax: PyTree) -> LiSSAState:
        r_norm = tree.norm(tree.sub(s.b, Ax))
        finite = jnp.isfinite(r_norm)
        status = jnp.where(r_norm <= self.rtol * s.b_norm, int(Status.CONVERGED), int(Status.MAX_STEPS))
        return s._replace(
            residual_norm=jnp.where(finite, r_norm, s.residual_norm),
            steps=s.steps + 1,
            status=jnp.where(finite, status, int(Status.NON_FINITE)).astype(jnp.int32),
        )
