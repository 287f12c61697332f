"""The `config.json` of released checkpoints, in the spelling of their day: read for what it says, written as it was."""

import json
from dataclasses import replace

import pytest
import transformers
from decoder_cases import largest_difference, toy

from jaxunlearn import models
from jaxunlearn.models.hf_config import to_json

SIZES = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.0",
    "use_cache": True,
}
LLAMA3 = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 16,
    "rope_type": "llama3",
}
FACTORS = {"short_factor": [1.0, 1.2], "long_factor": [2.0, 5.0]}


def without(*names):
    return {name: value for name, value in SIZES.items() if name not in names}


def rope(kind="default", theta=10000.0, **more):
    return {"rope": {"rope_type": kind, "rope_theta": theta, **more}}


# Fields as they were released (sizes apart), and what they must come to.
RELEASED = {
    "llama-2": (
        SIZES | {"model_type": "llama", "pretraining_tp": 1, "rms_norm_eps": 1e-5, "rope_scaling": None},
        rope() | {"rms_norm_eps": 1e-5, "tie_word_embeddings": False},
    ),
    "vicuna": (
        SIZES | {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 8.0}},
        rope("linear", factor=8.0),
    ),
    "llama-3.2": (
        SIZES | {"model_type": "llama", "rope_scaling": LLAMA3, "rope_theta": 500000.0, "tie_word_embeddings": True},
        rope(theta=500000.0, kind="llama3", **{k: v for k, v in LLAMA3.items() if k != "rope_type"})
        | {"tie_word_embeddings": True},
    ),
    "mistral-0.1": (
        SIZES | {"model_type": "mistral", "sliding_window": 5, "rope_theta": 10000.0},
        rope() | {"sliding_windows": (5,) * 4},
    ),
    "mistral-0.3": (
        SIZES | {"model_type": "mistral", "sliding_window": None, "head_dim": None, "rope_theta": 1e6},
        rope(theta=1e6) | {"sliding_windows": None, "head_dim": 6},
    ),
    "qwen2.5": (
        SIZES
        | {"model_type": "qwen2", "max_window_layers": 2, "sliding_window": 5, "use_sliding_window": False}
        | {"rope_theta": 1e6, "use_mrope": False},
        rope(theta=1e6) | {"sliding_windows": None, "attention_bias": True, "attention_out_bias": False},
    ),
    "phi-1.5": (
        SIZES
        | {"model_type": "phi", "num_key_value_heads": None, "partial_rotary_factor": 0.7, "layer_norm_eps": 1e-4}
        | {"hidden_act": "gelu_new", "qk_layernorm": False, "rope_scaling": None, "rope_theta": 10000.0},
        rope(partial_rotary_factor=0.7) | {"rms_norm_eps": 1e-4, "num_key_value_heads": 4, "block": "shared"},
    ),
    "phi-3.5": (
        SIZES
        | {"model_type": "phi3", "rope_theta": 100.0, "original_max_position_embeddings": 12, "sliding_window": 50}
        | {"rope_scaling": {"type": "longrope", **FACTORS}, "partial_rotary_factor": 0.7}
        | {"auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "embd_pdrop": 0.0},
        {"switch_lengths": (12,), "rotary_dim": 4, "sliding_windows": (50,) * 4},
    ),
    "gemma-1": (
        SIZES | {"model_type": "gemma", "hidden_act": "gelu", "head_dim": 8, "rope_scaling": None, "rope_theta": 1e4},
        rope() | {"hidden_act": "gelu_pytorch_tanh", "norm_offset": 1.0, "tie_word_embeddings": True},
    ),
    "gemma-2": (
        SIZES
        | {"model_type": "gemma2", "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}
        | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 16}
        | {"sliding_window": 5, "sliding_window_size": 5, "cache_implementation": "hybrid"},
        rope()
        | {"sliding_windows": (5, None, 5, None), "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
        | {"attention_multiplier": 0.25},
    ),
    "olmo-2": (
        SIZES | {"model_type": "olmo2", "rope_scaling": None, "rope_theta": 500000, "attention_bias": False},
        rope(theta=500000) | {"block": "post", "qk_norm": "width"},
    ),
    "smollm3": (
        SIZES
        | {"model_type": "smollm3", "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0], "rope_theta": 5e6}
        | {"layer_types": ["full_attention"] * 4, "sliding_window": None, "use_sliding_window": False},
        rope(theta=5e6) | {"rope_layers": (True, True, True, False), "sliding_windows": None},
    ),
    "granite-3": (
        SIZES
        | {"model_type": "granite", "attention_multiplier": 0.6, "embedding_multiplier": 3.0, "rope_theta": 1e7}
        | {"logits_scaling": 0.7, "residual_multiplier": 0.4, "tie_word_embeddings": True, "rope_scaling": None},
        rope(theta=1e7) | {"attention_multiplier": 0.6, "logits_scaling": 0.7, "residual_multiplier": 0.4},
    ),
    "pythia": (
        without("num_key_value_heads")
        | {"model_type": "gpt_neox", "hidden_act": "gelu", "layer_norm_eps": 1e-4, "use_parallel_residual": True}
        | {"rotary_emb_base": 100, "rotary_pct": 0.7, "tie_word_embeddings": False},
        rope(theta=100, partial_rotary_factor=0.7) | {"rms_norm_eps": 1e-4, "block": "parallel"},
    ),
    "opt": (
        without("num_key_value_heads", "intermediate_size")
        | {"model_type": "opt", "_remove_final_layer_norm": False, "activation_function": "relu", "ffn_dim": 40}
        | {"do_layer_norm_before": True, "word_embed_proj_dim": 24, "init_std": 0.01, "prefix": "</s>"},
        {"hidden_act": "relu", "intermediate_size": 40, "position_offset": 2, "initializer_range": 0.01},
    ),
    "gpt-neo": (
        without("num_key_value_heads", "intermediate_size", "num_hidden_layers", "num_attention_heads", "torch_dtype")
        | {"model_type": "gpt_neo", "num_layers": 4, "num_heads": 4, "window_size": 5, "intermediate_size": None}
        | {"attention_types": [[["global", "local"], 2]], "attention_layers": ["global", "local"] * 2},
        {"sliding_windows": (None, 5, None, 5), "intermediate_size": 96, "attention_multiplier": 1.0},
    ),
}


def read(folder, fields):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    return models.read_config(folder)


@pytest.mark.parametrize("name", RELEASED)
def test_it_says_what_it_said_and_goes_out_as_it_came(name, tmp_path):
    fields, expected = RELEASED[name]
    config = read(tmp_path, fields)
    found = {field: getattr(config, field) for field in expected}
    if "rope" in found:
        found["rope"] = {key: found["rope"].get(key) for key in expected["rope"]}
    assert found == expected
    written = json.loads(to_json(config, "float32"))
    kept = {field: value for field, value in fields.items() if field != "auto_map"}
    assert written == kept | {"torch_dtype" if "torch_dtype" in fields else "dtype": "float32"}
    assert read(tmp_path, written) == config


def test_a_changed_configuration_is_not_written_as_it_was(tmp_path):
    fields, _ = RELEASED["llama-3.2"]
    config = read(tmp_path, fields)
    fewer = json.loads(to_json(replace(config, num_hidden_layers=2), "bfloat16"))
    assert fewer["num_hidden_layers"] == 2
    assert fewer["rope_parameters"]["rope_theta"] == 500000.0
    assert fewer["eos_token_id"] == [2, 3]
    assert read(tmp_path, fewer) == replace(config, num_hidden_layers=2)


def test_a_saved_folder_has_the_spelling_of_the_one_it_came_from(tmp_path):
    """Also after training in another dtype: readers that look for `rope_theta` find it."""
    model, params = toy(rope_parameters={"rope_type": "default", "rope_theta": 700.0}, tie_word_embeddings=True)
    models.save(tmp_path / "first", model, params)
    new = json.loads((tmp_path / "first" / "config.json").read_text())
    old = {field: value for field, value in new.items() if field not in ("rope_parameters", "dtype")}
    old |= {"rope_theta": 700.0, "rope_scaling": None, "torch_dtype": "float32", "transformers_version": "4.31.0"}
    (tmp_path / "first" / "config.json").write_text(json.dumps(old))
    again, loaded = models.load(tmp_path / "first", dtype="bfloat16")
    assert again == model
    models.save(tmp_path / "second", again, loaded)
    assert json.loads((tmp_path / "second" / "config.json").read_text()) == old | {"torch_dtype": "bfloat16"}
    assert largest_difference(models.load(tmp_path / "second")[1], loaded) == 0
    assert transformers.AutoConfig.from_pretrained(tmp_path / "second").rope_parameters["rope_theta"] == 700.0
