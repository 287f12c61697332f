"""The library inside the loops, models, data and checkpoints that people already have.

One small classifier that has memorised random labels is written as a plain tree, as a Flax nnx module and as a linen
module. Whichever way the pieces are put together, the same steps must give the same parameters.
"""

from functools import partial
from typing import NamedTuple

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

import jaxunlearn as ju
from jaxunlearn import losses, methods, transforms
from jaxunlearn.curvature import GaussNewton
from jaxunlearn.objectives import NLL, Objective
from jaxunlearn.sharding import make_mesh
from jaxunlearn.solvers import CG

FEATURES, WIDTH, CLASSES, FORGET, RETAIN, STEPS = 6, 16, 4, 4, 20, 4
METHOD = methods.gauss_newton_ascent(damping=0.01, max_kl=3e-3, cg_steps=6)._replace(certify=False)
X = np.random.default_rng(0).normal(size=(FORGET + RETAIN, FEATURES)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, CLASSES, FORGET + RETAIN).astype(np.int32)
BATCH = ju.UnlearnBatch(ju.LabelledBatch(X[:FORGET], Y[:FORGET]), ju.LabelledBatch(X[FORGET:], Y[FORGET:]))


def logits(params, x):
    hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["head"]["kernel"] + params["head"]["bias"]


PLAIN = ju.Model(logits=logits)


class Nnx(nnx.Module):
    def __init__(self):
        self.hidden = nnx.Linear(FEATURES, WIDTH, rngs=nnx.Rngs(0))
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.head(jnp.tanh(self.hidden(x)))


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(CLASSES, name="head")(jnp.tanh(linen.Dense(WIDTH, name="hidden")(x)))


class Losses(NamedTuple):
    forget: float
    retain: float


@partial(jax.jit, static_argnums=0)
def _losses(model, params):
    return tuple(losses.nll(model, params, part) for part in (BATCH.forget, BATCH.retain))


def measured(params, model=PLAIN) -> Losses:
    return Losses(*(float(total / count) for total, count in _losses(model, params)))


@pytest.fixture(scope="module")
def learned():
    """Parameters that recite all labels: 300 steps of Adam."""
    params = nnx.to_pure_dict(nnx.state(Nnx(), nnx.Param))
    optimizer, everything = optax.adam(0.03), ju.LabelledBatch(X, Y)

    def loss(params):
        total, count = losses.nll(PLAIN, params, everything)
        return total / count

    def step(_, carry):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    params, _ = jax.jit(lambda p: jax.lax.fori_loop(0, 300, step, (p, optimizer.init(p))))(params)
    return params


def unlearn(model, params, batches, method=METHOD):
    """The loop of the README."""
    state = ju.init(method, model, params, key=jax.random.key(0))
    step = jax.jit(ju.unlearn_step, static_argnums=(0, 1))
    for batch in batches:
        state, info = step(method, model, state, batch)
        assert bool(info.applied)
    return state.params


@pytest.fixture(scope="module")
def expected(learned):
    return unlearn(PLAIN, learned, [BATCH] * STEPS)


def assert_same(found, expected):
    # Programs that differ in form may round differently at every step: a few units of f32 in weights of size one.
    leaves = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for a, b in leaves:
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_the_steps_forget_and_keep(learned, expected):
    before, after = measured(learned), measured(expected)
    assert before.forget < 0.02
    assert after.forget > 20 * before.forget
    assert after.forget - before.forget > 10 * (after.retain - before.retain)
    assert after.retain < before.retain + 0.05


def test_nnx_module_is_changed_in_place(learned, expected):
    module = Nnx()
    nnx.update(module, learned)
    model, params = ju.models.from_nnx(module)
    found = unlearn(model, params, [BATCH] * STEPS)
    nnx.update(module, found)
    assert_same(found, expected)
    np.testing.assert_allclose(module(X), logits(expected, X), rtol=1e-3, atol=1e-3)


def test_nnx_split_and_merge_by_hand(learned, expected):
    module = Nnx()
    nnx.update(module, learned)
    graph, state = nnx.split(module)
    found = unlearn(ju.Model(logits=lambda state, x: nnx.merge(graph, state)(x)), state, [BATCH] * STEPS)
    assert_same(nnx.to_pure_dict(found), expected)


def test_linen_module(learned, expected):
    found = unlearn(ju.models.from_linen(Linen()), learned, [BATCH] * STEPS)
    assert_same(found, expected)
    np.testing.assert_allclose(Linen().apply({"params": found}, X), logits(expected, X), rtol=1e-3, atol=1e-3)


