"""Model families: how the `config.json` of each becomes switches of the one decoder, and what it calls its tensors.

A family is data. Fields that Hugging Face and `DecoderConfig` call alike are taken over as they are; `renamed` says
where a family has another word for one, `fixed` what all its members share, `derived` what has to be worked out, and
`only` which values of a field are implemented. `names` are the modules of a checkpoint, where they differ from
Llama's. Two projections with one name are stored fused, below each other, or with `interleaved` head by head.

Sources: the papers and released configurations of the families; what each field means to the result is checked against
`transformers` in tests/models/test_families.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

LLAMA_NAMES = {
    "embed_tokens": "model.embed_tokens",
    "embed_positions": "model.embed_positions",
    "project_in": "model.project_in",
    "project_out": "model.project_out",
    "layers": "model.layers.{layer}",
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_attention_layernorm",
    "pre_feedforward_layernorm": "pre_feedforward_layernorm",
    "post_feedforward_layernorm": "post_feedforward_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
    "norm": "model.norm",
    "lm_head": "lm_head",
}
ONCE = ("embed_tokens", "embed_positions", "project_in", "project_out", "layers", "norm", "lm_head")
LAYER_NORM = {"norm": "layer", "gated_mlp": False, "mlp_bias": True}


@dataclass(frozen=True)
class Family:
    """One `model_type` of Hugging Face.

    Attributes:
        config: its configuration class in `transformers`.
        model: its language model class there.
        names: modules whose names are not Llama's.
        renamed: field of `DecoderConfig` to field of its `config.json`.
        fixed: switches that all its members share.
        derived: further switches, from the configuration object.
        only: values of fields beside which nothing is implemented.
        interleaved: whether fused projections are stored head by head.
        partial_rotary: whether it honours `partial_rotary_factor`.
        aliases: first part of a tensor name in other checkpoints, and here.
        restored: fields that say the same of the lowest L layers only.
    """

    config: str
    model: str
    names: Mapping[str, str] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    derived: Callable[[Any], dict[str, Any]] = lambda config: {}
    only: Mapping[str, tuple] = field(default_factory=dict)
    interleaved: bool = False
    partial_rotary: bool = False
    aliases: tuple[tuple[str, str], ...] = ()
    restored: Callable[[dict[str, Any], int], dict[str, Any]] = lambda fields, layers: {}

    def stem(self, part: str) -> str:
        """Name of a module in a checkpoint, with `{layer}` where there is one a layer."""
        name = self.names[part] if part in self.names else LLAMA_NAMES[part]
        return name if part in ONCE else f"{self.stem('layers')}.{name}"


def _one_window(config: Any) -> dict[str, Any]:
    return {"sliding_windows": (config.sliding_window,) * config.num_hidden_layers}


def _windows_by_type(config: Any) -> dict[str, Any]:
    sizes = {"full_attention": None, "sliding_attention": config.sliding_window}
    if unknown := set(config.layer_types) - set(sizes):
        raise ValueError(f"layer_types has {', '.join(sorted(unknown))}; known: {', '.join(sizes)}")
    return {"sliding_windows": tuple(sizes[kind] for kind in config.layer_types)}


def _lowest_types(fields: dict[str, Any], layers: int) -> dict[str, Any]:
    return {name: fields[name][:layers] for name in ("layer_types", "no_rope_layers") if fields.get(name)}


def _gemma(config: Any) -> dict[str, Any]:
    return {"embedding_multiplier": config.hidden_size**0.5}


def _gemma2(config: Any) -> dict[str, Any]:
    return _gemma(config) | _windows_by_type(config) | {"attention_multiplier": config.query_pre_attn_scalar**-0.5}


def _smollm3(config: Any) -> dict[str, Any]:
    return _windows_by_type(config) | {"rope_layers": tuple(bool(one) for one in config.no_rope_layers)}


def _gpt_neox(config: Any) -> dict[str, Any]:
    return {"block": "parallel" if config.use_parallel_residual else "pre"}


def _opt(config: Any) -> dict[str, Any]:
    before, bias = config.do_layer_norm_before, config.enable_bias
    biases = {"attention_bias": bias, "attention_out_bias": bias, "mlp_bias": bias}
    return biases | {
        "norm_affine": config.layer_norm_elementwise_affine,
        "block": "pre" if before else "stream",
        "final_norm": before and not config._remove_final_layer_norm,
    }


def _gpt_neo(config: Any) -> dict[str, Any]:
    sizes = {"global": None, "local": config.window_size}
    return {
        "sliding_windows": tuple(sizes[kind] for kind in config.attention_layers),
        "intermediate_size": config.intermediate_size or 4 * config.hidden_size,
    }


def _lowest_attention(fields: dict[str, Any], layers: int) -> dict[str, Any]:
    kinds = [kind for group, times in fields.get("attention_types", []) for _ in range(times) for kind in group]
    return {"attention_types": [[kinds[:layers], 1]], "attention_layers": kinds[:layers]} if kinds else {}


CAUSAL = {"use_bidirectional_attention": (None, False)}
QWEN2 = Family(
    "Qwen2Config",
    "Qwen2ForCausalLM",
    fixed={"attention_bias": True, "attention_out_bias": False},
    derived=_windows_by_type,
    restored=_lowest_types,
)
FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaConfig", "LlamaForCausalLM"),
    "mistral": Family("MistralConfig", "MistralForCausalLM", derived=_one_window),
    "qwen2": QWEN2,
    "qwen3": Family(
        "Qwen3Config",
        "Qwen3ForCausalLM",
        fixed={"qk_norm": "head"},
        derived=_windows_by_type,
        restored=_lowest_types,
    ),
    "phi": Family(
        "PhiConfig",
        "PhiForCausalLM",
        names={
            "o_proj": "self_attn.dense",
            "q_norm": "self_attn.q_layernorm",
            "k_norm": "self_attn.k_layernorm",
            "up_proj": "mlp.fc1",
            "down_proj": "mlp.fc2",
            "norm": "model.final_layernorm",
        },
        renamed={"rms_norm_eps": "layer_norm_eps"},
        fixed=LAYER_NORM | {"block": "shared", "attention_bias": True, "head_bias": True},
        derived=lambda config: {"qk_norm": "head" if config.qk_layernorm else None},
        partial_rotary=True,
    ),
    "phi3": Family(
        "Phi3Config",
        "Phi3ForCausalLM",
        names=dict.fromkeys(("q_proj", "k_proj", "v_proj"), "self_attn.qkv_proj")
        | dict.fromkeys(("gate_proj", "up_proj"), "mlp.gate_up_proj"),
        derived=_one_window,
        partial_rotary=True,
    ),
    "gemma": Family(
        "GemmaConfig",
        "GemmaForCausalLM",
        fixed={"norm_offset": 1.0},
        derived=_gemma,
        only=CAUSAL,
    ),
    "gemma2": Family(
        "Gemma2Config",
        "Gemma2ForCausalLM",
        renamed={"hidden_act": "hidden_activation"},
        fixed={"norm_offset": 1.0, "block": "sandwich"},
        derived=_gemma2,
        only=CAUSAL,
        restored=_lowest_types,
    ),
    "olmo2": Family("Olmo2Config", "Olmo2ForCausalLM", fixed={"block": "post", "qk_norm": "width"}),
    "smollm3": Family("SmolLM3Config", "SmolLM3ForCausalLM", derived=_smollm3, restored=_lowest_types),
    "granite": Family("GraniteConfig", "GraniteForCausalLM"),
    "gpt_neox": Family(
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        names={
            "embed_tokens": "gpt_neox.embed_in",
            "layers": "gpt_neox.layers.{layer}",
            "o_proj": "attention.dense",
            "up_proj": "mlp.dense_h_to_4h",
            "down_proj": "mlp.dense_4h_to_h",
            "norm": "gpt_neox.final_layer_norm",
            "lm_head": "embed_out",
        }
        | dict.fromkeys(("q_proj", "k_proj", "v_proj"), "attention.query_key_value"),
        renamed={"rms_norm_eps": "layer_norm_eps"},
        fixed=LAYER_NORM,
        derived=_gpt_neox,
        interleaved=True,
        partial_rotary=True,
        aliases=(("lm_head.", "embed_out."),),
    ),
    "opt": Family(
        "OPTConfig",
        "OPTForCausalLM",
        names={
            "embed_tokens": "model.decoder.embed_tokens",
            "embed_positions": "model.decoder.embed_positions",
            "project_in": "model.decoder.project_in",
            "project_out": "model.decoder.project_out",
            "layers": "model.decoder.layers.{layer}",
            "input_layernorm": "self_attn_layer_norm",
            "post_attention_layernorm": "final_layer_norm",
            "o_proj": "self_attn.out_proj",
            "up_proj": "fc1",
            "down_proj": "fc2",
            "norm": "model.decoder.final_layer_norm",
        },
        renamed={
            "intermediate_size": "ffn_dim",
            "hidden_act": "activation_function",
            "initializer_range": "init_std",
        },
        fixed=LAYER_NORM | {"rms_norm_eps": 1e-5, "rope_parameters": None, "position_offset": 2},
        derived=_opt,
        aliases=(("decoder.", "model.decoder."),),
    ),
    "gpt_neo": Family(
        "GPTNeoConfig",
        "GPTNeoForCausalLM",
        names={
            "embed_tokens": "transformer.wte",
            "embed_positions": "transformer.wpe",
            "layers": "transformer.h.{layer}",
            "input_layernorm": "ln_1",
            "post_attention_layernorm": "ln_2",
            "q_proj": "attn.attention.q_proj",
            "k_proj": "attn.attention.k_proj",
            "v_proj": "attn.attention.v_proj",
            "o_proj": "attn.attention.out_proj",
            "up_proj": "mlp.c_fc",
            "down_proj": "mlp.c_proj",
            "norm": "transformer.ln_f",
        },
        renamed={
            "num_hidden_layers": "num_layers",
            "num_attention_heads": "num_heads",
            "hidden_act": "activation_function",
            "rms_norm_eps": "layer_norm_epsilon",
        },
        fixed=LAYER_NORM
        | {"attention_out_bias": True, "attention_multiplier": 1.0, "rope_parameters": None, "position_offset": 0},
        derived=_gpt_neo,
        restored=_lowest_attention,
    ),
}
