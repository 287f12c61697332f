r"""What the layers still hold when the output no longer says it.

*Logit lens* (nostalgebraist 2020). The residual stream after l layers goes through the last norm and the head as if it
were the last: the model cut off after layer l, asked as it is. Knowledge that a late layer was taught to hide shows up
as memorisation that peaks below the top (Patil et al. 2024, "Can sensitive information be deleted from LLMs?",
arXiv 2309.17410).

*Linear probe* (Alain and Bengio 2017, arXiv 1610.01644). A logistic regression on the states of one layer, averaged
over the places that predict a text's loss tokens, tells two classes of texts apart: forget texts from unseen ones, or
any labels given. Its k-fold AUC says what is linearly there, not that the model uses it; compare with the retrained
model, since two sets of texts may differ in more than having been learned. Texts about one entity stay in one fold:
with others of the same name to learn from, a probe would know them by that.
"""

from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxunlearn.data import Encoded
from jaxunlearn.evals.attacks.audit import audit
from jaxunlearn.evals.attacks.memorised import Measured, memorised
from jaxunlearn.evals.batching import Progress, per_example
from jaxunlearn.models import truncate_layers
from jaxunlearn.types import Model, Params, TokenBatch


class Lens(NamedTuple):
    """Memorisation by layer.

    Attributes:
        layers: after how many layers, the last entry all of them.
        memorised: of each text, shape [layers, N].
        best: index into `layers` of the layer that knows most, on average over the texts.
    """

    layers: tuple[int, ...]
    memorised: Float[np.ndarray, "L N"]
    best: int


class Probe(NamedTuple):
    """Linear separability by layer.

    Attributes:
        layers: after how many layers, 0 the embedding.
        auc: k-fold AUC at each.
        intervals: bootstrap interval of each, wide enough to hold for the best of them (Bonferroni).
        best: index into `layers` of the highest AUC.
    """

    layers: tuple[int, ...]
    auc: Float[np.ndarray, " L"]
    intervals: tuple[tuple[float, float], ...]
    best: int


def logit_lens(
    model: Model,
    params: Params,
    encoded: Sequence[Encoded],
    *,
    layers: Sequence[int] | None = None,
    metric: Measured = "exact_memorisation",
    **options: Any,
) -> Lens:
    """Memorisation of each text when the head reads layer l.

    Args:
        model: a decoder of this library.
        params: its parameters, left as they are.
        encoded: the texts.
        layers: after how many layers to read, 1 to L; default every one.
        metric: what is measured, see `attacks.memorised`.
        options: `batch_size`, `mesh`, `progress` of `score`.

    Errors:
        ValueError: a model that is no decoder, or a layer it does not have.

    Example:
        >>> from jaxunlearn import models
        >>> config = models.DecoderConfig(vocab_size=32, hidden_size=16, num_attention_heads=4, num_hidden_layers=3)
        >>> model, params = models.init(config, jax.random.key(0))
        >>> text = Encoded(np.array([0, 1], np.int32), np.array([0.0, 1.0], np.float32), None, "", None)
        >>> logit_lens(model, params, [text]).layers
        (1, 2, 3)
    """
    layers = tuple(range(1, _depth(model) + 1) if layers is None else layers)
    found = np.stack([memorised(*truncate_layers(model, params, n), encoded, metric, **options) for n in layers])
    return Lens(layers, found, int(np.argmax(found.mean(axis=1))))


def linear_probe(
    model: Model,
    params: Params,
    positives: Sequence[Encoded],
    negatives: Sequence[Encoded],
    *,
    layers: Sequence[int] | None = None,
    folds: int = 5,
    seed: int = 0,
    **options: Any,
) -> Probe:
    """How well a straight cut through the states of each layer tells two sets of texts apart.

    Args:
        model: any model with `hidden`.
        params: its parameters, left as they are.
        positives, negatives: the two classes, about at least `folds` entities each.
        layers: after how many layers; default 0 (the embedding) to L, for a decoder of this library.
        folds, seed: of the cross-validation and the bootstrap.
        options: `batch_size`, `mesh` of `mean_states`.

    Errors:
        ValueError: fewer entities than folds, or a model without hidden states.
    """
    layers = tuple(range(_depth(model) + 1) if layers is None else layers)
    texts = [*positives, *negatives]
    groups = entities(positives), entities(negatives)
    found = []
    for layer in layers:
        states = mean_states(model, params, texts, layer=layer, **options)
        inside, outside = states[: len(positives)], states[len(positives) :]
        how = {"groups": groups, "folds": folds, "seed": seed, "confidence": 1 - 0.05 / len(layers)}
        found.append(audit(inside, outside, classifier="logistic", **how))
    auc = np.array([one.auc for one in found])
    return Probe(layers, auc, tuple(one.interval for one in found), int(np.argmax(auc)))


def entities(encoded: Sequence[Encoded]) -> list[Hashable]:
    """Whom or what each text is about, as its record says; a text whose record does not is a group by itself."""
    return [(one.record and one.record.entity) or number for number, one in enumerate(encoded)]


def mean_states(
    model: Model,
    params: Params,
    encoded: Sequence[Encoded],
    *,
    layer: int,
    batch_size: int = 32,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> Float[np.ndarray, "N D"]:
    """Residual stream after `layer` layers, averaged over the places that predict a text's loss tokens.

    Example:
        >>> doubled = Model(logits=None, hidden=lambda params, tokens, layer: params[tokens] * 2**layer)
        >>> text = Encoded(np.array([0, 1, 2], np.int32), np.array([0.0, 1.0, 1.0], np.float32), None, "", None)
        >>> mean_states(doubled, jnp.array([[1.0, 0.0], [0.0, 3.0], [9.0, 9.0]]), [text], layer=1).tolist()
        [[1.0, 3.0]]
    """
    if model.hidden is None:
        raise ValueError("a probe reads hidden states, which this model does not give: set Model.hidden")
    measure = partial(_means, model, layer, params)
    columns = per_example(measure, encoded, batch_size=batch_size, mesh=mesh, progress=progress)
    return np.stack([row[0] for row in columns["state"]])


@partial(jax.jit, static_argnums=(0, 1))
def _means(model: Model, layer: int, params: Params, batch: TokenBatch) -> dict[str, Float[Array, "B 1 D"]]:
    places = batch.places(model, params, layer)
    real = (places.weights > 0).astype(jnp.float32)[..., None]
    total = jnp.sum(real * places.hidden.astype(jnp.float32), axis=1, keepdims=True)
    return {"state": total / jnp.sum(real, axis=1, keepdims=True)}


def _depth(model: Model) -> int:
    config = getattr(model.source, "config", None)
    if config is None:
        raise ValueError("the depth of this model is not known: name the layers")
    return config.num_hidden_layers
