"""Plain training on loss tokens: how a model comes to memorise, and how the retrained reference is made."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from jaxunlearn import losses, remainder, tree
from jaxunlearn.accumulate import accumulate
from jaxunlearn.data import Encoded, PackedRow, batches, shapes_of, steps_per_epoch
from jaxunlearn.runs.checkpoint import Checkpoints, Restored
from jaxunlearn.runs.watch import Watch
from jaxunlearn.sharding.regions import replicate_rest
from jaxunlearn.tree import shard_like
from jaxunlearn.types import Model, Params, TokenBatch


class Fitted(NamedTuple):
    """What training gave.

    Attributes:
        params: trained parameters, with rules of a watch those of its best look.
        losses: mean NLL of each epoch, of the last one as far as it was taken, nats per loss token, measured while
            training.
        steps: gradient steps taken.
        stopped: why training ended: "epochs", "loss" (of an epoch), "goal" or "limit" (of a watch).
        kept: steps after which the returned parameters were those of the model.
    """

    params: Params
    losses: list[float]
    steps: int
    stopped: str
    kept: int


def fit(
    model: Model,
    params: Params,
    encoded: Sequence[Encoded] | Sequence[PackedRow],
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float = 0.0,
    warmup: int = 10,
    stop_at_loss: float = 0.0,
    seed: int = 0,
    mesh: Mesh | None = None,
    shape: tuple[int, int] | None = None,
    microbatch: int | None = None,
    watch: Watch | None = None,
    advance: Callable[..., None] | None = None,
    checkpoints: Checkpoints | None = None,
) -> Fitted:
    """AdamW on the mean NLL of the loss tokens.

    Args:
        model: pure functions.
        params: where to start; consumed (its buffers are donated).
        encoded: the training records, or the rows that `data.pack` made of them.
        epochs: most passes over them.
        batch_size: records (or rows) a step.
        learning_rate: peak, after `warmup` steps; it then falls to zero over the epochs (cosine).
        weight_decay: of AdamW.
        warmup: steps of linear warm-up.
        stop_at_loss: stop after the first epoch whose mean loss is at or under this, nats per loss token.
        seed: order of the records.
        mesh: where batches are put; None for one device.
        shape: `(length, places)` of the batches, default that of the records: fits of one shape share a compilation.
        microbatch: records whose gradient is taken at a time, a divisor of `batch_size`; default all. Changes results
            by rounding only.
        watch: evaluates now and then, ends training by its rules, and keeps the best parameters.
        advance: called after each step, `advance(epoch=, loss=)` after the last of an epoch and with the numbers of a
            look; first, when steps are taken from a checkpoint, `advance(steps)`.
        checkpoints: where to go on from and what to leave; see `runs.checkpoint`.

    Raises:
        ValueError: when a rule of the watch ends training before its first step, or leaves no step worth keeping.
    """
    per_epoch = steps_per_epoch(len(encoded), batch_size)
    total = per_epoch * epochs
    warmup = min(warmup, total - 1)
    step = program(model, learning_rate, weight_decay, warmup, total, microbatch)
    state = replicate_rest(initial(params, learning_rate, weight_decay, warmup, total), params)
    shape = shape or shapes_of(encoded)
    history: list[float] = []
    steps, sums, place, stopped = 0, [], (0, 0), "epochs"
    found = restored(checkpoints, state, watch)
    if found is not None:
        steps, state = found.step, found.state
        history, sums, place = found.facts["losses"], [np.float32(v) for v in found.facts["sums"]], found.facts["next"]
        if advance is not None:
            advance(steps)
    elif watch is not None:
        watch.begin(state[0], state[0])
    for one in batches(encoded, batch_size, seed=seed, epochs=epochs, start=tuple(place), shape=shape):
        state, value = step(state, one.on(mesh))
        sums.append(value)
        steps += 1
        ended, seen = looked(watch, steps, state[0])
        facts = {}
        if one.next[0] > one.epoch or ended is not None:
            # One transfer an epoch: reading a loss each step would make the device wait for the host.
            total_nll, count = (float(x) for x in jnp.sum(jnp.stack([jnp.stack(v) for v in sums]), axis=0))
            history.append(total_nll / max(count, 1.0))
            sums = []
            facts = {"epoch": one.epoch + 1, "loss": history[-1]}
        if advance is not None:
            advance(**facts, **seen)
        if ended is not None or (facts and history[-1] <= stop_at_loss):
            stopped = ended or "loss"
            break
        if checkpoints is not None:
            checkpoints.after(steps, partial(_snapshot, state, watch, history, sums, one.next))
    return fitted(state[0], history, steps, stopped, watch)


def restored(checkpoints: Checkpoints | None, state: tuple, watch: Watch | None) -> Restored | None:
    """The last checkpoint of a training, from which the watch goes on too.

    Args:
        checkpoints: where it may stand.
        state: as before the first step, parameters first; given up.
        watch: of the training.
    """

    def like(facts: dict) -> tuple:
        kept = watch is not None and facts["watch"]["kept"]
        return (*state, state[0] if kept else None)

    found = None if checkpoints is None else checkpoints.restore(like)
    if found is None:
        return None
    *state, best = found.state
    if watch is not None:
        watch.resume(found.facts["watch"], best)
    return found._replace(state=tuple(state))


def snapshot(state: tuple, watch: Watch | None, **facts: Any) -> tuple[tuple, dict]:
    """What `restored` reads: the state, the parameters of the best look, the looks, and more facts."""
    best = None if watch is None or not watch.kept else watch.best_params(state[0])
    return (*state, best), facts if watch is None else {**facts, "watch": watch.progress()}


def looked(watch: Watch | None, step: int, params: Params) -> tuple[str | None, dict[str, float]]:
    """Why training ends after `step` steps, if it does, and the numbers of the look, if one is due."""
    if watch is None or not watch.due(step):
        return None, {}
    return watch.look(step, params, params), watch.shown()


def fitted(params: Params, losses: list[float], steps: int, stopped: str, watch: Watch | None) -> Fitted:
    """The result of a training that is over; `params` are the last ones.

    Raises:
        ValueError: no look was better than the first.
    """
    if watch is None:
        return Fitted(params, losses, steps, stopped, steps)
    kept = watch.settle(steps)
    return Fitted(watch.best_params(params), losses, steps, stopped, kept)


def _snapshot(
    state: tuple, watch: Watch | None, losses: list[float], sums: list, following: tuple[int, int]
) -> tuple[tuple, dict]:
    """What the next step depends on; of an epoch that has begun, the sums so far."""
    return snapshot(state, watch, losses=losses, sums=[[float(x) for x in pair] for pair in sums], next=following)


def mean_nll(model: Model, params: Params, encoded: Sequence[Encoded], *, mesh: Mesh | None = None) -> float:
    """Mean NLL of the records' loss tokens, nats per token."""
    total, count = 0.0, 0.0
    call = jax.jit(losses.nll, static_argnums=0)
    for one in batches(encoded, min(32, len(encoded)), shuffle=False):
        nll, weight = call(model, params, one.on(mesh))
        total, count = total + float(nll), count + float(weight)
    return total / count


