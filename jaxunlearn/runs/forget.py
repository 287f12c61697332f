"""The unlearning loop: `unlearn_step` over batches, with a stop rule and a history."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from jaxunlearn import remainder
from jaxunlearn.curvature import load
from jaxunlearn.curvature.subset import Select, partition
from jaxunlearn.data import Encoded, PairStep, pair
from jaxunlearn.methods import Method
from jaxunlearn.runs.checkpoint import Checkpoints
from jaxunlearn.runs.references import Stored
from jaxunlearn.runs.watch import Watch
from jaxunlearn.sharding import on_host
from jaxunlearn.transforms import held_at
from jaxunlearn.types import Model, Params, UnlearnBatch
from jaxunlearn.unlearn import StepInfo, UnlearnState, init, unlearn_step


class Forgotten(NamedTuple):
    """What a run gave.

    Attributes:
        state: the final state; `state.whole()` are the unlearned parameters, with rules those of the best look.
        info: of the step that gave the parameters, with its certificate.
        history: one dictionary of numbers a step.
        stopped: why the run ended: "steps", "unseen" (the forget loss reached that of unseen text), "goal" or "limit"
            (of a watch), "streamed" (`runs.forget_streamed` takes one step).
        products: operator products spent by the solver.
        kept: steps after which the returned parameters were those of the model.
    """

    state: UnlearnState
    info: StepInfo
    history: list[dict[str, float]]
    stopped: str
    products: int
    kept: int


class Progress(NamedTuple):
    """The arrays of a checkpoint.

    Attributes:
        state: as the next step takes it, without the parameters that no step changes.
        info: of the last step.
        best, best_info: parameters of the best look so far, and the step that made them; None before one, or where
            nothing says which is best.
    """

    state: UnlearnState
    info: StepInfo
    best: Params | None = None
    best_info: StepInfo | None = None


def forget(
    method: Method,
    model: Model,
    params: Params,
    forget_set: Sequence[Encoded],
    retain_set: Sequence[Encoded],
    stored: Stored,
    *,
    steps: int,
    batch_size: int,
    retain_size: int,
    stop_at_nll: float | None = None,
    seed: int = 0,
    mesh: Mesh | None = None,
    trainable: Select | None = None,
    anchor: Callable[[], Params] | None = None,
    watch: Watch | None = None,
    advance: Callable[..., None] | None = None,
    checkpoints: Checkpoints | None = None,
) -> Forgotten:
    """Run `method` for at most `steps` steps.

    Args:
        method: a recipe.
        model: pure functions.
        params: where to start; consumed (the state is donated).
        forget_set, retain_set: encoded records; each forget batch is paired with a random retain batch.
        stored: what the original model said.
        steps: most steps.
        batch_size: forget records a step, at most all of them.
        retain_size: retain records a step, at most all of them.
        stop_at_nll: stop once the forget loss (nats per token, on the batch) has reached this.
        seed: order of the batches, and noise.
        mesh: where batches are put.
        trainable: which parameters are changed, as `jaxunlearn.init` takes it; None for all.
        anchor: gives the parameters that an anchor of the method holds to, of which it keeps a copy in f32; None for
            `params`.
        watch: evaluates now and then, ends the run by its rules, and keeps the best parameters.
        advance: called with the numbers of each step; first, when steps are taken from a checkpoint, `advance(steps)`.
        checkpoints: where to go on from and what to leave; see `runs.checkpoint`. Parameters that no step changes are
            not among it.

    Raises:
        ValueError: when a rule of the watch ends the run before its first step, or leaves no step worth keeping.
    """
    batch_size, retain_size = min(batch_size, len(forget_set)), min(retain_size, len(retain_set))
    store = None if method.factors is None else load(method.factors, params)
    state = init(method, model, params, key=jax.random.key(seed), trainable=trainable)
    if anchor is not None:
        held = anchor() if trainable is None else partition(anchor(), trainable)[0]
        state = state._replace(opt_state=held_at(state.opt_state, held))
        del held
    step = _compiled(method, model)
    history: list[dict[str, float]] = []
    info, best, stopped, place = None, None, "steps", (0, 0)
    pairs = partial(pair, forget_set, retain_set, batch_size, retain_size=retain_size, seed=seed, epochs=steps)

    def complete(one: PairStep) -> UnlearnBatch:
        return stored.complete(one, mesh)._replace(curvature=store)

    def like(facts: dict) -> Progress:
        shapes = jax.eval_shape(step, state, complete(next(iter(pairs()))))[1]
        kept = watch is not None and facts["watch"]["kept"]
        return Progress(state._replace(frozen=None), shapes, *((state.params, shapes) if kept else ()))

    found = None if checkpoints is None else checkpoints.restore(like)
    if found is not None:
        progress, (history, place) = found.state, (found.facts["history"], found.facts["next"])
        state, info, best = progress.state._replace(frozen=state.frozen), progress.info, progress.best_info
        if watch is not None:
            watch.resume(found.facts["watch"], progress.best)
        if advance is not None:
            advance(found.step)
    elif watch is not None:
        watch.begin(state.whole(), state.params)
    for one, _ in zip(pairs(start=tuple(place)), range(len(history), steps), strict=False):
        state, info = step(state, complete(one))
        facts = numbers(info)
        ended = None
        if watch is not None and watch.due(len(history) + 1):
            ended = watch.look(len(history) + 1, state.whole(), state.params)
            best = info if watch.kept == len(history) + 1 else best
            facts |= watch.shown()
        history.append(facts)
        if advance is not None:
            advance(**facts)
        if ended is not None:
            stopped = ended
            break
        if stop_at_nll is not None and facts.get("forget_nll", 0.0) >= stop_at_nll:
            stopped = "unseen"
            break
        if checkpoints is not None:
            checkpoints.after(len(history), partial(_snapshot, state, info, best, watch, history, one.next))
    kept = len(history) if watch is None else watch.settle(len(history))
    if watch is not None and watch.rules:
        params = watch.best_params(state.params)
        info, state = best, state._replace(params=params, remainder=remainder.start(params))
    products = sum(int(facts.get("products", 0)) for facts in history)
    return Forgotten(state, info, history, stopped, products, kept)


def _snapshot(
    state: UnlearnState,
    info: StepInfo,
    best_info: StepInfo | None,
    watch: Watch | None,
    history: list[dict[str, float]],
    following: tuple[int, int],
) -> tuple[Progress, dict]:
    facts = {"history": history, "next": following, "watch": None if watch is None else watch.progress()}
    best = None if watch is None or not watch.kept else watch.best_params(state.params)
    return Progress(state._replace(frozen=None), info, best, None if best is None else best_info), facts


def numbers(info: StepInfo) -> dict[str, float]:
    """The numbers of a step worth a line in the history."""
    info = on_host(info)
    facts = {"objective": float(info.objective), "update_norm": float(info.update_norm), "applied": float(info.applied)}
    c = info.certificate
    if c is not None:
        facts |= {"forget_nll": float(c.forget_after)}
        if c.retain_after is not None:
            facts |= {"retain_nll": float(c.retain_after), "retain_kl": float(c.kl_measured)}
    if info.curvature is not None:
        solve = info.curvature.solve
        facts |= {
            "damping": float(info.curvature.used_damping),
            "products": int(solve.steps),
            "residual": float(solve.relative_residual),
            "status": int(solve.status),
        }
    return facts


@lru_cache(maxsize=8)
def _compiled(method: Method, model: Model):
    return jax.jit(lambda state, batch: unlearn_step(method, model, state, batch), donate_argnums=0)
