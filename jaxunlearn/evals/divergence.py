r"""How far apart two models' outputs are: KL divergence and total variation, over the whole vocabulary.

Two networks can behave alike with quite different weights, so "as good as retrained" is measured in output space:

    KL(p || q) = sum_v p(v) log( p(v) / q(v) )       nats,      TV(p, q) = 1/2 sum_v |p(v) - q(v)|,

averaged over the loss tokens of a set, p the retrained model and q the unlearned one. Two models retrained with
different seeds differ too; their divergence is the floor below which "different from retrained" means nothing.

The sum is taken over `p log(p/q) + q - p`, whose terms are never negative (f(x) = x log x - x + 1 >= 0), so nothing
cancels and small divergences keep their digits in f32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxunlearn.data import Encoded
from jaxunlearn.evals.batching import Progress, per_example
from jaxunlearn.types import Batch, Model, Params


@dataclass(frozen=True, eq=False)
class Divergence:
    """KL(p || q) and total variation at each loss token; entry i has the shape [n_i].

    Attributes:
        kl: nats.
        total_variation: between 0 and 1.
    """

    kl: list[Float[np.ndarray, " n"]]
    total_variation: list[Float[np.ndarray, " n"]]

    @property
    def mean_kl(self) -> float:
        """Mean over all loss tokens of the set, nats."""
        return float(np.mean(np.concatenate(self.kl)))

    @property
    def mean_total_variation(self) -> float:
        """Mean over all loss tokens of the set."""
        return float(np.mean(np.concatenate(self.total_variation)))


def kl(
    model: Model,
    params_p: Params,
    params_q: Params,
    encoded: Sequence[Encoded],
    *,
    model_q: Model | None = None,
    batch_size: int = 32,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> Divergence:
    """KL(p || q) at every loss token; `kl(model, retrained, unlearned, forget)` is the distance to retraining.

    Args:
        model: computes p from `params_p`, and q from `params_q` unless `model_q` is given.
        params_p: parameters of p, the reference.
        params_q: parameters of q.
        encoded: the examples.
        model_q: another model for q, over the same vocabulary.
        batch_size: examples a device call; bounds memory only.
        mesh: where to put the batches.
        progress: called with `(examples done, examples in all)`.

    Errors:
        ValueError: an empty set, an example without loss tokens, or two vocabularies of different size.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from jaxunlearn.types import Model
        >>> from jaxunlearn.data import Encoded
        >>> bigram = Model(logits=lambda params, tokens: params[tokens])
        >>> example = Encoded(np.array([0, 1], np.int32), np.array([0, 1], np.float32), None, "", None)
        >>> fair, biased = jnp.log(jnp.array([[.5, .5]] * 2)), jnp.log(jnp.array([[.9, .1]] * 2))
        >>> round(kl(bigram, fair, biased, [example]).mean_kl, 4)  # log(.5 / .3)
        0.5108
    """
    columns = per_example(
        partial(batch_divergence, model, model if model_q is None else model_q, params_p, params_q),
        encoded,
        batch_size=batch_size,
        mesh=mesh,
        progress=progress,
    )
    return Divergence(columns["kl"], columns["total_variation"])


@partial(jax.jit, static_argnums=(0, 1))
def batch_divergence(
    model_p: Model, model_q: Model, params_p: Params, params_q: Params, batch: Batch
) -> dict[str, Float[Array, "B P"]]:
    """Both divergences at every place of one batch, compiled."""
    log_p, log_q = (_log_softmax(batch, m, w) for m, w in ((model_p, params_p), (model_q, params_q)))
    if log_p.shape != log_q.shape:
        raise ValueError(
            f"the two models have vocabularies of {log_p.shape[-1]} and {log_q.shape[-1]} tokens; "
            "a divergence needs one vocabulary: compare models that share a tokenizer"
        )
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    gap = jnp.where(p > 0, log_p - log_q, 0.0)
    # Near gap = 0 the two parts of the term cancel; there it is p (expm1(-gap) + gap), the same number.
    near = jnp.abs(gap) < 1.0
    small = p * (jnp.expm1(-jnp.where(near, gap, 0.0)) + jnp.where(near, gap, 0.0))
    terms = jnp.where(near & (p > 0), small, p * gap + q - p)
    return {"kl": jnp.sum(terms, axis=-1), "total_variation": 0.5 * jnp.sum(jnp.abs(p - q), axis=-1)}


def _log_softmax(batch: Batch, model: Model, params: Params) -> Float[Array, "B P V"]:
    logits = batch.predict(model, params).logits
    return jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
