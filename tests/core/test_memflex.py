"""MemFlex trains the modules it locates in its first step, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from adapter_cases import STEP, batch_of, decoder, small_and_new, stirred, tokens
from toys import flat, mlp, unlearn_batch

import jaxunlearn as ju
from jaxunlearn import losses, methods, objectives, sharding
from jaxunlearn.curvature import partition
from jaxunlearn.objectives import Objective


def modules_of(forget, retain):
    """Float64 gradients of each module and layer, in one vector each: `{(module, layer): (forget, retain)}`."""
    modules = {}
    for path in forget:
        stem, _, leaf = path.rpartition("/")
        for layer in range(forget[path].shape[0]) if path.startswith("layers/") else [...]:
            pair = [np.asarray(g[path], np.float64)[layer].ravel() for g in (forget, retain)]
            modules.setdefault((stem if leaf.startswith("lora_") else path, layer), []).append(pair)
    return {name: [np.concatenate(side) for side in zip(*pairs, strict=True)] for name, pairs in modules.items()}


def located_by_hand(modules, similarity, magnitude):
    cosine = lambda f, r: f @ r / np.sqrt(f @ f * (r @ r))
    return {name for name, (f, r) in modules.items() if cosine(f, r) < similarity and np.abs(f).mean() > magnitude}


def test_modules_are_located_as_by_hand():
    rng = np.random.default_rng(0)
    shapes = {
        "layers/attn/q_proj/lora_a": (3, 5, 2),
        "layers/attn/q_proj/lora_b": (3, 2, 4),
        "layers/attn/q_proj/kernel": (3, 5, 4),
        "layers/norm": (3, 5),
        "head": (5, 7),
        "bias": (7,),
    }
    f = {path: rng.normal(size=s).astype(np.float32) * (1 + 3 * (len(path) % 2)) for path, s in shapes.items()}
    r = {path: (f[path] * rng.normal() + rng.normal(size=s)).astype(np.float32) for path, s in shapes.items()}
    modules, sizes = modules_of(f, r), set()
    for similarity in (-0.5, 0.1, 0.92, 1.0):
        for magnitude in (0.0, 1.0, 2.5, 9.0):
            found = located_by_hand(modules, similarity, magnitude)
            masks = methods.located_modules(f, r, similarity=similarity, magnitude=magnitude)
            for path, mask in masks.items():
                name = path.rsplit("/", 1)[0] if "lora_" in path else path
                assert mask.ndim == (f[path].ndim if path.startswith("layers/") else 0)
                wanted = [(name, layer) in found for layer in range(3)] if mask.ndim else (name, ...) in found
                assert np.asarray(mask).reshape(np.shape(wanted)).tolist() == wanted, path
            sizes.add(len(found))
    assert {0, len(modules)} < sizes  # none, all, and some in between


@pytest.fixture(scope="module")
def located():
    """Two steps on adapters and unlearning layers, by an optimiser with moments and decay; what located them."""
    model, params = decoder()
    params, batch = stirred(params, small_and_new), batch_of(8)
    chosen, rest = partition(params, small_and_new)
    over = ju.curvature.over_chosen(model, rest)
    mean = lambda p, data: (lambda total, count: total / count)(*losses.nll(over, p, data))
    modules = modules_of(*jax.jit(lambda p: [jax.grad(mean)(p, data) for data in (batch.forget, batch.retain)])(chosen))
    limit = float(np.median([np.abs(f).mean() for f, _ in modules.values()]))
    optimizer = optax.chain(optax.trace(0.9), optax.add_decayed_weights(0.1), optax.scale(-0.1))
    method = methods.memflex(magnitude=limit, similarity=1.0, optimizer=optimizer)._replace(certify=False)
    states = [ju.init(method, model, params, key=jax.random.key(0), trainable=small_and_new)]
    for seed in (1, 5):
        states.append(STEP(method, model, states[-1], batch._replace(forget=tokens(8, seed)))[0])
    return method, states, modules, located_by_hand(modules, 1.0, limit)


def test_the_first_step_locates_and_the_others_keep_to_it(located):
    _, (start, first, second), modules, found = located
    assert 0 < len(found) < len(modules)
    assert not bool(start.opt_state.located)
    assert float(start.opt_state.share()) == 0
    for path, mask in first.opt_state.masks.items():
        name = path.rsplit("/", 1)[0] if "lora_" in path else path
        assert mask[:, 0, 0].tolist() == [(name, layer) in found for layer in range(2)]
        np.testing.assert_array_equal(mask, second.opt_state.masks[path])
    share = np.mean([np.asarray(mask).mean() for mask in first.opt_state.masks.values()])
    assert float(first.opt_state.share()) == pytest.approx(share)


def test_outside_nothing_moves_and_no_moment_drifts(located):
    _, (start, _, end), *_ = located
    for path, mask in end.opt_state.masks.items():
        inside = np.broadcast_to(mask, end.params[path].shape)
        before, after = np.asarray(start.params[path]), np.asarray(end.params[path])
        np.testing.assert_array_equal(after[~inside], before[~inside])
        assert not np.asarray(end.opt_state.inner[0].trace[path])[~inside].any()
        assert (after[inside] != before[inside]).all()


@pytest.mark.slow
def test_eight_devices_equal_one(located):
    """On Explicit axes, where masks and layouts are part of the types."""
    method, (_, alone, _), *_ = located
    mesh = sharding.make_mesh(2, 2, 2, explicit=True)
    model, params = decoder(mesh)
    batch = sharding.shard_batch(jax.device_get(batch_of(8)), mesh)
    state = ju.init(method, model, stirred(params, small_and_new), key=jax.random.key(0), trainable=small_and_new)
    spread, _ = STEP(method, model, state, batch)
    assert bool(spread.opt_state.located)
    for path, leaf in spread.params.items():
        assert leaf.sharding.is_equivalent_to(state.params[path].sharding, leaf.ndim), path
        np.testing.assert_array_equal(spread.opt_state.masks[path], alone.opt_state.masks[path])
        np.testing.assert_allclose(leaf, alone.params[path], atol=2e-5, err_msg=path)


def test_without_adapters_the_modules_are_leaves_and_the_step_is_the_masked_gradient():
    model, params = mlp()
    batch = unlearn_batch(model, params)
    term = lambda on: Objective(((1.0, objectives.NLL(on)),))
    parts = jax.jit(lambda p: [term(on).value_and_grad(model, p, batch)[1] for on in ("forget", "retain")])(params)
    leaves = [[np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(g)] for g in parts]
    f_size = [np.abs(f).mean() for f in leaves[0]]
    magnitude = float(np.mean(sorted(f_size)[1:3]))
    method = methods.memflex(similarity=0.99, magnitude=magnitude, optimizer=optax.sgd(0.5))._replace(certify=False)
    state, _ = STEP(method, model, ju.init(method, model, params, key=jax.random.key(0)), batch)
    cosines = [f @ r / np.linalg.norm(f) / np.linalg.norm(r) for f, r in zip(*leaves, strict=True)]
    keep = [c < 0.99 and s > magnitude for c, s in zip(cosines, f_size, strict=True)]
    assert 0 < sum(keep) < len(keep)
    step = [np.where(k, -0.5 * (-0.4 * f + 2 * r), 0.0) for k, f, r in zip(keep, *leaves, strict=True)]
    np.testing.assert_allclose(flat(state.params) - flat(params), np.concatenate(step), atol=1e-6)


def test_masks_may_come_from_elsewhere_and_a_broken_batch_locates_nothing():
    model, params = mlp()
    batch = unlearn_batch(model, params)
    method = methods.memflex(magnitude=0.0, optimizer=optax.sgd(0.1))._replace(certify=False)
    start = ju.init(method, model, params, key=jax.random.key(0))
    broken = batch._replace(retain=batch.retain._replace(inputs=batch.retain.inputs * jnp.nan))
    state, info = STEP(method, model, start, broken)
    assert not bool(info.applied)
    assert not bool(state.opt_state.located)
    masks = jax.tree.map(lambda x: jnp.array(x.ndim == 1), params)  # biases alone
    given = start._replace(opt_state=start.opt_state._replace(masks=masks, located=jnp.array(True)))
    state, _ = STEP(method, model, given, batch)
    for new, old in zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True):
        assert bool(jnp.any(new != old)) == (new.ndim == 1)
