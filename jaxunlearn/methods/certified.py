"""Certified removal from a convex head: a Newton step, a bound on what it leaves, and noise that hides so much.

A linear head on frozen features X [n, d], trained to the minimum of a perturbed strongly convex loss

    L_b(W; D) = sum_{i in D} [ l(W^T x_i, y_i) + (l2 / 2) ||W||^2 ] + <b, W>,        b ~ N(0, sigma^2 I)

(l logistic or softmax), forgets a set R of examples by one Newton step on what remains:

    Delta = sum_{i in R} [ l2 W + grad l_i ],     W' = W + H^-1 Delta,     H = Hessian of L_b(. ; D - R) at W.

At the minimum `Delta` is minus the gradient of what remains, so only the curvature's change along the step is left of
the gradient, and with `D = H^-1 Delta`, features of length at most r and a Hessian of l that is gamma-Lipschitz,

    ||grad L_b(W'; D - R)|| <= gamma r ||X||_2 ||D|| ||X D||.

A gradient that small, under noise of that size, says next to nothing about R: the weights are (epsilon, delta)
indistinguishable from those of a head that never saw R as long as the gradients left behind by all requests add up to
no more than `sigma epsilon / c`, `delta = 1.5 exp(-c^2 / 2)`. `Ledger` adds them up, and refuses when they do not fit.

Nothing here is exact but what is measured: to the bound of a request we add the residual of its linear solve,
`||H D - Delta||`, and what rounding can do to a sum of n gradients; the first entry of a ledger is the gradient norm
that training ended with.

The norms are Frobenius norms for a matrix W. For softmax, gamma = sqrt(2) / (3 sqrt(3)): the third derivative of
logsumexp is the third cumulant, a symmetric form whose norm is attained on one vector u (Banach), and a variable of
range at most `sqrt(2) ||u||` has a third central moment of at most `(sqrt(2) ||u||)^3 / (6 sqrt(3))`.

References: Guo, Goldstein, Hannun and van der Maaten, "Certified data removal from machine learning models", ICML
2020, theorem 3, corollary 1 and section 3.2; Chaudhuri, Monteleoni and Sarwate, JMLR 2011 (objective perturbation).
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxunlearn.methods.features import HeadExamples
from jaxunlearn.operators import LinearOperator
from jaxunlearn.solvers import CG
from jaxunlearn.types import Key

GAMMA = {"logistic": 0.25, "softmax": math.sqrt(2.0) / (3.0 * math.sqrt(3.0))}
SOLVER = CG(200, 1e-6, progress=None)


class TrainedHead(NamedTuple):
    """A head at the minimum of its perturbed loss.

    Attributes:
        weights: W, shape [d, outputs]; one output for logistic.
        noise: b, of the same shape. Secret: with it the certificate is void.
        gradient_norm: `||grad L_b||` at `weights` and what rounding may add to it, the first entry of a ledger.
        steps: Newton steps taken.
    """

    weights: Float[Array, "d c"]
    noise: Float[Array, "d c"]
    gradient_norm: Float[Array, ""]
    steps: Int[Array, ""]


class Removal(NamedTuple):
    """A request carried out.

    Attributes:
        weights: W'.
        examples: with the request no longer kept.
        bound: upper bound on the gradient that the request leaves behind.
        solve_residual: `||H D - Delta||`, a part of it.
        step_norm: `||D||`.
    """

    weights: Float[Array, "d c"]
    examples: HeadExamples
    bound: Float[Array, ""]
    solve_residual: Float[Array, ""]
    step_norm: Float[Array, ""]


@dataclass(frozen=True)
class CertifiedHead:
    """A logistic or softmax head with certified removal; hashable.

    Args:
        kind: "logistic" (labels 0 and 1, one output) or "softmax".
        classes: outputs of a softmax head.
        l2: weight of `||W||^2 / 2` per example; it makes the loss strongly convex, and removal small.
        sigma: standard deviation of the noise in the objective.
        epsilon: of the (epsilon, delta) guarantee for all requests together.
        delta: of the guarantee, below 1.
        gamma: Lipschitz constant of the Hessian of the loss in the outputs; `None` takes 1/4 for logistic, as the
            paper does (the least one is `1 / (6 sqrt 3)`), and `sqrt(2) / (3 sqrt 3)` for softmax.
        solver: inverts the Hessian; its measured residual is part of every bound.

    Raises:
        ValueError: for settings out of range.

    Example:
        >>> from jaxunlearn.methods import head_examples
        >>> head = CertifiedHead("logistic", l2=0.1, sigma=1.0, epsilon=1.0, delta=1e-4)
        >>> x = jax.random.normal(jax.random.key(0), (200, 4))
        >>> data = head_examples(x, (x[:, 0] > 0).astype(jnp.int32))
        >>> trained = head.train(data, key=jax.random.key(1))
        >>> removal = head.remove(trained.weights, data, jnp.array([3, 5]))
        >>> residual = head.gradient(removal.weights, removal.examples, trained.noise)
        >>> bool(jnp.linalg.norm(residual) <= removal.bound + trained.gradient_norm)
        True
        >>> bool(removal.bound < head.budget)
        True
    """

    kind: Literal["logistic", "softmax"]
    classes: int = 2
    l2: float = 1e-3
    sigma: float = 1.0
    epsilon: float = 1.0
    delta: float = 1e-4
    gamma: float | None = None
    solver: CG = SOLVER

    def __post_init__(self):
        if self.kind not in GAMMA:
            raise ValueError(f"CertifiedHead(kind={self.kind!r}): choose 'logistic' or 'softmax'")
        if self.classes < 2 or (self.kind == "logistic" and self.classes != 2):
            raise ValueError(f"CertifiedHead({self.kind!r}, classes={self.classes}): logistic has 2, softmax 2 or more")
        for name in ("l2", "sigma", "epsilon"):
            if not getattr(self, name) > 0:
                raise ValueError(f"CertifiedHead({name}={getattr(self, name)}): it must be positive")
        if not 0 < self.delta < 1:
            raise ValueError(f"CertifiedHead(delta={self.delta}): give a probability between 0 and 1")
        if self.gamma is not None and not self.gamma > 0:
            raise ValueError(f"CertifiedHead(gamma={self.gamma}): give a positive Lipschitz constant, or None")

    @property
    def c(self) -> float:
        """`c = sqrt(2 ln(1.5 / delta))`, from `delta = 1.5 exp(-c^2 / 2)`."""
        return math.sqrt(2.0 * math.log(1.5 / self.delta))

    @property
    def budget(self) -> float:
        """`sigma epsilon / c`: how much gradient all requests together may leave behind."""
        return self.sigma * self.epsilon / self.c

    def gradient(self, W: Array, data: HeadExamples, noise: Array) -> Float[Array, "d c"]:
        """`grad L_b` over the examples that are kept."""
        residuals = data.kept[:, None] * self._residuals(W, data)
        return data.features.T @ residuals + self.l2 * jnp.sum(data.kept) * W + noise

    def hessian(self, W: Array, data: HeadExamples) -> LinearOperator:
        """Hessian of `L_b` over the examples that are kept."""
        kept, p = data.kept[:, None].astype(W.dtype), self._probabilities(W, data)

        def mv(V: Array) -> Array:
            u = data.features @ V
            curved = p * (1 - p) * u if self.kind == "logistic" else p * (u - jnp.sum(p * u, axis=1, keepdims=True))
            return data.features.T @ (kept * curved) + self.l2 * jnp.sum(kept) * V

        return LinearOperator(mv, W, psd=True)

    @partial(jax.jit, static_argnames=("self", "max_steps"))
    def train(self, data: HeadExamples, *, key: Key, max_steps: int = 50) -> TrainedHead:
        """Draw b and minimise `L_b` by Newton's method, down to a gradient that is made of rounding.

        The step is halved until the gradient shrinks, which along a Newton direction of a strongly convex loss it does.

        Args:
            data: examples; those not kept have no part in it.
            key: random key of the noise. A head that is trained again needs a new one.
            max_steps: most Newton steps.
        """
        outputs, dtype = 1 if self.kind == "logistic" else self.classes, data.features.dtype
        W = jnp.zeros((data.features.shape[1], outputs), dtype)
        b = self.sigma * jax.random.normal(key, W.shape, dtype)
        lengths = 0.5 ** jnp.arange(16, dtype=dtype)

        def norm(W: Array) -> Array:
            return jnp.linalg.norm(self.gradient(W, data, b))

        def unfinished(state: tuple) -> Array:
            W, size, steps, moving = state
            return (size > self._rounding(W, data) / 8) & (steps < max_steps) & moving

        def newton(state: tuple) -> tuple:
            W, size, steps, _ = state
            d, _ = self.solver(self.hessian(W, data), -self.gradient(W, data, b))
            sizes = jax.vmap(lambda t: norm(W + t * d))(lengths)
            shrinks = sizes < (1 - lengths / 4) * size
            best = jnp.argmax(shrinks)
            moving = shrinks[best]
            return (
                W + jnp.where(moving, lengths[best], 0.0) * d,
                jnp.where(moving, sizes[best], size),
                steps + 1,
                moving,
            )

        start = (W, norm(W), jnp.int32(0), jnp.array(True))
        W, size, steps, _ = jax.lax.while_loop(unfinished, newton, start)
        return TrainedHead(W, b, size + self._rounding(W, data), steps)

    @partial(jax.jit, static_argnames="self")
    def remove(self, W: Array, data: HeadExamples, request: Int[Array, " r"]) -> Removal:
        """`W' = W + H^-1 Delta` for the examples `request`, and the bound on the gradient this leaves behind.

        Indices that are no longer kept are passed over, so a request may be padded with one that is in it already.
        `vmap` it over requests of one length to know beforehand what each would cost.
        """
        asked = jnp.zeros_like(data.kept).at[request].set(True) & data.kept
        left = data._replace(kept=data.kept & ~asked)
        gone = asked[:, None].astype(W.dtype)
        delta = data.features.T @ (gone * self._residuals(W, data)) + self.l2 * jnp.sum(gone) * W
        H = self.hessian(W, left)
        D, _ = self.solver(H, delta)
        unsolved, length = jnp.linalg.norm(H(D) - delta), jnp.linalg.norm(D)
        gamma = GAMMA[self.kind] if self.gamma is None else self.gamma
        moved = jnp.linalg.norm(left.kept[:, None] * (data.features @ D))
        curved = gamma * data.radius * data.norm * length * moved
        return Removal(W + D, left, curved + unsolved + self._rounding(W + D, left), unsolved, length)

    def _probabilities(self, W: Array, data: HeadExamples) -> Float[Array, "n c"]:
        z = data.features @ W
        return jax.nn.sigmoid(z) if self.kind == "logistic" else jax.nn.softmax(z, axis=1)

    def _targets(self, data: HeadExamples, dtype: jnp.dtype) -> Float[Array, "n c"]:
        if self.kind == "logistic":
            return data.labels[:, None].astype(dtype)
        return jax.nn.one_hot(data.labels, self.classes, dtype=dtype)

    def _residuals(self, W: Array, data: HeadExamples) -> Float[Array, "n c"]:
        return self._probabilities(W, data) - self._targets(data, W.dtype)

    def _rounding(self, W: Array, data: HeadExamples) -> Float[Array, ""]:
        """What rounding may do to a gradient: a few units of every term summed, `||p - y|| <= sqrt 2`, and of p."""
        n, size = jnp.sum(data.kept), jnp.linalg.norm(W)
        return 8 * jnp.finfo(W.dtype).eps * n * (data.radius * (math.sqrt(2.0) + data.radius * size) + self.l2 * size)
