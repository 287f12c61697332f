"""The few lines a user writes, as design and README give them: a decoder folder, a hand-written model, a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from toys import flat, labelled, mlp, token_batch

import jaxunlearn as ju
from jaxunlearn import models, sharding


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = models.DecoderConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4
    )
    target = tmp_path_factory.mktemp("snippet") / "checkpoint-folder"
    return ju.models.save(target, *models.init(config, jax.random.key(0)))


@pytest.fixture
def batches():
    rng = np.random.default_rng(0)
    return [ju.UnlearnBatch(token_batch(rng, 8), token_batch(rng, 16)) for _ in range(2)]


def forgotten(folder, batches, out, mesh=None):
    model, params = ju.models.load(folder, mesh=mesh)
    method = ju.methods.fisher_removal(damping=1e-3, samples=64, step_size=1.0)
    state = ju.init(method, model, params, key=jax.random.key(0))
    step = jax.jit(ju.unlearn_step, static_argnums=(0, 1), donate_argnums=2)
    for batch in batches:
        state, info = step(method, model, state, batch)
    ju.models.save(out, model, state.params)
    return info


def weights(folder):
    return np.asarray(flat(ju.models.load(folder)[1]))


@pytest.mark.slow
def test_on_a_checkpoint_folder_with_and_without_a_mesh(folder, batches, tmp_path):
    info = forgotten(folder, batches, tmp_path / "alone")
    assert bool(info.applied)
    assert float(info.certificate.forget_after) > float(info.certificate.forget_before)
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    forgotten(folder, [sharding.shard_batch(batch, mesh) for batch in batches], tmp_path / "mesh", mesh)
    moved = np.abs(weights(tmp_path / "alone") - weights(folder)).max()
    np.testing.assert_allclose(weights(tmp_path / "mesh"), weights(tmp_path / "alone"), atol=1e-3 * moved)


def test_on_a_hand_written_model_with_and_without_a_mesh():
    model, params = mlp()
    start = np.asarray(flat(params))
    batches = [ju.UnlearnBatch(labelled(8, i), labelled(16, i + 5)) for i in range(2)]
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))
    method = ju.methods.fisher_removal(damping=1e-1, samples=64, step_size=0.1)
    ends = []
    for placed, weights_there in (
        (batches, jax.tree.map(jnp.copy, params)),
        ([sharding.shard_batch(b, mesh) for b in batches], jax.tree.map(lambda x: split(x, rows), params)),
    ):
        state = ju.init(method, model, weights_there, key=jax.random.key(0))
        step = jax.jit(ju.unlearn_step, static_argnums=(0, 1), donate_argnums=2)
        for batch in placed:
            state, info = step(method, model, state, batch)
        assert float(info.certificate.forget_after) > float(info.certificate.forget_before)
        ends.append(np.asarray(flat(jax.device_get(state.params))))
    moved = np.abs(ends[0] - start).max()
    np.testing.assert_allclose(ends[1], ends[0], atol=1e-3 * moved)


def split(x, rows):
    """`x` split over its first dimension where that divides, else repeated."""
    return jax.device_put(x, rows if x.shape[0] % 2 == 0 else NamedSharding(rows.mesh, PartitionSpec()))
