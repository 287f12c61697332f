"""The gradients at the logits whose outer products make a Fisher information.

The Fisher information of a softmax is `diag(p) - p p^T`. It is the expectation of `s s^T` for the score
`s = p - onehot(y)` of a label y drawn from p, and the sum of `c c^T` over the columns `c_v = sqrt(p_v) (onehot(v) - p)`
of a square root. Backpropagating s or c instead of the gradient of a loss gives the Fisher information of parameters.
At a temperature T, p is softmax(z / T); the scores are still those at p, not divided by T.

Reference: Kunstner, Balles and Hennig, "Limitations of the empirical Fisher approximation for natural gradient
descent", NeurIPS 2019, on why the labels of the data do not do instead.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxunlearn.curvature.kronecker.settings import Settings
from jaxunlearn.sharding.regions import auto
from jaxunlearn.types import Key, Predictions


def passes(settings: Settings, logits: Float[Array, "B P V"]) -> int:
    """Number of backward passes that the settings ask for."""
    if settings.fisher == "empirical":
        return 1
    return logits.shape[-2] * logits.shape[-1] if settings.labels == "exact" else settings.samples


def score_of(
    settings: Settings, logits: Array, targets: Array, weights: Array, ids: Array, key: Key
) -> tuple[Callable[[Array], Array], int]:
    """The gradient at the logits of each backward pass, and the number of passes."""
    predictions = Predictions(logits / settings.temperature, targets, weights)
    number = passes(settings, logits)
    if settings.fisher == "empirical":
        return lambda draw: empirical_score(predictions), number
    if settings.labels == "exact":
        return lambda draw: root_column(predictions, draw), number
    return lambda draw: sampled_score(predictions, ids, key, draw), number


def sampled_score(
    predictions: Predictions, ids: Int[Array, " B"], key: Key, draw: Int[Array, ""] | int
) -> Float[Array, "B P V"]:
    """`sqrt(w) (p - onehot(y))` for labels y drawn from the model.

    Row b draws from the random stream `(key, draw, ids[b])`, so its labels do not depend on the rows beside it.
    """
    p = _probabilities(predictions)

    def labels(p: Array, ids: Array) -> Array:
        streams = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, draw), i))(ids)
        uniform = jax.vmap(lambda k: jax.random.uniform(k, p.shape[1:-1], p.dtype))(streams)
        below = jnp.cumsum(p, axis=-1)
        # Scaled by the last sum, which rounding may leave short of 1, no draw falls beyond the last class.
        return jnp.sum(below <= uniform[..., None] * below[..., -1:], axis=-1).astype(predictions.targets.dtype)

    return _score(p, auto(labels, p, ids, like=predictions.targets), predictions.weights)


def empirical_score(predictions: Predictions) -> Float[Array, "B P V"]:
    """`sqrt(w) (p - onehot(y))` for the labels of the data."""
    return _score(_probabilities(predictions), predictions.targets, predictions.weights)


def root_column(predictions: Predictions, index: Int[Array, ""]) -> Float[Array, "B P V"]:
    """`sqrt(w) sqrt(p_v) (p - onehot(v))` at place t and 0 at the others, `(t, v) = divmod(index, V)`."""
    p = _probabilities(predictions)
    place, label = jnp.divmod(index, p.shape[-1])
    hit = (jnp.arange(p.shape[-1]) == label).astype(p.dtype)
    chosen = jnp.sum(p * hit, axis=-1)
    here = (jnp.arange(p.shape[-2]) == place).astype(p.dtype)
    return (here * jnp.sqrt(chosen * predictions.weights))[..., None] * (p - hit)


def _probabilities(predictions: Predictions) -> Array:
    logits = predictions.logits
    return jax.nn.softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), axis=-1)


def _score(p: Array, labels: Array, weights: Array) -> Array:
    hit = jnp.arange(p.shape[-1], dtype=labels.dtype) == labels[..., None]
    return jnp.sqrt(weights.astype(p.dtype))[..., None] * (p - hit.astype(p.dtype))
