"""The true Fisher: the second moment of gradients at labels drawn from the model itself.

For example i let every label with loss be drawn independently from the model's prediction at that place, given the
*true* text before it: `y_t ~ p_t`. The gradient of the redrawn loss is `r_i = sum_t sqrt(w_t) J_t^T (p_t - e_{y_t})`,
each term has mean zero, and so the cross terms vanish in expectation:

    E[r_i r_i^T] = sum_t w_t J_t^T (diag(p_t) - p_t p_t^T) J_t,        F = (1/n) sum_i r_i r_i^T,      E[F] = G

with n the total loss weight: one gradient a *sequence* estimates the Gauss-Newton matrix without bias. (The square
root on the weights makes this hold for weights other than 0 and 1.) Unlike G it has low rank, so in its dual form every
power is exact; its error falls as one over the square root of the number of rows.

Draws depend on the seed and the place of the token in the batch only: not on microbatches, devices or whether rows are
stored.

References: Martens, "New insights and perspectives on the natural gradient method", JMLR 2020, section 5; Kunstner et
al., "Limitations of the empirical Fisher approximation", NeurIPS 2019.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxunlearn import losses
from jaxunlearn.curvature.empirical_fisher import first
from jaxunlearn.curvature.low_rank import LowRankOperator
from jaxunlearn.curvature.outer_product import Values, outer_product, recomputed_form, stored_form
from jaxunlearn.curvature.parts import Parts, parts_of, parts_of_predictor
from jaxunlearn.sharding.regions import auto, take_rows
from jaxunlearn.types import Batch, Key, Model, Params, Predictions, examples_in

Predict = Callable[[Params, PyTree], Predictions]


def true_fisher(
    predict: Predict,
    params: Params,
    batch: PyTree,
    key: Key,
    *,
    samples: int | None = None,
    draws: int = 1,
    stored: bool = True,
    microbatch: int | None = None,
    block: int = 8,
) -> LowRankOperator:
    """True Fisher of the first `samples` examples of `batch` in the dual form, `draws` rows an example.

    Args:
        predict: gives logits and loss weights.
        params: where the gradients are taken.
        batch: pytree with the example axis first; the caller shuffles.
        key: random key of the labels.
        samples: examples taken; `None` takes all.
        draws: independent label draws of each example.
        stored, microbatch, block: as for `empirical_fisher`.

    Example:
        >>> import jax.numpy as jnp
        >>> def predict(w, x):
        ...     return Predictions((x @ w)[:, None], jnp.zeros((len(x), 1), jnp.int32), jnp.ones((len(x), 1)))
        >>> F = true_fisher(predict, jnp.zeros((1, 2)), jnp.ones((3, 1)), jax.random.key(0))
        >>> F(jnp.array([[1.0, 0.0]])).round(4).tolist()  # at p = (1/2, 1/2) every draw gives G
        [[0.25, -0.25]]
    """
    form = _Form(samples, draws, stored, microbatch, block)
    return _true_fisher(parts_of_predictor(predict), params, batch, key, form)


class _Form(NamedTuple):
    samples: int | None
    draws: int
    stored: bool
    microbatch: int | None
    block: int


def _true_fisher(parts: Parts, params: Params, batch: PyTree, key: Key, form: _Form) -> LowRankOperator:
    rows = first(batch, form.samples)
    if form.draws > 1:
        rows = take_rows(rows, [*range(examples_in(rows))] * form.draws)
    values, numbered = redrawn_losses(parts, key), number_rows(rows)
    if form.stored:
        return stored_form(values, params, numbered, at_once=form.microbatch or 1)
    return recomputed_form(values, params, numbered, microbatch=form.microbatch, block=form.block)


def redrawn_losses(parts: Parts, key: Key) -> Values:
    """Of `(batch, numbers [B])`: each example's loss at labels drawn for its number, and the total loss weight."""

    def values(params: Params, numbered: tuple[PyTree, Array]) -> tuple[Array, Array]:
        batch, numbers = numbered
        hidden, weights = parts.body(params, batch)
        P = weights.shape[1]
        ids = numbers[:, None] * jnp.uint32(P) + jnp.arange(P, dtype=jnp.uint32)

        def piece(hidden: Array, weights: Array, ids: Array) -> Array:
            logits = parts.head(params, hidden)
            return redrawn_loss(logits, weights, draw_labels(key, ids, logits, weights))

        return losses.in_chunks(piece, parts.rows, hidden, weights, ids), jnp.sum(weights)

    return values


def redrawn_loss(
    logits: Float[Array, "B P V"], weights: Float[Array, "B P"], labels: Int[Array, "B P"]
) -> Float[Array, " B"]:
    """`sum_t sqrt(w_t) NLL_t` at `labels`: the function whose gradient is a row of the true Fisher."""
    nll = losses.token_nll(Predictions(logits, labels, weights))
    return jnp.sum(jnp.sqrt(weights.astype(nll.dtype)) * nll, axis=-1)


def draw_labels(
    key: Key, ids: Int[Array, "B P"], logits: Float[Array, "B P V"], like: Array | None = None
) -> Int[Array, "B P"]:
    """A label for every place from the model's own prediction there, by `fold_in(key, id)`; laid out as `like`."""

    def draw(logits: Array, ids: Array, key: Key) -> Array:
        wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        keys = jax.vmap(jax.vmap(lambda i: jax.random.fold_in(key, i)))(ids)
        return jax.vmap(jax.vmap(jax.random.categorical))(keys, wide).astype(jnp.int32)

    return auto(draw, jax.lax.stop_gradient(logits), ids, key, like=like)


def number_rows(batch: PyTree) -> tuple[PyTree, Array]:
    """`batch` with the numbers of its rows, what `redrawn_losses` takes."""
    return batch, jnp.arange(examples_in(batch), dtype=jnp.uint32)


@dataclass(frozen=True)
class TrueFisher:
    """Curvature recipe: the Fisher of the model's own predictions on at most `samples` examples, dual form.

    An unbiased low-rank estimate of `GaussNewton()`, with every power. The labels come from `seed`: the same in every
    step and in every pass over streamed data, where it takes every example of every batch.
    """

    psd: ClassVar[bool] = True

    samples: int | None = 64
    draws: int = 1
    seed: int = 0
    stored: bool = True
    microbatch: int | None = None
    block: int = 8

    def __post_init__(self):
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"TrueFisher(samples={self.samples}): at least one example is needed")
        if self.draws < 1:
            raise ValueError(f"TrueFisher(draws={self.draws}): at least one draw of the labels is needed")
        if self.block < 1:
            raise ValueError(f"TrueFisher(block={self.block}): at least one row is needed at a time")

    def __call__(self, model: Model, params: Params, batch: Batch) -> LowRankOperator:
        form = _Form(self.samples, self.draws, self.stored, self.microbatch, self.block)
        return _true_fisher(parts_of(model, batch), params, batch, jax.random.key(self.seed), form)

    def product(self, model: Model, params: Params, batch: Batch, v: PyTree) -> tuple[PyTree, Array]:
        """`(sum_i r_i <r_i, v>, number of loss tokens)` over every example of `batch`, one draw each."""
        values = redrawn_losses(parts_of(model, batch), jax.random.key(self.seed))
        return outer_product(values, params, number_rows(batch), v, microbatch=self.microbatch)
