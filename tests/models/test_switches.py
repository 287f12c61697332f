"""Switches that no torch model combines: a switch at its other value changes nothing, layers keep their own."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from decoder_cases import SMALL, largest_difference, tokens_for, toy
from family_models import FAMILIES, built, torch_model
from safetensors.numpy import load_file, save_file

from jaxunlearn import losses, models
from jaxunlearn.curvature.kronecker import Settings, kronecker_factors
from jaxunlearn.models.specs import at
from jaxunlearn.types import TokenBatch


def test_layers_keep_their_own_window_and_rotation_when_cut_or_truncated(tmp_path):
    model, params = built("smollm3", tmp_path)[2:]
    ids = tokens_for(model.source.config, length=20)
    logits, hidden = jax.jit(model.logits), jax.jit(model.hidden, static_argnums=2)
    cut = models.split_layers(params, (1, 1))
    np.testing.assert_allclose(logits(cut, ids), logits(params, ids), atol=1e-5)
    lower, fewer = models.truncate_layers(model, params, 1)
    np.testing.assert_allclose(
        jax.jit(lower.hidden, static_argnums=2)(fewer, ids, 1), hidden(params, ids, 1), atol=1e-5
    )


@pytest.mark.parametrize("case", ["gemma2", "smollm3", "gpt_neo"])
def test_fewer_layers_are_said_to_hugging_face(case):
    config = replace(models.DecoderConfig.from_hf(torch_model(case).config), num_hidden_layers=1)
    theirs = config.to_hf()
    assert theirs.num_hidden_layers == 1
    assert models.DecoderConfig.from_hf(theirs) == config


def test_blockwise_attention_sees_what_plain_attention_sees_in_a_model():
    fields = {"sliding_windows": (3, None), "attn_logit_softcapping": 2.0, "attention_multiplier": 0.4}
    model, params = toy(**fields)
    tiled, _ = toy(**fields, attention="blockwise")
    ids = tokens_for(model.source.config, length=11)
    logits = jax.jit(lambda params: (model.logits(params, ids), tiled.logits(params, ids)))
    np.testing.assert_allclose(*logits(params), atol=1e-5)


def test_taps_watch_what_other_families_have():
    """Of one example, squares of a vector parameter are those of its gradient; a position is read once."""
    other = {"norm": "layer", "block": "shared", "gated_mlp": False, "head_bias": True, "qk_norm": "head"}
    other |= {
        "word_embed_proj_dim": 20,
        "position_offset": 2,
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.5,
        "logits_scaling": 0.7,
    }
    model, params = toy(model_type="gpt_neo", **other)
    ids = jnp.asarray(tokens_for(model.source.config, batch=1, length=7))
    batch = TokenBatch(ids, jnp.ones(ids.shape).at[:, 0].set(0.0))

    @jax.jit
    def both(params):
        settings = Settings(fisher="empirical", max_side=64)
        sums = kronecker_factors(model, params, batch, settings).sums
        return sums, jax.grad(lambda p: losses.nll(model, p, batch)[0])(params)

    sums, gradient = both(params)
    vectors = 0
    for spec in models.param_specs(model.source.config):
        found = sums["/".join(spec.path)]
        if "S" in (one := next(iter(found.values()))):
            np.testing.assert_allclose(one["S"], at(gradient, spec) ** 2, rtol=1e-3, atol=1e-6)
            vectors += 1
    assert vectors == 2 + 4 + 2 + 1  # norms of layers, of queries and keys, the last, and the bias of the head
    np.testing.assert_array_equal(sums["embed_positions/embedding"]["lookup"]["A"][:9], [0, 0, 1, 1, 1, 1, 1, 1, 0])


@pytest.mark.parametrize("case", FAMILIES)
def test_a_configuration_goes_to_hugging_face_and_back(case):
    theirs = torch_model(case).config
    config = models.DecoderConfig.from_hf(theirs)
    again = config.to_hf()
    assert models.DecoderConfig.from_hf(again) == config
    ignored = {"architectures", "dtype", "transformers_version"}
    a, b = ({k: v for k, v in c.to_diff_dict().items() if k not in ignored} for c in (theirs, again))
    assert a == b


def test_an_opt_model_may_go_without_its_last_norm():
    plain, bare = (
        models.DecoderConfig.from_hf(transformers.OPTConfig(_remove_final_layer_norm=without))
        for without in (False, True)
    )
    paths = [{spec.path for spec in models.param_specs(config)} for config in (plain, bare)]
    assert paths[0] - paths[1] == {("norm", "scale"), ("norm", "bias")}
    assert models.DecoderConfig.from_hf(bare.to_hf()) == bare


def test_switches_that_a_family_cannot_express_are_named_and_nothing_is_written(tmp_path):
    config = models.DecoderConfig(**SMALL, model_type="gemma2")
    params = jax.eval_shape(lambda key: models.init(config, key)[1], jax.random.key(0))
    with pytest.raises(ValueError, match=r"cannot say .*norm_offset=0.0 \(not 1.0\).*transformers.Gemma2Config"):
        models.save(tmp_path / "saved", models.as_model(models.Decoder(config)), params)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (transformers.MixtralConfig(), "num_local_experts=8: a mixture of experts is not implemented"),
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
        ({"attn_logit_softcapping": float("inf")}, "attn_logit_softcapping=inf; it must be positive, from 1e-06 to 1e"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps=-1e-05; it must be from 0"),
        ({"attention_multiplier": float("nan")}, "attention_multiplier=nan; it must be from 0"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_theta=0 in rope_parameters; it must be positive"),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": "8"}},
            "factor='8' in rope_parameters; it must be positive",
        ),
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


@pytest.mark.parametrize(
    ("case", "here", "there", "buffer"),
    [
        ("opt", "model.decoder.", "decoder.", None),
        ("gpt_neox", "embed_out.", "lm_head.", "gpt_neox.layers.0.attention.bias"),
        ("gpt_neo", "none", "none", "transformer.h.1.attn.attention.masked_bias"),
    ],
)
def test_names_and_buffers_of_other_checkpoints_are_known(case, here, there, buffer, tmp_path):
    family = built(case, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    renamed = {name.replace(here, there, 1): tensor for name, tensor in tensors.items()}
    if buffer:
        renamed[buffer] = np.ones((1, 1, 4, 4), np.uint8)
    save_file(renamed, file, metadata={"format": "pt"})
    _, params = models.load(tmp_path)
    assert largest_difference(params, family.params) == 0


def test_more_tokens_than_learned_positions_are_refused():
    config = models.DecoderConfig(**SMALL, model_type="gpt_neo", position_offset=0)
    model = models.as_model(models.Decoder(config))
    params = jax.eval_shape(lambda key: models.init(config, key)[1], jax.random.key(0))
    with pytest.raises(ValueError, match="examples of 65 tokens, but this model has learned 64 positions"):
        jax.eval_shape(model.logits, params, jnp.zeros((1, 65), jnp.int32))


def test_adapters_of_fused_projections_have_no_peft_form_and_others_have_their_names(tmp_path):
    model, params = built("phi3", tmp_path / "phi3 in torch")[2:]
    adapted = models.add_lora(model, params, models.LoRA(rank=2), jax.random.key(0))
    with pytest.raises(ValueError, match="stores q_proj, k_proj, v_proj, gate_proj, up_proj fused"):
        models.save_adapters(tmp_path / "phi3", *adapted)
    model, params = built("gpt_neo", tmp_path / "gpt_neo in torch")[2:]
    tuned, adapted = models.add_lora(model, params, models.LoRA(rank=2), jax.random.key(0))
    folder = models.save_adapters(tmp_path / "gpt_neo", tuned, adapted)
    again, loaded = models.load_adapters(folder, model, params)
    assert again.source.lora.targets == ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
    assert largest_difference(loaded, adapted) == 0
