"""The damping path: what the Newton step `(A + lambda I)^-1 g` gains on forget and costs on retain, for every lambda.

One Lanczos run with the curvature A of retain, started from the forget gradient g, leaves an orthonormal basis Q and a
tridiagonal T. Shifting A shifts T, so the step under any damping is

    x(lambda) = Q^T y,        (T + lambda I) y = ||g|| e_1,

and what it is predicted to do takes k numbers and no vector:

    gain on forget      g.x = ||g|| y_1                       nats per forget loss token, to first order
    KL on retain        x.G x / 2 = y.(Q G Q^T) y / 2         nats per retain loss token, to second order
    residual            ||g - (A + lambda I) x|| / ||g|| = ||r|| |y_k| / ||g||

For A = G the matrix `Q G Q^T` is T itself; for the Hessian it takes k Gauss-Newton products more. The first m rows and
columns of T give the iterate that m steps of conjugate gradients would stop at, which is what a method takes.

As lambda grows the step turns from Newton's into a short one along g. A trust region can shorten a step under the
damping at hand (`transforms.TrustRegion`, as methods do), or choose the damping at which the full step costs just what
is allowed (Levenberg 1944, Marquardt 1963; Conn, Gould and Toint, "Trust-region methods", 2000, chapter 7). The path
shows both, and where predictions can be believed: the step is also tried, and what it does is measured.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxunlearn import losses
from jaxunlearn.curvature import GaussNewton
from jaxunlearn.objectives import NLL, Objective
from jaxunlearn.operators import block_product
from jaxunlearn.sharding import on_host
from jaxunlearn.solvers import block, krylov, lanczos
from jaxunlearn.solvers.tridiagonal import Tridiagonalization, dense
from jaxunlearn.transforms import Curvature, measured_kl
from jaxunlearn.types import Model, Params, UnlearnBatch


class NewtonSpace(NamedTuple):
    """The Krylov space in which the step is taken for every damping.

    Attributes:
        run: the Lanczos run from g, its basis on the devices.
        matrix: T, on the host.
        metric: `Q G Q^T`, on the host.
        norm: `||g||`.
        beyond: `||r||`, what the curvature carries out of the space.
    """

    run: Tridiagonalization
    matrix: Float[np.ndarray, "k k"]
    metric: Float[np.ndarray, "k k"]
    norm: float
    beyond: float


class DampingPath(NamedTuple):
    """What the step is predicted to do, by damping.

    Attributes:
        damping: lambda.
        kl: predicted KL on retain, nats per loss token.
        gain: predicted rise of the loss on forget, nats per loss token.
        length: of the step, Euclidean.
        residual: relative, of the solve in this space.
        positive_definite: whether `T + lambda I` is; where it is not, x is no minimum of anything.
        coordinates: y, a row for each damping.
    """

    damping: Float[np.ndarray, " d"]
    kl: Float[np.ndarray, " d"]
    gain: Float[np.ndarray, " d"]
    length: Float[np.ndarray, " d"]
    residual: Float[np.ndarray, " d"]
    positive_definite: Bool[np.ndarray, " d"]
    coordinates: Float[np.ndarray, "d k"]


def newton_space(
    model: Model,
    params: Params,
    batch: UnlearnBatch,
    curvature: Curvature,
    *,
    steps: int,
    microbatch: int | None = None,
) -> NewtonSpace:
    """Lanczos from the gradient of the mean NLL on forget, with the curvature of retain: `steps` products, twice as
    many unless the curvature is Gauss-Newton; the basis takes `4 steps` bytes a parameter.

    Raises:
        ValueError: the forget gradient is zero or not finite, so there is no direction to start from.
    """

    T, metric = jax.jit(partial(lanczos_run, model, curvature, steps, microbatch))(params, batch)
    k = int(T.steps)
    if k == 0:
        raise ValueError(
            "the gradient of the loss on forget is zero or not finite, so there is no step to look at; check the model "
            "for NaN weights and the forget records for loss tokens"
        )
    matrix = np.asarray(on_host(dense(T)), np.float64)[:k, :k]
    metric = matrix if metric is None else np.asarray(on_host(metric), np.float64)[:k, :k]
    return NewtonSpace(T, matrix, (metric + metric.T) / 2, float(T.norm), float(T.residual_norm))


def lanczos_run(
    model: Model, curvature: Curvature, steps: int, microbatch: int | None, params: Params, batch: UnlearnBatch
) -> tuple[Tridiagonalization, Array | None]:
    """The run of `newton_space`, and `Q G Q^T` unless that is its T."""
    _, g = Objective(((1.0, NLL("forget")),), microbatch).value_and_grad(model, params, batch)
    T = lanczos(curvature(model, params, batch.retain), g, steps)
    if isinstance(curvature, GaussNewton):
        return T, None
    G = GaussNewton(microbatch)(model, params, batch.retain)
    # One product at a time: k of them side by side would hold k tangents of every activation.
    return T, block.gram(T.basis, block_product(G, T.basis, batch_size=1))


def damping_path(space: NewtonSpace, dampings: Float[np.ndarray, " d"], *, products: int | None = None) -> DampingPath:
    """The path at these dampings.

    Args:
        space: of `newton_space`.
        dampings: lambda, in the units of the curvature.
        products: what a solve of so many products would give, at most those of the space. Default all of them.

    Example:
        >>> space = NewtonSpace(None, np.diag([1.0, 3.0]), np.diag([1.0, 3.0]), 2.0, 0.0)
        >>> path = damping_path(space, np.array([0.0, 1.0]))  # x = 2 / (1 + lambda) along the first axis
        >>> path.gain.tolist(), path.kl.tolist()
        ([4.0, 2.0], [2.0, 0.5])
    """
    dampings, k = np.asarray(dampings, np.float64), space.matrix.shape[0]
    m = k if products is None else min(products, k)
    theta, S = np.linalg.eigh(space.matrix[:m, :m])
    shifted = theta + dampings[:, None]
    y = (space.norm * S[0] / np.where(shifted == 0, np.finfo(np.float64).tiny, shifted)) @ S.T
    beyond = space.beyond if m == k else abs(space.matrix[m, m - 1])
    rows = np.pad(y, ((0, 0), (0, k - m)))
    return DampingPath(
        damping=dampings,
        kl=np.einsum("di,ij,dj->d", rows, space.metric, rows) / 2,
        gain=space.norm * rows[:, 0],
        length=np.linalg.norm(rows, axis=1),
        residual=beyond * np.abs(y[:, -1]) / space.norm,
        positive_definite=shifted.min(axis=1) > 0,
        coordinates=rows,
    )


def damping_of(space: NewtonSpace, max_kl: float, *, products: int | None = None) -> float | None:
    """The damping at which the full step is predicted to cost `max_kl` nats on retain; None if any step costs less.

    Where several do, the largest: beyond it no damping is too small.

    Example:
        >>> space = NewtonSpace(None, np.diag([1.0, 3.0]), np.diag([1.0, 3.0]), 2.0, 0.0)
        >>> round(damping_of(space, 0.5), 6)
        1.0
    """
    from scipy.optimize import brentq

    theta = np.linalg.eigvalsh(space.matrix)
    largest, pole = np.abs(theta).max(), max(0.0, -theta[0])
    grid = pole + np.geomspace(1e-12, 1e12, 481) * largest
    over = damping_path(space, grid, products=products).kl > max_kl
    if not over.any() or over[-1]:
        return None
    last = int(np.flatnonzero(over)[-1])

    def excess(log: float) -> float:
        return float(np.log(damping_path(space, np.exp([log]), products=products).kl[0] / max_kl))

    return float(np.exp(brentq(excess, np.log(grid[last]), np.log(grid[last + 1]), xtol=1e-12)))


def measure_path(
    model: Model,
    params: Params,
    batch: UnlearnBatch,
    space: NewtonSpace,
    path: DampingPath,
    advance: Callable[[], None] | None = None,
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
    """What the full steps of a path do: KL on retain, and the rise of the loss on forget. Two forward passes a step."""
    tried = jax.jit(partial(try_step, model))
    found = []
    for y in path.coordinates:
        padded = np.pad(y, (0, space.run.diagonal.shape[0] - y.size)).astype(np.float32)
        found.append(on_host(tried(params, batch, space.run, jnp.asarray(padded))))
        if advance is not None:
            advance()
    kl, gain = np.array(found, np.float64).reshape(-1, 2).T
    return kl, gain


def try_step(
    model: Model, params: Params, batch: UnlearnBatch, run: Tridiagonalization, y: Float[Array, " k"]
) -> tuple[Array, Array]:
    """KL on retain and rise of the loss on forget of the step `Q^T y`."""
    step = krylov.combine(run, y)
    after = jax.tree.map(lambda p, d: (p + d).astype(p.dtype), params, step)
    rise = _mean(*losses.nll(model, after, batch.forget)) - _mean(*losses.nll(model, params, batch.forget))
    return measured_kl(model, params, after, batch.retain), rise


def _mean(total: Array, count: Array) -> Array:
    return total / jnp.where(count > 0, count, 1.0)
