r"""Relearning: does a little training on the forget set bring it back faster than it is learned by a model that never
saw it? (Tarun et al. 2023, arXiv 2111.08947; Lynch et al. 2024, arXiv 2402.16835.)

The unlearned and the retrained model are fine-tuned on the same texts in the same order, in f32, by AdamW at a constant
rate. With `delta = m(after) - m(before)` for a measure m of memorisation (`attacks.memorised`), averaged over texts,

    R = min( delta_retrained / delta_unlearned, 1 ),

1 if the unlearned model learns no faster than one that starts from nothing, 0 if it jumps back while the other does not
move (a negative delta_retrained counts as 0). If the unlearned model gains nothing, nothing came back and R = 1. A
model that forgot nothing has nothing to gain and R = 1 as well: R speaks only of models whose m is low to begin with.

Training on a share of the forget set and measuring on the *rest* of it asks the sharper question, whether a few texts
bring back others that were not shown again; `share=1` trains and measures on all. At 1B parameters the customary dose
is one epoch at a rate of 2e-5. The curve over steps is part of the result, since R depends on when one stops.

    relearning(model, params, forget, reference=(model, retrained), share=.5, epochs=1, learning_rate=2e-5, ...)
      -> Relearning(robustness, interval, steps, unlearned, retrained, ...)
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Float

from jaxunlearn import losses
from jaxunlearn.data import Encoded, batches, shapes_of, steps_per_epoch
from jaxunlearn.evals.attacks.memorised import Measured, memorised
from jaxunlearn.evals.batching import Progress
from jaxunlearn.evals.bootstrap import bootstrap
from jaxunlearn.sharding.regions import replicate_rest
from jaxunlearn.tree import shard_like
from jaxunlearn.types import Model, Params, TokenBatch


class Relearning(NamedTuple):
    """What fine-tuning brought back.

    Attributes:
        robustness: R after the last step; None without a retrained model to compare with.
        interval: bootstrap interval of R over texts.
        curve: R after each entry of `steps`, 1 at step 0; None without a retrained model.
        steps: gradient steps after which memorisation was measured, the first 0.
        unlearned: memorisation of each measured text at those steps, shape [S, N].
        retrained: the same of the retrained model.
        shown: which forget texts were trained on.
        measured: which were measured.
    """

    robustness: float | None
    interval: tuple[float, float] | None
    curve: Float[np.ndarray, " S"] | None
    steps: np.ndarray
    unlearned: Float[np.ndarray, "S N"]
    retrained: Float[np.ndarray, "S N"] | None
    shown: np.ndarray
    measured: np.ndarray


def relearning(
    model: Model,
    params: Params,
    forget: Sequence[Encoded],
    *,
    reference: tuple[Model, Params] | None = None,
    share: float = 0.5,
    epochs: int = 1,
    learning_rate: float = 2e-5,
    batch_size: int = 8,
    points: int = 4,
    metric: Measured = "probability",
    seed: int = 0,
    score_batch: int = 32,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> Relearning:
    """Fine-tunes copies of the unlearned and the retrained model alike, and compares what they gain.

    Args:
        model, params: the unlearned model; its parameters are left as they are.
        forget: what was to be forgotten.
        reference: (model, params) retrained without it; None gives the curve of the unlearned model alone.
        share: of the forget texts trained on, drawn at random; the others are measured. With 1 all are both.
        epochs, learning_rate, batch_size: the dose, the same for both models.
        points: how often memorisation is measured, besides before the first step, evenly over the steps.
        metric: what is measured, see `attacks.memorised`.
        seed: which texts are shown, in what order; the bootstrap.
        score_batch: texts measured at once.
        mesh: where batches are put.
        progress: called with `(steps done, steps in all)`.

    Errors:
        ValueError: an empty forget set, a share or a dose out of range, a model that diverged.

    Example:
        >>> bigram = Model(logits=lambda params, tokens: params[tokens])
        >>> texts = [Encoded(np.array([0, i], np.int32), np.array([0.0, 1.0]), None, "", None) for i in (1, 2)]
        >>> blank = jnp.zeros((3, 3))
        >>> found = relearning(bigram, blank, texts, reference=(bigram, blank), share=1.0, learning_rate=0.1)
        >>> found.robustness, bool(found.unlearned[-1].mean() > found.unlearned[0].mean())
        (1.0, True)
    """
    _check(forget, share, epochs, learning_rate, batch_size, points)
    order = np.random.default_rng(seed).permutation(len(forget))
    shown = np.sort(order[: min(max(1, round(share * len(forget))), len(forget))])
    measured = np.setdiff1d(np.arange(len(forget)), shown) if len(shown) < len(forget) else shown
    taught, asked = [forget[i] for i in shown], [forget[i] for i in measured]
    total = epochs * steps_per_epoch(len(taught), batch_size)
    steps = np.unique(np.linspace(0, total, min(points, total) + 1).round().astype(int))
    runs = [(model, params)] + ([] if reference is None else [reference])
    curves = []
    for number, (one, start) in enumerate(runs):
        state = _begin(start, learning_rate)
        rows = [memorised(one, state[0], asked, metric, batch_size=score_batch, mesh=mesh)]
        step = _step(one, learning_rate)
        passes = batches(taught, batch_size, seed=seed, epochs=epochs, shape=shapes_of(forget))
        for done, batch in enumerate(passes, start=1):
            state = step(state, batch.on(mesh))
            if done in steps:
                rows.append(memorised(one, state[0], asked, metric, batch_size=score_batch, mesh=mesh))
            if progress is not None:
                progress(number * total + done, len(runs) * total)
        curves.append(np.stack(rows))
    unlearned, retrained = curves[0], None if reference is None else curves[1]
    if retrained is None:
        return Relearning(None, None, None, steps, unlearned, None, shown, measured)

    def last(draws: Float[np.ndarray, "R N 2"]) -> Float[np.ndarray, " R"]:
        return ratio(*np.moveaxis(draws.mean(axis=1), -1, 0))

    gains = np.stack([retrained - retrained[0], unlearned - unlearned[0]], axis=-1)
    curve = last(gains)
    interval = bootstrap(last, gains[-1], seed=seed)
    return Relearning(float(curve[-1]), interval, curve, steps, unlearned, retrained, shown, measured)


def ratio(
    delta_retrained: Float[np.ndarray, " R"], delta_unlearned: Float[np.ndarray, " R"]
) -> Float[np.ndarray, " R"]:
    """R of two gains.

    Example:
        >>> ratio(np.array([0.1, 0.4, -0.1, 0.0]), np.array([0.4, 0.1, 0.4, 0.0])).tolist()
        [0.25, 1.0, 0.0, 1.0]
    """
    gained = delta_unlearned > 0
    return np.where(gained, np.clip(delta_retrained / np.where(gained, delta_unlearned, 1.0), 0.0, 1.0), 1.0)


def _begin(params: Params, learning_rate: float) -> tuple:
    # The step consumes its state, and the caller's parameters are not ours to give away. At the rates of fine-tuning an
    # update is less than half a unit in the last place of bf16 weights: kept in that type, they would never move.
    params = jax.tree.map(lambda x: jnp.copy(x.astype(jnp.promote_types(x.dtype, jnp.float32))), params)
    return replicate_rest((params, optax.adamw(learning_rate, weight_decay=0.0).init(params)), params)


@lru_cache(maxsize=8)
def _step(model: Model, learning_rate: float):
    optimizer = optax.adamw(learning_rate, weight_decay=0.0)

    def step(state: tuple, batch: TokenBatch) -> tuple:
        params, moments = state

        def loss(p: Params):
            total, count = losses.nll(model, p, batch)
            return total / jnp.where(count > 0, count, 1.0)

        updates, moments = optimizer.update(jax.grad(loss)(params), moments, params)
        return shard_like(optax.apply_updates(params, updates), params), moments

    return jax.jit(step, donate_argnums=0)


def _check(
    forget: Sequence[Encoded], share: float, epochs: int, learning_rate: float, batch_size: int, points: int
) -> None:
    if not forget:
        raise ValueError("the forget set is empty; pass the encoded texts that were to be forgotten")
    if not 0 < share <= 1:
        raise ValueError(f"share={share}: the share of the forget set to train on, above 0 and at most 1")
    if not learning_rate > 0:
        raise ValueError(f"learning_rate={learning_rate}: give a positive rate")
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("points", points)):
        if value < 1:
            raise ValueError(f"{name}={value}: give at least 1")
