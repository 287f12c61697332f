"""Hessian-free online removal: carry along the training run what a request would have changed.

Stochastic gradient descent takes, from batch B with n_B loss tokens at learning rate eta,

    w <- w - (eta / n_B) sum_{i in B} g_i(w).

Had the examples U never been there, the same batches without them would have led to w'. To first order the difference
`a = w' - w` obeys a recursion of its own along the trajectory of w,

    a <- (I - eta H_B) a + (eta / n_B) sum_{i in B, i in U} g_i(w),        H_B = (1 / n_B) sum_{i in B} H_i(w),

one Hessian-vector product a step and one vector for a whole request. After training, removal is an addition: `w + a`.

Two readings of H_B (`curvature`). "batch", the paper's, takes all of B: a is then linear in the request, so vectors of
single examples, made in advance, add up to that of any group. "kept" leaves the examples of U out of H_B as well: then
the recursion is that of w' itself wherever gradients are linear in w, and `w + a` *is* the retrained model of a
quadratic loss. In general the error is of second order in a, plus of order `|U| / n_B` relative to a for "batch". Both
keep n_B as the normaliser of a batch that has lost examples, as the retraining they approximate does.

What happened at a step must be known again: the rows of each batch, the learning rates, and the parameters, either
stored for every step or run through anew from the start, which the recursion can do beside it.

Reference: Qiao, Zhang, Tang and Wei, "Hessian-free online certified unlearning", ICLR 2025 (arXiv 2404.01712).
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxunlearn import tree
from jaxunlearn.accumulate import accumulate
from jaxunlearn.curvature import hessian_product
from jaxunlearn.types import Params, examples_in

ExampleLoss = Callable[[Params, PyTree], tuple[Array, Array]]


class Trajectory(NamedTuple):
    """A run of stochastic gradient descent, enough to go along it again.

    Attributes:
        start: parameters before the first step.
        rows: examples of each batch, shape [S, B]; -1 fills up a short one.
        learning_rates: shape [S].
        points: parameters before each step, leaves [S, ...]; `None` when they are to be computed again.
    """

    start: Params
    rows: Int[Array, "S B"]
    learning_rates: Float[Array, " S"]
    points: Params | None = None


def recorded_sgd(
    loss: ExampleLoss,
    params: Params,
    data: PyTree,
    rows: Int[Array, "S B"],
    learning_rates: Float[Array, " S"],
    *,
    kept: Bool[Array, " N"] | None = None,
    store: bool = False,
    microbatch: int | None = None,
) -> tuple[Params, Trajectory]:
    """Train by plain stochastic gradient descent, and say how.

    Args:
        loss: `(params, batch) -> (sums [B], counts [B])`, per example, such as `partial(losses.example_nll, model)`.
        params: where to start.
        data: all examples, leaves [N, ...].
        rows: which of them each batch takes.
        learning_rates: one a step.
        kept: examples that take part; the others leave their batches, whose normaliser stays. Default all.
        store: keep the parameters of every step: S times the parameters, for half the work afterwards.
        microbatch: examples per accumulation step of a gradient.
    """
    kept = jnp.ones(examples_in(data), bool) if kept is None else kept

    def step(params: Params, x: tuple[Array, Array]) -> tuple[Params, Params | None]:
        batch, real = _take(data, x[0])
        gradient, count = _gradient(loss, params, batch, real, real * kept[x[0]], microbatch)
        return tree.axpy(-x[1] / count, gradient, params), params if store else None

    end, points = jax.lax.scan(step, params, (rows, learning_rates))
    return end, Trajectory(params, rows, learning_rates, points)


def hessian_free_online(
    loss: ExampleLoss,
    trajectory: Trajectory,
    data: PyTree,
    forget: Bool[Array, " N"],
    *,
    curvature: Literal["batch", "kept"] = "batch",
    microbatch: int | None = None,
) -> PyTree:
    """`a`, f32: what to add to the trained parameters to have them forget.

    Pure; `vmap` it over masks to make the vectors of many requests in one run.

    Args:
        loss: as for `recorded_sgd`.
        trajectory: how the parameters came about.
        data: what they were trained on.
        forget: True for the examples to forget.
        curvature: "batch" or "kept", which of a batch's examples bend the recursion; see above.
        microbatch: examples per accumulation step of gradients and products.

    Raises:
        ValueError: for an unknown `curvature`, or a mask of another length than the data.

    Example:
        >>> loss = lambda w, rows: (0.5 * (rows[0] @ w - rows[1]) ** 2, jnp.ones(len(rows[1])))
        >>> x = jax.random.normal(jax.random.key(0), (12, 2))
        >>> data, rows, rates = (x, x @ jnp.array([1.0, -2.0])), jnp.arange(12).reshape(4, 3), jnp.full(4, 0.1)
        >>> forget = jnp.arange(12) < 2
        >>> trained, trajectory = recorded_sgd(loss, jnp.zeros(2), data, rows, rates)
        >>> retrained, _ = recorded_sgd(loss, jnp.zeros(2), data, rows, rates, kept=~forget)
        >>> a = hessian_free_online(loss, trajectory, data, forget, curvature="kept")
        >>> bool(jnp.allclose(trained + a, retrained, atol=1e-6))  # exact for a quadratic loss
        True
    """
    if curvature not in ("batch", "kept"):
        raise ValueError(f"hessian_free_online(curvature={curvature!r}): choose 'batch' or 'kept'")
    if forget.shape != (examples_in(data),):
        raise ValueError(
            f"forget has shape {list(forget.shape)}; give one entry for each of {examples_in(data)} examples"
        )

    def step(carry: tuple[Params, PyTree], x: tuple) -> tuple[tuple[Params, PyTree], None]:
        rows, rate, stored = x
        params = carry[0] if stored is None else stored
        batch, real = _take(data, rows)
        a = carry_along(
            loss, params, carry[1], batch, forget[rows], rate, real=real, curvature=curvature, microbatch=microbatch
        )
        if stored is None:
            gradient, count = _gradient(loss, params, batch, real, real, microbatch)
            params = tree.axpy(-rate / count, gradient, params)
        return (params, a), None

    start = trajectory.start
    steps = (trajectory.rows, trajectory.learning_rates, trajectory.points)
    return jax.lax.scan(step, (start, tree.zeros_like(start)), steps)[0][1]


def carry_along(
    loss: ExampleLoss,
    params: Params,
    a: PyTree,
    batch: PyTree,
    forget: Bool[Array, " B"],
    learning_rate: Float[Array, ""] | float,
    *,
    real: Bool[Array, " B"] | None = None,
    curvature: Literal["batch", "kept"] = "batch",
    microbatch: int | None = None,
) -> PyTree:
    """One step of the recursion, for training loops of one's own; call it with the parameters *before* their step.

    Args:
        loss: as for `recorded_sgd`.
        params: before the step.
        a: from the step before; `tree.zeros_like(params)` at first.
        batch: the step's examples.
        forget: which of them to forget.
        learning_rate: of the step.
        real: which of them are examples at all; default all.
        curvature, microbatch: as for `hessian_free_online`.
    """
    real = jnp.ones(forget.shape, bool) if real is None else real
    gradient, count = _gradient(loss, params, batch, real, real & forget, microbatch)
    bends = real & ~forget if curvature == "kept" else real
    Ha, _ = hessian_product(_weighted(loss), params, (batch, real, bends), a, microbatch=microbatch)
    return tree.axpy(learning_rate / count, tree.sub(gradient, Ha), a)


def _take(data: PyTree, rows: Int[Array, " B"]) -> tuple[PyTree, Bool[Array, " B"]]:
    return jax.tree.map(lambda x: x[jnp.maximum(rows, 0)], data), rows >= 0


def _weighted(loss: ExampleLoss) -> Callable[[Params, PyTree], tuple[Array, Array]]:
    """The loss summed over some of a batch's examples, and the count over all that are real."""

    def total(params: Params, rows: tuple[PyTree, Array, Array]) -> tuple[Array, Array]:
        batch, real, taken = rows
        sums, counts = loss(params, batch)
        return jnp.sum(jnp.where(taken, sums, 0.0)), jnp.sum(jnp.where(real, counts, 0.0))

    return total


def _gradient(
    loss: ExampleLoss, params: Params, batch: PyTree, real: Array, taken: Array, microbatch: int | None
) -> tuple[PyTree, Array]:
    def one(rows: tuple) -> tuple[PyTree, Array]:
        gradient, count = jax.grad(_weighted(loss), has_aux=True)(params, rows)
        return tree.to_vector(gradient), count

    gradient, count = accumulate(one, (batch, real, taken), microbatch)
    return gradient, jnp.where(count > 0, count, 1.0)
