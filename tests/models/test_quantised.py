"""Weights frozen in few bits: the grid of the rounding attack, exact derivatives, the original folder at the end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_cases import gradient_and_product, largest_difference, tokens_for, toy
from family_models import built
from safetensors.numpy import load_file

from jaxunlearn import methods, models, sharding, tree
from jaxunlearn.curvature import combine, partition
from jaxunlearn.evals.attacks import quantise as rounded
from jaxunlearn.models.quantised import dequantised, dtype_of, quantise
from jaxunlearn.models.specs import nest, param_specs
from jaxunlearn.runs.settings import Trainable
from jaxunlearn.runs.trainable import check
from jaxunlearn.unlearn import init

GROUPS = {8: None, 4: 128}


def matrices(path, leaf):
    return path[-1] == "kernel" and "layers" in path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A width of which 128 is a divisor, and one of which it is not."""
    model, params = toy(hidden_size=128, intermediate_size=36, num_attention_heads=4)
    return models.save(tmp_path_factory.mktemp("frozen") / "model", model, params)


@pytest.mark.parametrize("bits", [8, 4])
def test_numbers_times_scales_are_the_rounding_of_the_attack(bits):
    for inputs in (256, 36):
        W = jax.random.normal(jax.random.key(0), (2, inputs, 5)).at[:, :, 1].set(0.0)
        numbers, scales = quantise(W, bits)
        assert numbers.nbytes == W.size * bits // 8
        ours = jnp.stack([dequantised(*pair, jnp.float32) for pair in zip(numbers, scales, strict=True)])
        np.testing.assert_array_equal(ours, rounded({"kernel": W}, bits=bits, group=GROUPS[bits])["kernel"])


@pytest.mark.parametrize("bits", [8, 4])
def test_adapters_see_the_derivatives_of_the_dequantised_model(folder, bits):
    plain = models.load(folder)
    plain = plain[0], rounded(plain[1], bits=bits, group=GROUPS[bits], where=matrices)
    lora, key = models.LoRA(rank=2), jax.random.key(0)
    tokens = tokens_for(plain[0].source.config, length=9)

    def derivatives(model, params):
        model, params = models.add_lora(model, params, lora, key)
        adapters, rest = partition(params, models.is_lora)
        adapters = tree.axpy(0.1, tree.normal_like(jax.random.key(1), adapters), adapters)
        v = tree.normal_like(jax.random.key(2), adapters)
        over = lambda rest: model._replace(logits=lambda some, ids: model.logits(combine(some, rest), ids))
        return jax.jit(lambda some, rest: gradient_and_product(over(rest), some, tokens, v))(adapters, rest)

    expected, found = derivatives(*plain), derivatives(*models.load(folder, freeze_bits=bits))
    assert largest_difference(expected, found) < 1e-5
    assert min(float(tree.norm(one)) for one in found) > 0.1


@pytest.mark.parametrize("bits", [8, 4])
def test_arguments_shrink_as_the_bits_say(bits):
    config = models.DecoderConfig(
        vocab_size=64, hidden_size=256, intermediate_size=512, num_attention_heads=4, num_hidden_layers=4
    )

    def of(frozen_bits):
        rows = param_specs(config, frozen_bits=frozen_bits)
        shapes = [jax.ShapeDtypeStruct(r.shape, dtype_of(r, frozen_bits, jnp.bfloat16)) for r in rows]
        model = models.as_model(models.Decoder(config, frozen_bits=frozen_bits))
        tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
        used = jax.jit(model.logits).lower(nest(rows, shapes), tokens).compile().memory_analysis()
        return used.argument_size_in_bytes

    numbers = sum(int(np.prod(r.shape)) for r in param_specs(config) if r.path[-1] == "kernel" and "layers" in r.path)
    outputs = sum(
        r.shape[0] * r.shape[2] * (r.shape[1] // 128 if bits == 4 else 1)
        for r in param_specs(config)
        if r.path[-1] == "kernel" and "layers" in r.path
    )
    assert of(None) - of(bits) == numbers * (2 - bits / 8) - 4 * outputs


def test_what_was_learnt_is_added_to_the_original_weights(folder, tmp_path):
    model, params = models.load(folder, freeze_bits=4)
    models.save(tmp_path / "same", model, params)
    assert (tmp_path / "same" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    model, params = models.add_lora(model, params, models.LoRA(rank=2), jax.random.key(0))
    state = init(methods.grad_ascent(), model, params, key=jax.random.key(1), trainable=models.is_lora)
    adapters = tree.axpy(0.1, tree.normal_like(jax.random.key(2), state.params), state.params)
    models.save(tmp_path / "tuned", model, state._replace(params=adapters).whole())
    plain, original = models.load(folder)
    plain, beside = models.add_lora(plain, original, models.LoRA(rank=2), jax.random.key(0))
    merged = models.merge_lora(plain, combine(adapters, partition(beside, models.is_lora)[1]))[1]
    again = models.load(tmp_path / "tuned")[1]
    assert largest_difference(merged, again) < 1e-6
    assert largest_difference(original, again) > 1e-4


def test_fused_tensors_biases_and_cut_stacks_come_back_as_they_were(tmp_path):
    family = built("gpt_neox", tmp_path / "torch")
    model, params = models.load(family.folder, freeze_bits=8)
    model, params = models.add_lora(model, params, models.LoRA(rank=2), jax.random.key(0))
    models.save(tmp_path / "saved", model, models.split_layers(params, (1, 1)))
    before, after = (load_file(one / "model.safetensors") for one in (family.folder, tmp_path / "saved"))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("explicit", [False, True])
def test_on_eight_devices_numbers_are_split_and_the_same(folder, explicit):
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2, explicit=explicit)
    alone, params = models.load(folder, freeze_bits=4)
    model, split = models.load(folder, mesh=mesh, freeze_bits=4)
    assert largest_difference(params, split) == 0
    numbers = split["layers"]["mlp"]["up_proj"]["kernel_numbers"]
    assert numbers.sharding.shard_shape(numbers.shape) == (2, 32, 18)
    tokens = tokens_for(alone.source.config, batch=4, length=9)
    got = jax.jit(model.logits)(split, sharding.shard_batch(tokens, mesh))
    assert largest_difference(jax.jit(alone.logits)(params, tokens), got) < 1e-4


def test_what_few_bits_cannot_do_is_said(folder, tmp_path):
    with pytest.raises(ValueError, match="freeze_bits=5: weights are frozen in 8 or 4 bits"):
        models.load(folder, freeze_bits=5)
    model, params = models.load(folder, freeze_bits=8)
    model, params = models.add_lora(model, params, models.LoRA(rank=2), jax.random.key(0))
    with pytest.raises(ValueError, match="frozen in 8 bits, which cannot hold what adapters add; models.save adds it"):
        models.merge_lora(model, params)
    for settings, message in (
        (Trainable(freeze_bits=4), "--freeze-bits 4 .* give --lora-rank"),
        (Trainable(freeze_bits=3, lora_rank=2), "--freeze-bits 3: .* 8 or 4"),
        (Trainable(freeze_bits=4, lora_rank=2, lora_init="fila"), "--lora-init fila cuts adapters out of the weights"),
    ):
        with pytest.raises(ValueError, match=message):
            check(settings, layers=2)