def test_step_inside_a_compiled_loop_of_ones_own(learned, expected):
    @jax.jit
    def train(state):
        return jax.lax.scan(lambda s, _: ju.unlearn_step(METHOD, PLAIN, s, BATCH), state, None, length=STEPS)

    state, infos = train(ju.init(METHOD, PLAIN, learned, key=jax.random.key(0)))
    assert infos.objective.shape == (STEPS,)
    assert_same(state.params, expected)


ASCENT = Objective(((-1.0, NLL("forget")),))
NEWTON = transforms.precondition_by_curvature(
    GaussNewton(), CG(8), damping=0.01, trust_region=transforms.TrustRegion(1e-3)
)


def optax_loop(optimizer, params, steps, objective=ASCENT):
    """A loop that knows optax and passes it the model and the batch; nothing else of the library."""

    @jax.jit
    def step(params, state):
        _, grads = objective.value_and_grad(PLAIN, params, BATCH)
        updates, state = optimizer.update(grads, state, params, model=PLAIN, batch=BATCH, key=jax.random.key(0))
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params


def test_curvature_chains_in_an_optax_loop(learned):
    """Bare, the chain is what `methods.compose` makes; between clipping and a schedule it still forgets and keeps."""
    composed = methods.compose(
        "own", ASCENT, GaussNewton(), CG(8), damping=0.01, trust_region=transforms.TrustRegion(1e-3)
    )
    alone = optax_loop(optax.chain(NEWTON, optax.scale(-1.0)), learned, STEPS)
    assert_same(alone, unlearn(PLAIN, learned, [BATCH] * STEPS, composed))
    schedule = optax.chain(
        optax.clip_by_global_norm(1.0), NEWTON, optax.scale_by_learning_rate(optax.linear_schedule(1.0, 0.5, STEPS))
    )
    before, after = measured(learned), measured(optax_loop(schedule, learned, STEPS))
    assert after.forget > 5 * before.forget
    assert after.retain < before.retain + 0.02


def test_an_anchor_before_adam_keeps_what_adam_alone_ruins(learned):
    """Adam divides the gradient by its own size, so it would hide the anchor's; its moments see both here."""
    anchor = transforms.anchor_by_curvature(GaussNewton(), strength=20.0, metric=transforms.RETAIN)
    adam, before = optax.adam(3e-3), measured(learned)
    free, held = (measured(optax_loop(one, learned, 50)) for one in (adam, optax.chain(anchor, adam)))
    assert held.forget > 0.75 * free.forget > 100 * before.forget
    assert held.retain - before.retain < 0.1 * (free.retain - before.retain)


def test_batches_from_a_dataset_and_from_any_iterator(learned, expected):
    table = datasets.Dataset.from_dict({"x": X.tolist(), "y": Y.tolist(), "part": ["f"] * FORGET + ["r"] * RETAIN})
    forget, retain = (
        table.filter(lambda row, part=part: row["part"] == part).with_format("numpy") for part in ("f", "r")
    )

    def rows(part, size):
        for batch in part.iter(batch_size=size):
            yield ju.LabelledBatch(batch["x"].astype(np.float32), batch["y"].astype(np.int32))

    def endless():
        while True:
            yield from map(ju.UnlearnBatch, rows(forget, FORGET), rows(retain, RETAIN))

    stream = endless()
    found = unlearn(PLAIN, learned, (next(stream) for _ in range(STEPS)))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), found, expected))


def test_records_of_a_dataset_become_token_batches():
    rows = [{"question": f"Who is number {n}?", "answer": f"Number {n} is {n * 7}."} for n in range(4)]
    tokenizer = ju.data.train_tokenizer([f"{row['question']} {row['answer']}" for row in rows], vocab_size=300)
    both = (datasets.Dataset.from_list(rows), rows)
    found, wanted = (ju.data.collate(ju.data.encode(ju.data.from_rows(one), tokenizer, max_length=48)) for one in both)
    assert np.array_equal(found.tokens, wanted.tokens)
    assert int(found.loss_mask.sum()) > len(rows)


def test_parameters_of_ones_own_orbax_checkpoint(learned, expected, tmp_path):
    """A checkpoint that another program wrote is read straight onto a mesh; eight devices end where one does."""
    ocp.save(tmp_path / "mine", {"params": learned, "step": 7})
    place = NamedSharding(make_mesh(1, 8, 1), PartitionSpec())
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), learned)
    restored = ocp.load(tmp_path / "mine", {"params": like, "step": 0})
    assert restored["step"] == 7
    found = unlearn(PLAIN, restored["params"], [jax.device_put(BATCH, place)] * STEPS)
    assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(found))
    assert_same(found, expected)
