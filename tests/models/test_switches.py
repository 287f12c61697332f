"""Switches that no torch model combines: a switch at its other value changes nothing, layers keep their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from decoder_cases import SMALL, gradient_and_product, largest_difference, tokens_for, toy
from family_models import FAMILIES, torch_model

from jaxunlearn import models, tree
from jaxunlearn.curvature.kronecker import Settings, kronecker_factors
from jaxunlearn.types import TokenBatch


def family_of(case):
    """A family's configuration and random parameters, norms and biases included."""
    config = models.DecoderConfig.from_hf(torch_model(case).config)
    model, params = models.init(config, jax.random.key(0))
    return model, tree.axpy(0.3, tree.normal_like(jax.random.key(1), params), params)


@pytest.mark.parametrize("case", ["gemma2", "smollm3", "gpt_neo"])
def test_layers_keep_their_own_window_and_rotation_when_cut_or_truncated(case):
    model, params = family_of(case)
    ids = tokens_for(model.source.config, length=20)
    whole = jax.jit(model.logits)(params, ids)
    np.testing.assert_allclose(model.logits(models.split_layers(params, (1, 1)), ids), whole, atol=1e-5)
    lower, fewer = models.truncate_layers(model, params, 1)
    np.testing.assert_allclose(lower.hidden(fewer, ids, 1), model.hidden(params, ids, 1), atol=1e-5)
    config = lower.source.config.to_hf()
    assert models.DecoderConfig.from_hf(config) == lower.source.config
    assert config.num_hidden_layers == 1


def test_blockwise_attention_sees_what_plain_attention_sees_in_a_model():
    """Windows that differ by layer, soft caps and scales, to second order."""
    fields = {"sliding_windows": (3, None), "attn_logit_softcapping": 2.0, "attention_multiplier": 0.4}
    model, params = toy(**fields)
    tiled, _ = toy(**fields, attention="blockwise")
    ids = tokens_for(model.source.config, length=11)
    v = tree.normal_like(jax.random.key(1), params)
    orders = jax.jit(gradient_and_product, static_argnums=0)
    assert largest_difference(orders(model, params, ids, v), orders(tiled, params, ids, v)) < 2e-5


@pytest.mark.parametrize("case", ["phi", "gpt_neo"])
def test_kronecker_factors_watch_every_parameter_once(case):
    """Biases of norms and of the head, position tables, norms of queries: summed squares are those of gradients."""
    model, params = family_of(case)
    ids = jnp.asarray(tokens_for(model.source.config, batch=3, length=7))
    batch = TokenBatch(ids, jnp.ones(ids.shape).at[:, 0].set(0.0))
    settings = Settings(microbatch=1, max_side=64)
    sums = jax.jit(lambda p, b: kronecker_factors(model, p, b, settings, key=jax.random.key(0)).sums)(params, batch)
    paths = {"/".join(spec.path) for spec in models.param_specs(model.source.config)}
    assert set(sums) == paths
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(sums))
    places = sums["embed_positions/embedding"]["lookup"]["A"] if case == "gpt_neo" else None
    if places is not None:
        np.testing.assert_array_equal(places, [3.0] * 6 + [0.0] * (places.shape[0] - 6))


@pytest.mark.parametrize("case", FAMILIES)
def test_a_configuration_goes_to_hugging_face_and_back(case):
    theirs = torch_model(case).config
    config = models.DecoderConfig.from_hf(theirs)
    again = config.to_hf()
    assert models.DecoderConfig.from_hf(again) == config
    ignored = {"architectures", "dtype", "transformers_version"}
    a, b = ({k: v for k, v in c.to_diff_dict().items() if k not in ignored} for c in (theirs, again))
    assert a == b


def test_switches_that_a_family_cannot_express_are_named():
    config = models.DecoderConfig(**SMALL, model_type="gemma2")
    with pytest.raises(ValueError, match=r"cannot say .*norm_offset=0.0 \(not 1.0\).*transformers.Gemma2Config"):
        config.to_hf()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (transformers.OPTConfig(word_embed_proj_dim=8), "word_embed_proj_dim=8 .*projection"),
        (transformers.OPTConfig(do_layer_norm_before=False), "do_layer_norm_before=False is not implemented"),
        (transformers.MixtralConfig(), "num_local_experts=8: mixture of experts is not implemented"),
        (transformers.Qwen3MoeConfig(num_experts=4), "mixture of experts"),
        (transformers.T5Config(), "is_encoder_decoder=True: an encoder-decoder is not implemented"),
        (transformers.MambaConfig(), "model_type='mamba' is not implemented; use a checkpoint of type llama, mistral"),
        (transformers.GemmaConfig(use_bidirectional_attention=True), "use_bidirectional_attention=True"),
        (
            transformers.Qwen2Config(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
            "rope_type='dynamic' is not implemented",
        ),
        (
            transformers.LlamaConfig(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}),
            "rope_type='yarn' is not implemented",
        ),
        (
            transformers.LlamaConfig(
                rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
            ),
            "partial_rotary_factor=0.5 is not implemented for 'llama'",
        ),
    ],
)
def test_what_is_not_implemented_is_named_before_any_weight_is_read(config, message, tmp_path):
    config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(ValueError, match=message) as caught:
        models.load(tmp_path)
    assert "config.json" in str(caught.value)
    assert "safetensors" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block": "odd"}, "block='odd' is not implemented; known: pre, post"),
        ({"qk_norm": "none"}, "qk_norm='none'"),
        ({"sliding_windows": (4,)}, "sliding_windows has 1 entries"),
        ({"sliding_windows": (4, 0, 4)}, "sliding_windows has 0; a layer must see at least 1 token"),
        ({"final_logit_softcapping": 0.0}, "final_logit_softcapping=0.0; it must be positive"),
        (
            {
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 1e4,
                    "short_factor": [1.0],
                    "long_factor": [1.0] * 3,
                    "original_max_position_embeddings": 8,
                }
            },
            "short_factor has 1 entries; give one for each of 3 pairs",
        ),
    ],
)
def test_impossible_switches_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        models.DecoderConfig(**SMALL | fields)


def test_adapters_of_fused_projections_have_no_peft_form_and_others_have_their_names(tmp_path):
    model, params = family_of("phi3")
    adapted = models.add_lora(model, params, models.LoRA(rank=2), jax.random.key(0))
    with pytest.raises(ValueError, match="stores q_proj, k_proj, v_proj, gate_proj, up_proj fused"):
        models.save_adapters(tmp_path / "phi3", *adapted)
    model, params = family_of("gpt_neo")
    tuned, adapted = models.add_lora(model, params, models.LoRA(rank=2), jax.random.key(0))
    folder = models.save_adapters(tmp_path / "gpt_neo", tuned, adapted)
    again, loaded = models.load_adapters(folder, model, params)
    assert again.source.lora.targets == ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
    assert largest_difference(loaded, adapted) == 0