def schedule(learning_rate: float, warmup: int, total: int) -> optax.Schedule:
    """Linear warm-up to the peak, then a cosine to zero."""
    return optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup, total)


def _optimizer(learning_rate: float, weight_decay: float, warmup: int, total: int):
    adamw = optax.adamw(schedule(learning_rate, warmup, total), weight_decay=weight_decay)
    return optax.chain(optax.clip_by_global_norm(1.0), adamw)


def initial(params: Params, learning_rate: float, weight_decay: float, warmup: int, total: int) -> tuple:
    """The state before the first step: parameters, what rounding leaves of them, and the moments of AdamW in f32."""
    moments = _optimizer(learning_rate, weight_decay, warmup, total).init(tree.to_vector(params))
    return params, remainder.start(params), moments


@lru_cache(maxsize=8)
def program(
    model: Model, learning_rate: float, weight_decay: float, warmup: int, total: int, microbatch: int | None = None
) -> Callable:
    """A compiled step, `(state, batch) -> (state, (sum, count) of the loss)`; the state is donated."""
    optimizer = _optimizer(learning_rate, weight_decay, warmup, total)

    def step(state: tuple, batch: TokenBatch) -> tuple:
        params, rest, opt_state = state

        def part(some: TokenBatch) -> tuple[PyTree, tuple[Array, Array]]:
            sums, grads = jax.value_and_grad(partial(losses.nll, model), has_aux=True)(params, some)
            return tree.to_vector(grads), sums

        grads, sums = accumulate(part, batch, microbatch)
        grads = tree.scale(1.0 / jnp.where(sums[1] > 0, sums[1], 1.0), grads)
        updates, opt_state = optimizer.update(grads, opt_state, tree.to_vector(params))
        after, rest = remainder.apply_updates(params, rest, updates)
        return (shard_like(after, params), rest, opt_state), sums

    return jax.jit(step, donate_argnums=0)
