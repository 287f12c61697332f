"""Private gradients, the step of DP-SGD: what one record can change is bounded, and noise hides it.

    g_i = grad of the loss of record i
    s = sum_i g_i min(1, C / ||g_i||)
    private gradient = (s + sigma C eps) / b,     eps ~ N(0, I)

A record added or removed moves s by at most C, whatever the record is. b is the number of records expected in a
batch, a constant: a division by the number that was really drawn would tell it. Any optimiser may follow. What many
such steps cost is computed in `accounting`, which also says how batches must be drawn.

Clipping and sum are optax's `per_example_global_norm_clip`, with two additions. Its sum is a matrix product, which
accelerators round to bf16 or TF32 unless told otherwise, so that a clipped gradient could exceed C by 2^-8; here it is
told. A gradient that is not finite would make the sum NaN, which shows that the record is there; here it counts as
zero. optax's `differentially_private_aggregate` is not used: it needs the gradients of the whole batch at once and
divides by their number. Here one microbatch of them is in memory, sum and noise are laid out like the parameters, and
nothing depends on the size of a microbatch or on the mesh but the order of summation.

References: Abadi et al., "Deep learning with differential privacy", CCS 2016; Song et al., "Stochastic gradient
descent with differentially private updates", GlobalSIP 2013; McMahan et al., "Learning differentially private
recurrent language models", ICLR 2018.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from jaxunlearn import losses, tree
from jaxunlearn.accumulate import accumulate
from jaxunlearn.curvature.empirical_fisher import mean_losses
from jaxunlearn.curvature.outer_product import Values, gradients
from jaxunlearn.types import Model, Params, examples_in


class ClippedSum(NamedTuple):
    """Clipped gradients, added up. Only `total` is meant to be noised: the counts are exact facts about the records.

    Attributes:
        total: `sum_i g_i min(1, C / ||g_i||)`, f32, laid out like the parameters.
        records: records with loss; rows that only fill the batch do not count.
        clipped: how many of them were longer than C.
        dropped: how many were not finite and count as zero.
    """

    total: Params
    records: Float[Array, ""]
    clipped: Int[Array, ""]
    dropped: Int[Array, ""]


def record_nll(model: Model) -> Values:
    """The loss of each record for the functions below: the mean NLL of its loss tokens, 0 where it has none."""
    return mean_losses(lambda params, batch: losses.example_nll(model, params, batch))


def clipped_sum(
    values: Values, params: Params, batch: PyTree, *, clip_norm: float, microbatch: int | None = None
) -> ClippedSum:
    """`sum_i g_i min(1, C / ||g_i||)` over the records of `batch`, norms over all parameters together.

    Args:
        values: `(params, batch) -> ([B] losses, number of records that count)`, where the loss of a record depends on
            no other one; see `record_nll`.
        params: where the gradients are taken.
        batch: pytree with the example axis first; rows without loss add nothing.
        clip_norm: C > 0, in the units of a gradient.
        microbatch: records whose gradients are in memory at once, each as large as the parameters in f32; a divisor
            of the batch, `None` for all.

    Raises:
        ValueError: `clip_norm` is not positive, or the batch does not divide into microbatches.

    Example:
        >>> values = lambda w, x: (x @ w, jnp.float32(len(x)))
        >>> found = clipped_sum(values, jnp.zeros(2), jnp.array([[3.0, 4.0], [0.5, 0.0]]), clip_norm=1.0)
        >>> found.total.round(3).tolist(), int(found.clipped)
        ([1.1..., 0.8...], 1)
    """
    if not clip_norm > 0:
        raise ValueError(f"clip_norm={clip_norm}: gradients are clipped to a positive norm")

    def of_chunk(chunk: PyTree) -> ClippedSum:
        rows, count = gradients(values, params, chunk, at_once=examples_in(chunk))
        finite = jnp.isfinite(jax.vmap(tree.norm)(rows))
        leaves, structure = jax.tree.flatten(rows)
        leaves = [jnp.where(finite.reshape(-1, *(1,) * (x.ndim - 1)), x, 0.0) for x in leaves]
        with jax.default_matmul_precision("highest"):
            sums, clipped = optax.per_example_global_norm_clip(leaves, clip_norm)
        return ClippedSum(jax.tree.unflatten(structure, sums), count, clipped, jnp.sum(~finite))

    found = accumulate(of_chunk, batch, microbatch)
    return found._replace(total=tree.shard_like(found.total, params))


def private_gradient(
    values: Values,
    params: Params,
    batch: PyTree,
    key: Array,
    *,
    clip_norm: float,
    noise_multiplier: float,
    expected: float,
    microbatch: int | None = None,
) -> tuple[Params, ClippedSum]:
    """`(sum_i g_i min(1, C / ||g_i||) + sigma C eps) / b`: the gradient of one step of DP-SGD.

    Args:
        values: losses of single records; see `clipped_sum`.
        params: where the gradients are taken.
        batch: a Poisson sample of the records, filled up with rows without loss.
        key: of this step alone. The guarantee holds against those who can guess neither it nor the sample.
        clip_norm: C > 0.
        noise_multiplier: sigma >= 0; 0 gives the clipped gradient, which is not private.
        expected: b > 0, records in a batch on average.
        microbatch: records whose gradients are in memory at once; `None` for all.

    Returns:
        The private gradient, f32, laid out like the parameters, and the sum before the noise, which is not private.

    Raises:
        ValueError: C or b is not positive, or sigma is negative.

    Example:
        >>> model = Model(logits=lambda w, x: x @ w)
        >>> from jaxunlearn.types import LabelledBatch
        >>> batch = LabelledBatch(jnp.ones((4, 3)), jnp.array([0, 1, 0, 1]), jnp.array([1.0, 1.0, 1.0, 0.0]))
        >>> gradient, exact = private_gradient(
        ...     record_nll(model), jnp.zeros((3, 2)), batch, jax.random.key(0),
        ...     clip_norm=1.0, noise_multiplier=0.5, expected=3, microbatch=2,
        ... )
        >>> gradient.shape, int(exact.records), int(exact.clipped)
        ((3, 2), 3, 3)
    """
    if not expected > 0 or not noise_multiplier >= 0:
        raise ValueError(
            f"private_gradient(expected={expected}, noise_multiplier={noise_multiplier}): the expected number of "
            "records must be positive and the noise at least 0"
        )
    found = clipped_sum(values, params, batch, clip_norm=clip_norm, microbatch=microbatch)
    deviation = noise_multiplier * clip_norm
    noise = tree.normal_like(key, params)
    return jax.tree.map(lambda s, e: (s + deviation * e) / expected, found.total, noise), found
