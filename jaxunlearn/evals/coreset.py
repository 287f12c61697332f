r"""A few examples that stand for many: which retain (or forget) records a run should see, when there are too many.

The acquisition functions of active learning, as Zhang et al. 2023 (LLMaAA, arXiv 2310.19596) use them for language
models, and one that looks at what a step will do:

* `random`: every example alike; the baseline that is hard to beat.
* `entropy`: where the model hesitates most between tokens, by the mean entropy over the loss tokens.
* `least_confidence`: where it gives the true answer the least probability per token.
* `k_means`: one example for each of as many clusters of hidden states as are wanted, the one nearest to its centre.
* `gradient_match`: greedily, examples whose mean gradient is nearest to that of all (after Mirzasoleiman et al. 2020,
  "CRAIG", and Killamsetty et al. 2021, "GRAD-MATCH"), so that a step on the few is a step on the many.

`features` are numbers a row; the choices from them are functions of arrays alone. Gradients are compared by their
inner products with k random directions, one forward-mode product each, so none is ever stored: for directions of
independent standard normals `E <g_i, v> <g_j, v> = <g_i, g_j>`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxunlearn import losses, tree
from jaxunlearn.curvature.empirical_fisher import mean_losses
from jaxunlearn.curvature.forward_mode import jvp
from jaxunlearn.data import Encoded
from jaxunlearn.evals.batching import bucketed
from jaxunlearn.evals.score import score
from jaxunlearn.sharding import on_host
from jaxunlearn.types import Model, Params, TokenBatch

Acquisition = Literal["random", "entropy", "least_confidence", "k_means", "gradient_match"]
ACQUISITIONS: tuple[str, ...] = ("random", "entropy", "least_confidence", "k_means", "gradient_match")
DIRECTIONS = 32


def coreset(
    name: Acquisition,
    model: Model,
    params: Params,
    encoded: Sequence[Encoded],
    size: int,
    *,
    seed: int = 0,
    batch_size: int = 32,
    mesh: Mesh | None = None,
) -> list[int]:
    """Indices of `size` examples, in ascending order.

    Args:
        name: one of `ACQUISITIONS`.
        model, params: the model that the features are taken from.
        encoded: all examples.
        size: how many are wanted.
        seed: of random choices, clusters and directions.
        batch_size: examples a device call.
        mesh: where batches are put.

    Errors:
        ValueError: an unknown name, or more examples wanted than there are.

    Example:
        >>> bigram = Model(logits=lambda params, tokens: params[tokens])
        >>> def text(t):
        ...     return Encoded(np.array([0, t], np.int32), np.array([0, 1], np.float32), None, "", None)
        >>> texts = [text(1), text(0), text(1)]
        >>> coreset("least_confidence", bigram, jnp.log(jnp.array([[.1, .9], [.5, .5]])), texts, 1)
        [1]
    """
    if name not in ACQUISITIONS:
        raise ValueError(f"no coreset is called {name!r}; choose one of {', '.join(ACQUISITIONS)}")
    if not 1 <= size <= len(encoded):
        raise ValueError(f"a coreset of {size} from {len(encoded)} examples: ask for 1 to {len(encoded)}")
    options = {"batch_size": batch_size, "mesh": mesh}
    if name == "random":
        rows = np.random.default_rng(seed).choice(len(encoded), size, replace=False)
    elif name in ("entropy", "least_confidence"):
        scores = score(model, params, encoded, **options)
        means = [np.mean(row) for row in scores.means]
        rows = highest(-np.array(means) if name == "entropy" else scores.nll, size)
    elif name == "k_means":
        rows = nearest_to_centres(hidden_features(model, params, encoded, **options), size, seed=seed)
    else:
        rows = match_mean(gradient_features(model, params, encoded, seed=seed, **options), size)
    return sorted(int(row) for row in rows)


def highest(values: Float[np.ndarray, " N"], size: int) -> Int[np.ndarray, " S"]:
    """Indices of the `size` highest values, the first of equal ones.

    Example:
        >>> highest(np.array([1.0, 3.0, 2.0, 3.0]), 2).tolist()
        [1, 3]
    """
    return np.argsort(-np.asarray(values), kind="stable")[:size]


def nearest_to_centres(features: Float[np.ndarray, "N D"], size: int, *, seed: int = 0) -> Int[np.ndarray, " S"]:
    """For each of `size` clusters (k-means), the example nearest to its centre, no example twice.

    Example:
        >>> sorted(nearest_to_centres(np.array([[0.0], [0.2], [0.1], [9.0], [9.3], [9.1]]), 2).tolist())
        [2, 5]
    """
    from sklearn.cluster import KMeans

    apart = KMeans(size, n_init=4, random_state=seed).fit_transform(features)
    taken: list[int] = []
    for cluster in np.argsort(apart.min(axis=0)):
        order = np.argsort(apart[:, cluster], kind="stable")
        taken.append(next(int(row) for row in order if row not in taken))
    return np.array(taken)


def match_mean(features: Float[np.ndarray, "N D"], size: int) -> Int[np.ndarray, " S"]:
    """Greedily, rows whose mean is nearest to the mean of all: each added row is the best one there is.

    Example:
        >>> match_mean(np.array([[0.0], [10.0], [4.0], [6.0]]), 2).tolist()  # 4 first, then 6: together the mean, 5
        [2, 3]
    """
    features = np.asarray(features, np.float64)
    target, total, taken = features.mean(axis=0), np.zeros(features.shape[1]), []
    for number in range(1, size + 1):
        apart = np.linalg.norm((total + features) / number - target, axis=1)
        apart[taken] = np.inf
        taken.append(int(np.argmin(apart)))
        total = total + features[taken[-1]]
    return np.array(taken)


def hidden_features(
    model: Model, params: Params, encoded: Sequence[Encoded], *, batch_size: int = 32, mesh: Mesh | None = None
) -> Float[np.ndarray, "N D"]:
    """Mean of the head's input over the loss tokens of each example.

    Errors:
        ValueError: a model that shows no hidden states.
    """
    if model.hidden is None:
        raise ValueError("k_means clusters hidden states, and this model has no `hidden`; choose another coreset")
    return _by_example(partial(_hidden, model, params), encoded, batch_size, mesh)


def gradient_features(
    model: Model,
    params: Params,
    encoded: Sequence[Encoded],
    *,
    directions: int = DIRECTIONS,
    seed: int = 0,
    batch_size: int = 32,
    mesh: Mesh | None = None,
) -> Float[np.ndarray, "N K"]:
    """`<g_i, v_k> / sqrt(K)` for K random directions, g_i the gradient of the mean NLL of example i."""
    columns = []
    for key in jax.random.split(jax.random.key(seed), directions):
        measure = partial(_along, model, params, key)
        columns.append(_by_example(measure, encoded, batch_size, mesh)[:, 0])
    return np.stack(columns, axis=1) / np.sqrt(directions)


def _by_example(
    measure: Callable[[TokenBatch], Array], encoded: Sequence[Encoded], batch_size: int, mesh: Mesh | None
) -> np.ndarray:
    found: list[np.ndarray | None] = [None] * len(encoded)
    for indices, batch in bucketed(encoded, batch_size, mesh):
        rows = on_host(measure(batch))
        for row, index in enumerate(indices):
            found[index] = rows[row].astype(np.float64)
    return np.stack(found)


@partial(jax.jit, static_argnums=0)
def _hidden(model: Model, params: Params, batch: TokenBatch) -> Float[Array, "B D"]:
    hidden = model.hidden(params, batch.tokens).astype(jnp.float32)
    before = jnp.roll(batch.loss_mask, -1, axis=1)[..., None]  # a token is predicted from the place before it
    return jnp.sum(before * hidden, axis=1) / jnp.maximum(jnp.sum(before, axis=1), 1.0)


@partial(jax.jit, static_argnums=0)
def _along(model: Model, params: Params, key: Array, batch: TokenBatch) -> Float[Array, "B 1"]:
    values = mean_losses(lambda p, b: losses.example_nll(model, p, b))
    direction = tree.cast_like(tree.normal_like(key, params), params)
    return jvp(lambda p: values(p, batch)[0], params, direction)[1][:, None]
