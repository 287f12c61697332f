"""The empirical Fisher: the second moment of per-example gradients at their true labels.

    E = (1/m) sum_i g_i g_i^T,     g_i = grad of the mean loss of example i

over the m examples that have loss tokens (rows that only fill a batch do not count). In its dual form (`low_rank`)
every power is exact; for p = -1 it equals the WoodFisher recursion. Rows are stored, or recomputed in every product
when m gradients do not fit (`outer_product`).

References: Singh and Alistarh, "WoodFisher", NeurIPS 2020; Gu et al., "Second-order information matters: revisiting
machine unlearning for large language models", 2024; Kunstner et al., "Limitations of the empirical Fisher
approximation", NeurIPS 2019, on how it differs from the true one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxunlearn import losses
from jaxunlearn.curvature.low_rank import LowRankOperator
from jaxunlearn.curvature.outer_product import (
    Values,
    outer_product,
    recomputed_factor,
    recomputed_form,
    stored_form,
)
from jaxunlearn.operators import Factor
from jaxunlearn.sharding.regions import take_rows
from jaxunlearn.types import Batch, Model, Params, examples_in

__all__ = ["EmpiricalFisher", "empirical_fisher", "empirical_fisher_factor", "mean_losses"]


def empirical_fisher(
    total: Callable[[Params, PyTree], tuple[Array, Array]],
    params: Params,
    batch: PyTree,
    *,
    samples: int | None = None,
    stored: bool = True,
    microbatch: int | None = None,
    block: int = 8,
) -> LowRankOperator:
    """Empirical Fisher of the first `samples` examples of `batch`, one gradient of the example's mean loss a row.

    Args:
        total: `(params, batch) -> (sum, count)`, a number each, or one an example, shape [B], which lets a recomputed
            product evaluate many examples at once.
        params: where the gradients are taken.
        batch: pytree with the example axis first; the caller shuffles.
        samples: rows taken; `None` takes all.
        stored: keep the rows (memory: `samples` times the parameters in f32), or recompute them in every product
            (memory: `2 block` times the parameters while the dual matrix is built).
        microbatch: examples evaluated at once: stored, `None` means one; recomputed, `None` means all.
        block: rows held at once while a recomputed dual matrix is built.

    Example:
        >>> import jax.numpy as jnp
        >>> F = empirical_fisher(lambda w, x: (jnp.sum(x @ w), len(x)), jnp.zeros(2), jnp.array([[2.0, 0.0]]))
        >>> F.damped(1.0).power(-1.0)(jnp.array([1.0, 1.0])).round(3).tolist()  # (I + diag(4, 0))^-1
        [0.2..., 1.0]
    """
    rows = first(batch, samples)
    if stored:
        return stored_form(mean_losses(total), params, rows, at_once=microbatch or 1)
    return recomputed_form(mean_losses(total), params, rows, microbatch=microbatch, block=block)


def empirical_fisher_factor(
    total: Callable[[Params, PyTree], tuple[Array, Array]],
    params: Params,
    batch: PyTree,
    *,
    microbatch: int | None = None,
) -> Factor:
    """The square root `S = G^T / sqrt(m)` of the empirical Fisher `S S^T`, nothing stored.

    Example:
        >>> import jax.numpy as jnp
        >>> S = empirical_fisher_factor(lambda w, x: (x @ w, jnp.ones(len(x))), jnp.zeros(2), jnp.array([[2.0, 0.0]]))
        >>> S.forward(jnp.array([1.0])).tolist()
        [2.0, 0.0]
    """
    return recomputed_factor(mean_losses(total), params, batch, microbatch=microbatch)


def first(batch: PyTree, samples: int | None) -> PyTree:
    """The first `samples` examples, all for `None` or fewer examples than that."""
    n = examples_in(batch)
    return batch if samples is None or samples >= n else take_rows(batch, range(samples))


def mean_losses(total: Callable[[Params, PyTree], tuple[Array, Array]]) -> Values:
    """The mean loss of every example, 0 where there is no loss token, and the number of examples that have one."""

    def values(params: Params, batch: PyTree) -> tuple[Array, Array]:
        sums, counts = total(params, batch)
        if jnp.ndim(sums) == 0 and examples_in(batch) > 1:
            sums, counts = jax.vmap(lambda row: total(params, jax.tree.map(lambda x: x[None], row)))(batch)
        sums, counts = jnp.atleast_1d(sums), jnp.atleast_1d(counts)
        real = counts > 0
        return jnp.where(real, sums / jnp.where(real, counts, 1.0), 0.0), jnp.sum(real.astype(sums.dtype))

    return values


@dataclass(frozen=True)
class EmpiricalFisher:
    """Curvature recipe: the empirical Fisher of at most `samples` retain examples, true labels, dual form.

    `stored=False` keeps no gradients: choose it when `samples` times the parameters in f32 do not fit. A product then
    costs a gradient and a half instead of two passes over the rows. Streamed, it takes every example of every batch.
    """

    psd: ClassVar[bool] = True

    samples: int | None = 64
    stored: bool = True
    microbatch: int | None = None
    block: int = 8

    def __post_init__(self):
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"EmpiricalFisher(samples={self.samples}): at least one example is needed")
        if self.block < 1:
            raise ValueError(f"EmpiricalFisher(block={self.block}): at least one row is needed at a time")

    def __call__(self, model: Model, params: Params, batch: Batch) -> LowRankOperator:
        return empirical_fisher(
            lambda p, b: losses.example_nll(model, p, b),
            params,
            batch,
            samples=self.samples,
            stored=self.stored,
            microbatch=self.microbatch,
            block=self.block,
        )

    def product(self, model: Model, params: Params, batch: Batch, v: PyTree) -> tuple[PyTree, Array]:
        """`(sum_i g_i <g_i, v>, number of examples with loss)` over every example of `batch`."""
        values = mean_losses(lambda p, b: losses.example_nll(model, p, b))
        return outer_product(values, params, batch, v, microbatch=self.microbatch)
