r"""One scoring pass; nearly every metric afterwards is arithmetic on what it returns.

For each loss token t with true token y_t and the model's distribution p_t over the vocabulary, the pass keeps

    log_probs  log p_t(y_t)                                             nats
    hits       arg max_v p_t(v) == y_t                                  teacher-forced, the lowest id wins a tie
    means      mu_t    = sum_v p_t(v) log p_t(v)                        minus the entropy
    stds       sigma_t = sqrt( sum_v p_t(v) (log p_t(v) - mu_t)^2 )

The last two are the moments by which Min-K%++ (Zhang et al. 2024, arXiv 2404.02936) standardises a token's
log-probability. They are computed on the device in f32, so no [B, P, V] array ever comes to the host, and kept there
in float64, in which all statistics are done.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from jaxunlearn.data import Encoded
from jaxunlearn.evals.batching import Progress, per_example
from jaxunlearn.types import Batch, Model, Params


@dataclass(frozen=True, eq=False)
class Scores:
    """What one model says about each loss token of each example; entry i has the shape [n_i].

    Attributes:
        log_probs: log-probability of the true token, nats.
        hits: whether the likeliest token is the true one.
        means: expected log-probability under the model itself, nats.
        stds: its standard deviation under the model itself, nats.
    """

    log_probs: list[Float[np.ndarray, " n"]]
    hits: list[Bool[np.ndarray, " n"]]
    means: list[Float[np.ndarray, " n"]]
    stds: list[Float[np.ndarray, " n"]]

    def __len__(self) -> int:
        return len(self.log_probs)

    def __getitem__(self, part: slice) -> "Scores":
        """The scores of a run of examples: `scores[10:20]`."""
        return Scores(self.log_probs[part], self.hits[part], self.means[part], self.stds[part])

    def take(self, indices: Sequence[int]) -> "Scores":
        """The scores of some examples, in the order asked for."""
        columns = (self.log_probs, self.hits, self.means, self.stds)
        return Scores(*([column[i] for i in indices] for column in columns))

    @property
    def nll(self) -> Float[np.ndarray, " N"]:
        """Mean negative log-likelihood of each example, nats per loss token."""
        return np.array([-np.mean(row) for row in self.log_probs])

    @property
    def tokens(self) -> np.ndarray:
        """Number of loss tokens of each example."""
        return np.array([len(row) for row in self.log_probs])


def score(
    model: Model,
    params: Params,
    encoded: Sequence[Encoded],
    *,
    batch_size: int = 32,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Scores a set of examples in one batched pass.

    A place counts once when its loss mask is not 0: evaluation does not weigh tokens. The result does not depend on
    `batch_size`, which only bounds memory (a batch holds `batch_size * loss tokens * vocabulary` f32 logits).

    Args:
        model: pure functions of the parameters.
        params: its parameters, left as they are.
        encoded: the examples, as `jaxunlearn.data.encode` returns them.
        batch_size: examples a device call.
        mesh: where to put the batches; the mesh the parameters are on.
        progress: called with `(examples done, examples in all)` after each batch.

    Errors:
        ValueError: an empty set, an example without loss tokens, a batch size below 1.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from jaxunlearn.types import Model
        >>> from jaxunlearn.data import Encoded
        >>> bigram = Model(logits=lambda params, tokens: params[tokens])
        >>> example = Encoded(np.array([0, 1, 2], np.int32), np.array([0, 1, 1], np.float32), None, "", None)
        >>> scores = score(bigram, jnp.log(jnp.array([[.1, .8, .1], [.2, .2, .6], [.2, .2, .6]])), [example])
        >>> np.exp(scores.log_probs[0]).round(3).tolist(), scores.hits[0].tolist()
        ([0.8, 0.6], [True, True])
    """
    columns = per_example(
        partial(batch_scores, model, params), encoded, batch_size=batch_size, mesh=mesh, progress=progress
    )
    return Scores(columns["log_probs"], columns["hits"], columns["means"], columns["stds"])


@partial(jax.jit, static_argnums=0)
def batch_scores(model: Model, params: Params, batch: Batch) -> dict[str, Array]:
    """`moments` of one batch, compiled: what a scoring pass runs."""
    logits, targets, _ = batch.predict(model, params)
    return moments(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), targets)


def moments(logits: Float[Array, "B P V"], targets: Int[Array, "B P"]) -> dict[str, Array]:
    """The four columns of `Scores` from logits, f32 or wider.

    Every line below that sums over the vocabulary becomes one fused loop that reads the logits and writes a number a
    place. An exponential that two of them shared would be written out for the whole vocabulary, which takes longer
    than all of them: so the second moment has a form of its own, `exp(mu) sum exp(y) y^2` with `y = log p - mu`, and
    the arg-max is a comparison with the true token.

    Example:
        >>> found = moments(jnp.log(jnp.array([[[0.5, 0.25, 0.25]]])), jnp.array([[0]]))
        >>> round(float(found["log_probs"][0, 0]), 4), bool(found["hits"][0, 0]), round(float(found["means"][0, 0]), 4)
        (-0.6931, True, -1.0397)
    """
    top = jnp.max(logits, axis=-1)
    log_sum = jnp.log(jnp.sum(jnp.exp(logits - top[..., None]), axis=-1))
    # A masked-out vocabulary entry has log p = -inf and p = 0: bounded, its share of an expectation is 0 and not NaN.
    log_p = logits - (top + log_sum)[..., None]
    mean = jnp.sum(jnp.exp(log_p) * jnp.maximum(log_p, -1e30), axis=-1)
    away = logits - (top + log_sum + mean)[..., None]
    variance = jnp.exp(mean) * jnp.sum(jnp.exp(away) * jnp.minimum(away * away, 1e30), axis=-1)
    true = jnp.take_along_axis(logits, targets[..., None], axis=-1)
    ids = jnp.arange(logits.shape[-1], dtype=targets.dtype)
    beaten = jnp.any((logits > true) | ((logits == true) & (ids < targets[..., None])), axis=-1)
    log_prob = (true[..., 0] - top) - log_sum
    return {
        "log_probs": log_prob,
        "hits": ~beaten & ~jnp.isnan(log_prob),
        "means": mean,
        "stds": jnp.sqrt(variance),
    }
