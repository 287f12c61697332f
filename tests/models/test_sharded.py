"""On a mesh of 8 devices, with Auto and with Explicit axes, everything equals one device and keeps its layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_cases import gradient_and_product, largest_difference, loss, tokens_for, toy

from jaxunlearn import models, sharding, tree

SIZES = {"hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64}


@pytest.fixture(params=["auto", "explicit"])
def mesh(request):
    return sharding.make_mesh(data=2, fsdp=2, tensor=2, explicit=request.param == "explicit")


@pytest.mark.parametrize(
    ("explicit", "variant"),
    [(False, {"attention": "blockwise", "attention_bias": True}), (True, {"tie_word_embeddings": True})],
)
def test_all_orders_of_derivative_equal_one_device(explicit, variant):
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2, explicit=explicit)
    alone, params = toy(**SIZES, **variant)
    model, split = toy(**SIZES, **variant, mesh=mesh)
    assert largest_difference(params, split) == 0
    tokens = tokens_for(model.source.config, batch=4, length=12)
    v = tree.normal_like(jax.random.key(1), params)
    v_split = jax.tree.map(lambda a, p: jax.device_put(a, p.sharding), v, split)

    def all_orders(m, params, tokens, v):
        return m.logits(params, tokens), *gradient_and_product(m, params, tokens, v)

    expected = jax.jit(all_orders, static_argnums=0)(alone, params, tokens, v)
    got = jax.jit(all_orders, static_argnums=0)(model, split, sharding.shard_batch(tokens, mesh), v_split)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1.0, float(jnp.abs(a).max())))
    for result in got[1:]:
        for leaf, param in zip(jax.tree.leaves(result), jax.tree.leaves(split), strict=True):
            assert leaf.sharding.is_equivalent_to(param.sharding, leaf.ndim)
            assert jax.typeof(leaf) == jax.typeof(param)


def test_the_other_functions_run_on_a_mesh(mesh):
    alone, params = toy(**SIZES)
    model, split = toy(**SIZES, mesh=mesh)
    tokens = tokens_for(model.source.config, batch=4, length=12)
    positions = np.tile([[3, 7]], (4, 1))
    placed, places = sharding.shard_batch((tokens, positions), mesh)

    def other_functions(m, params, tokens, positions):
        return m.logits_at(params, tokens, positions), m.hidden(params, tokens), m.hidden(params, tokens, 1)

    other_functions = jax.jit(other_functions, static_argnums=0)
    got = other_functions(model, split, placed, places)
    assert largest_difference(other_functions(alone, params, tokens, positions), got) < 1e-5
    prompts = [[1, 2, 3], [5, 6], [7, 8, 9, 10]]  # one row of the four that the mesh shares out stays empty
    expected = models.generate(alone, params, prompts, max_new_tokens=5)
    assert models.generate(model, split, prompts, max_new_tokens=5) == expected


@pytest.mark.parametrize("explicit", [False, True])
def test_key_and_value_heads_that_do_not_divide_are_whole_on_every_device(explicit):
    mesh = sharding.make_mesh(fsdp=2, tensor=4, explicit=explicit)
    alone, params = toy(**SIZES)
    model, split = toy(**SIZES, mesh=mesh)
    kernels = {name: split["layers"]["self_attn"][name]["kernel"] for name in ("q_proj", "k_proj", "v_proj")}
    shapes = {name: kernel.sharding.shard_shape(kernel.shape)[1:] for name, kernel in kernels.items()}
    assert shapes == {"q_proj": (12, 6), "k_proj": (12, 12), "v_proj": (12, 12)}  # 4 heads of 6 over 4; 2 heads are not
    tokens = tokens_for(model.source.config, batch=4, length=12)
    got = jax.jit(model.logits)(split, sharding.shard_batch(tokens, mesh))
    assert largest_difference(alone.logits(params, tokens), got) < 1e-5
    prompts = [[1, 2, 3], [5, 6]]
    assert models.generate(model, split, prompts, max_new_tokens=4) == models.generate(
        alone, params, prompts, max_new_tokens=4
    )


def test_a_mesh_on_which_devices_would_repeat_each_other_is_refused(tmp_path):
    odd = {
        "hidden_size": 24,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "intermediate_size": 25,
        "vocab_size": 63,
    }
    mesh = sharding.make_mesh(data=2, tensor=4)
    with pytest.raises(ValueError, match="'tensor' has size 4"):
        toy(**odd, head_dim=2, mesh=mesh)
    models.save(tmp_path / "odd", *toy(**odd, head_dim=2))
    with pytest.raises(ValueError, match="heads 6, kv_heads 6, mlp 25.*give tensor=2"):
        models.load(tmp_path / "odd", mesh=mesh)


def test_unplaced_batches_and_batches_of_one_are_accepted(mesh):
    alone, params = toy(**SIZES)
    model, split = toy(**SIZES, mesh=mesh)
    tokens = tokens_for(model.source.config, batch=1, length=6)
    got = jax.jit(model.logits)(split, tokens)
    assert largest_difference(alone.logits(params, tokens), got) < 1e-5


def test_checkpoint_is_read_and_written_by_slices(mesh, tmp_path, monkeypatch):
    alone, params = toy(**SIZES)
    models.save(tmp_path / "alone", alone, params)
    read = models.checkpoint_files.StoredTensor.read
    sizes = []

    def counting(tensor, index):
        part = read(tensor, index)
        sizes.append(part.nbytes)
        return part

    monkeypatch.setattr(models.checkpoint_files.StoredTensor, "read", counting)
    model, split = models.load(tmp_path / "alone", mesh=mesh)
    assert sum(sizes) == sum(leaf.nbytes for leaf in jax.tree.leaves(params))  # each byte once, however many want it
    assert largest_difference(params, split) == 0
    kernel = split["layers"]["mlp"]["up_proj"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 12, 20)
    models.save(tmp_path / "split", model, split)
    weights = (tmp_path / "alone" / "model.safetensors").read_bytes()
    assert (tmp_path / "split" / "model.safetensors").read_bytes() == weights


def test_random_parameters_do_not_depend_on_the_mesh(mesh):
    _, alone = toy(**SIZES)
    _, split = toy(**SIZES, mesh=mesh)
    assert largest_difference(alone, split) == 0


def test_per_example_gradients_under_vmap_equal_a_loop():
    model, params = toy(**SIZES, mesh=sharding.make_mesh(2, 2, 2))
    tokens = jnp.asarray(tokens_for(model.source.config, batch=3, length=6))
    gradient = jax.grad(lambda p, row: loss(model, p, row[None]))
    together = jax.jit(jax.vmap(gradient, in_axes=(None, 0)))(params, tokens)
    one = jax.jit(gradient)
    for i in range(3):
        assert largest_difference(jax.tree.map(lambda a, i=i: a[i], together), one(params, tokens[i])) < 1e-5
