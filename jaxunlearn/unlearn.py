"""`unlearn_step`: one pure, jit-able, shardable step of any method.

state = init(method, model, params, key=key)
step = jax.jit(unlearn_step, static_argnums=(0, 1), donate_argnums=2)
state, info = step(method, model, state, batch)
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxunlearn import remainder, tree
from jaxunlearn.certificate import Certificate, certify
from jaxunlearn.curvature.subset import Select, combine, over_chosen, partition
from jaxunlearn.methods.method import Method
from jaxunlearn.sharding.regions import replicate_rest
from jaxunlearn.transforms import CurvatureState, NoiseState
from jaxunlearn.types import Key, Model, Params, UnlearnBatch


class UnlearnState(NamedTuple):
    """Everything a step needs from the one before.

    Attributes:
        step: steps taken.
        params: the parameters, in their own dtype and layout; of a state made with `trainable`, those by path.
        opt_state: state of the method's transformation (damping, moments).
        key: random key of the next step.
        frozen: with `trainable`, the tree of all other parameters, which no step touches or pays for.
        remainder: what rounding left of bfloat16 parameters, so that small steps add up (`jaxunlearn.remainder`); it
            belongs to these `params`, and whoever puts others in their place puts `remainder.start(others)` here.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: PyTree
    key: Key
    frozen: Params | None = None
    remainder: PyTree | None = None

    def whole(self) -> Params:
        """All parameters, as the model takes them."""
        return self.params if self.frozen is None else combine(self.params, self.frozen)


class StepInfo(NamedTuple):
    """What a step did.

    Attributes:
        objective: value of the method's objective before the step.
        gradient_norm: of the objective.
        update_norm: length of the step in parameter space.
        applied: False when the update was not finite; the parameters are then unchanged, as are the moments of an
            optimiser that it would have spoilt.
        certificate: predictions and measurements, `None` with `method.certify=False`.
        curvature: damping, solve record and trust region of a second-order method, else `None`.
        noise: how the root of the curvature was taken that shapes a method's noise, `None` without noise.
    """

    objective: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    update_norm: Float[Array, ""]
    applied: Bool[Array, ""]
    certificate: Certificate | None
    curvature: CurvatureState | None
    noise: NoiseState | None


def init(method: Method, model: Model, params: Params, *, key: Key, trainable: Select | None = None) -> UnlearnState:
    """The state before the first step, on the devices of `params`.

    It holds `params` themselves, not a copy: a step that donates its state consumes them.

    Args:
        method: a recipe of `jaxunlearn.methods`.
        model: pure functions.
        params: where to start.
        key: random key.
        trainable: which parameters steps change, as `curvature.partition` takes it: a predicate on paths
            (`models.is_lora` for adapters) or the beginning of paths. None for all. Gradients, curvature and solver
            vectors then are of those alone; `state.whole()` puts all parameters together.

    Raises:
        ValueError: for parameters that are not floating-point numbers, or when `trainable` chooses none.
    """
    frozen = None
    if trainable is not None:
        params, frozen = partition(params, trainable)
    for leaf in jax.tree.leaves(params):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"params hold an array of dtype {leaf.dtype}, which has no gradient; keep integer buffers out of the "
                "parameter tree (close over them in the model's functions)"
            )
    opt_state = method.transform.init(tree.to_vector(params))
    state = UnlearnState(jnp.int32(0), params, opt_state, key, frozen, remainder.start(params))
    return replicate_rest(state, params)


def unlearn_step(
    method: Method, model: Model, state: UnlearnState, batch: UnlearnBatch
) -> tuple[UnlearnState, StepInfo]:
    """One step: gradient of the objective, the method's transformation, the update, the certificate.

    Args:
        method: a recipe of `jaxunlearn.methods`; static under `jit`.
        model: pure functions; static under `jit`.
        state: donated, if the caller asks `jit` to.
        batch: the step's data; its shapes must not change between steps, or each new shape compiles anew.

    Returns:
        The next state, laid out like the given one, and a `StepInfo`.

    Raises:
        ValueError: at trace time, when the batch lacks a part the method reads.

    Example:
        >>> from jaxunlearn import methods
        >>> from jaxunlearn.types import LabelledBatch
        >>> model = Model(logits=lambda w, x: x @ w)
        >>> method = methods.newton_removal(damping=0.1)
        >>> state = init(method, model, jnp.zeros((4, 3)), key=jax.random.key(0))
        >>> x = jax.random.normal(jax.random.key(1), (16, 4))
        >>> batch = UnlearnBatch(
        ...     forget=LabelledBatch(x[:2], jnp.array([0, 1])), retain=LabelledBatch(x[2:], jnp.zeros(14, jnp.int32))
        ... )
        >>> state, info = jax.jit(unlearn_step, static_argnums=(0, 1))(method, model, state, batch)
        >>> bool(info.certificate.forget_after > info.certificate.forget_before)
        True
    """
    if state.frozen is not None:
        model = over_chosen(model, state.frozen)
    next_key, key = jax.random.split(state.key)
    value, grads = method.objective.value_and_grad(model, state.params, batch)
    updates, opt_state = method.transform.update(
        grads, state.opt_state, state.params, model=model, batch=batch, key=key
    )
    applied = tree.all_finite(updates)
    updates = tree.where(applied, updates, tree.zeros_like(state.params))
    params, rest = remainder.apply_updates(state.params, state.remainder, updates)
    params = tree.shard_like(params, state.params)
    info = StepInfo(
        value,
        tree.norm(grads),
        tree.norm(updates),
        applied,
        certify(model, state.params, params, batch, method.objective.microbatch) if method.certify else None,
        curvature_state(opt_state),
        _first_state(opt_state, NoiseState),
    )
    opt_state = jax.tree.map(partial(_healthy, applied), opt_state, state.opt_state)
    return UnlearnState(state.step + 1, params, opt_state, next_key, state.frozen, rest), info


def curvature_state(opt_state: PyTree) -> CurvatureState | None:
    """The record of the last curvature solve inside an optax state, if the method made one."""
    return _first_state(opt_state, CurvatureState)


def _healthy(applied: Bool[Array, ""], new: Array, old: Array) -> Array:
    """`new`, but `old` where a refused step would leave a number that spoils every step after."""
    if not jnp.issubdtype(new.dtype, jnp.inexact):
        return new
    return jnp.where(applied | jnp.isfinite(new), new, old)


def _first_state(opt_state: PyTree, kind: type) -> Any:
    found = jax.tree.leaves(opt_state, is_leaf=lambda s: isinstance(s, kind))
    return next((s for s in found if isinstance(s, kind)), None)
