"""Private training on loss tokens: DP-Adam, that is AdamW on the private gradients of Poisson samples.

The number of steps is fixed beforehand: a run that stopped by its loss would tell something about the records that no
noise covers. The losses reported are such exact facts too, meant for whoever holds the records anyway. A watch may end
a run and choose among its models by what it measures on *other* records: the guarantee holds for all steps together and
for whatever is computed from their results.
"""

import secrets
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, UInt32

from jaxunlearn import remainder, tree
from jaxunlearn.accounting import SampledGaussian
from jaxunlearn.data import Encoded, poisson_batches, shapes_of
from jaxunlearn.private import private_gradient, record_nll
from jaxunlearn.runs.checkpoint import Checkpoints
from jaxunlearn.runs.fit import Fitted, fitted, looked, mean_nll, restored, schedule, snapshot
from jaxunlearn.runs.watch import Watch
from jaxunlearn.sharding.regions import replicate_rest
from jaxunlearn.types import Model, Params, TokenBatch


def fit_private(
    model: Model,
    params: Params,
    encoded: Sequence[Encoded],
    mechanism: SampledGaussian,
    *,
    clip_norm: float,
    learning_rate: float,
    weight_decay: float = 0.0,
    warmup: int = 10,
    microbatch: int = 8,
    report_every: int | None = None,
    entropy: UInt32[np.ndarray, "6"] | None = None,
    mesh: Mesh | None = None,
    shape: tuple[int, int] | None = None,
    watch: Watch | None = None,
    advance: Callable[..., None] | None = None,
    checkpoints: Checkpoints | None = None,
) -> Fitted:
    """AdamW on `private_gradient` of the mean NLL of each record's loss tokens, exactly as `mechanism` accounts for it.

    Args:
        model: pure functions.
        params: where to start; consumed (its buffers are donated). What they know is not covered.
        encoded: the training records, `mechanism.records` of them.
        mechanism: sampling, steps and noise.
        clip_norm: C.
        learning_rate: peak, after `warmup` steps; it then falls to zero over the steps (cosine).
        weight_decay: of AdamW.
        warmup: steps of linear warm-up.
        microbatch: records whose gradients are in memory at once.
        report_every: steps between two measurements of the loss over all records, default one after the last.
        entropy: six random words that decide samples and noise, default from the operating system. The guarantee
            holds against those who do not know them.
        mesh: where batches are put; None for one device.
        shape: `(length, places)` of the batches, default that of the records.
        watch: evaluates now and then, ends training by its rules, and keeps the best parameters. With rules, what it
            measures must not be the records: see the module.
        advance: called after each step, `advance(epoch=, loss=)` after one that is measured and with the numbers of a
            look; first, when steps are taken from a checkpoint, `advance(steps)`.
        checkpoints: where to go on from and what to leave; see `runs.checkpoint`.

    Raises:
        ValueError: the records are not as many as `mechanism` says, `microbatch` is below 1, or a rule of the watch
            ends training before its first step or leaves no step worth keeping.
    """
    if len(encoded) != mechanism.records:
        raise ValueError(f"{len(encoded)} records, but the privacy was computed for {mechanism.records}")
    if microbatch < 1:
        raise ValueError(f"microbatch={microbatch}: at least one gradient is in memory")
    words = _entropy() if entropy is None else entropy
    key = jax.random.wrap_key_data(words[:2], impl="threefry2x32")
    microbatch = min(microbatch, mechanism.capacity)
    warmup = min(warmup, mechanism.steps - 1)
    rule = (learning_rate, weight_decay, warmup, mechanism.steps)
    step = _step(model, rule, clip_norm, mechanism.noise_multiplier, mechanism.expected, microbatch)
    moments = _optimizer(*rule).init(tree.to_vector(params))
    state = replicate_rest((params, remainder.start(params), moments), params)
    every = report_every or mechanism.steps
    history: list[float] = []
    done, stopped = 0, "epochs"
    found = restored(checkpoints, state, watch)
    if found is not None:
        done, state, history = found.step, found.state, found.facts["losses"]
        if advance is not None:
            advance(done)
    elif watch is not None:
        watch.begin(state[0], state[0])
    samples = poisson_batches(
        encoded,
        mechanism.sampling_rate,
        capacity=mechanism.capacity,
        steps=mechanism.steps - done,
        random=np.random.default_rng(words[2:]),
        rows=-(-mechanism.capacity // microbatch) * microbatch,
        shape=shape or shapes_of(encoded),
    )
    for one in samples:
        done += 1
        state = step(state, one.on(mesh), jax.random.fold_in(key, done))
        ended, seen = looked(watch, done, state[0])
        facts = {}
        if done % every == 0 or done == mechanism.steps or ended is not None:
            history.append(mean_nll(model, state[0], encoded, mesh=mesh))
            facts = {"epoch": len(history), "loss": history[-1]}
        if advance is not None:
            advance(**facts, **seen)
        if ended is not None:
            stopped = ended
            break
        if checkpoints is not None:
            checkpoints.after(done, partial(snapshot, state, watch, losses=history))
    return fitted(state[0], history, done, stopped, watch)


def _entropy() -> np.ndarray:
    """Six words from the operating system, the same on every process of a run."""
    from jax.experimental.multihost_utils import broadcast_one_to_all

    return np.asarray(broadcast_one_to_all(np.frombuffer(secrets.token_bytes(24), np.uint32)))


def _optimizer(learning_rate: float, weight_decay: float, warmup: int, total: int) -> optax.GradientTransformation:
    return optax.adamw(schedule(learning_rate, warmup, total), weight_decay=weight_decay)


@lru_cache(maxsize=8)
def _step(model: Model, rule: tuple, clip_norm: float, noise_multiplier: float, expected: float, microbatch: int):
    optimizer, values = _optimizer(*rule), record_nll(model)

    def step(state: tuple, batch: TokenBatch, key: Array) -> tuple:
        params, rest, opt_state = state
        gradient, _ = private_gradient(
            values,
            params,
            batch,
            key,
            clip_norm=clip_norm,
            noise_multiplier=noise_multiplier,
            expected=expected,
            microbatch=microbatch,
        )
        updates, opt_state = optimizer.update(gradient, opt_state, tree.to_vector(params))
        after, rest = remainder.apply_updates(params, rest, updates)
        return tree.shard_like(after, params), rest, opt_state

    return jax.jit(step, donate_argnums=0)
