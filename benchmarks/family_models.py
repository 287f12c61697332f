"""A tiny random torch model of every family, with every switch of its configuration at a value that matters.

What `families.py` measures on them, tests/models/test_families.py asserts.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

from jaxunlearn import models

VOCABULARY = 61
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    **IDS,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
WINDOWED = {"sliding_window": 5, "use_sliding_window": True}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "partial_rotary_factor": 0.7,
    "short_factor": [1.0, 1.3],
    "long_factor": [2.0, 5.0],
    "original_max_position_embeddings": 12,
}


def rope(**more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0, **more}}


FAMILIES = {
    "llama": {"rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True, "head_dim": 8},
    "mistral": {"sliding_window": 5, "head_dim": 8, **rope()},
    "qwen2": {**WINDOWED, "max_window_layers": 1, "tie_word_embeddings": True, **rope()},
    "qwen3": {**WINDOWED, "max_window_layers": 1, "head_dim": 8, **rope()},
    "phi": {"qk_layernorm": True, "layer_norm_eps": 1e-3, **rope(partial_rotary_factor=0.7)},
    "phi3": {
        "sliding_window": 7,
        "rope_parameters": LONGROPE,
        "original_max_position_embeddings": 12,
        "rms_norm_eps": 1e-3,
    },
    "gemma": {"head_dim": 8, "num_key_value_heads": 1, **rope()},
    "gemma2": {
        "head_dim": 8,
        "sliding_window": 5,
        "query_pre_attn_scalar": 5,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "attention_bias": True,
        **rope(),
    },
    "olmo2": {"attention_bias": True, "rms_norm_eps": 1e-3, **rope(rope_type="linear", factor=3.0)},
    "smollm3": {**WINDOWED, "no_rope_layers": [0, 1], "tie_word_embeddings": False, **rope()},
    "granite": {
        "embedding_multiplier": 3.0,
        "logits_scaling": 0.7,
        "residual_multiplier": 0.4,
        "attention_multiplier": 0.6,
        **rope(),
    },
    "gpt_neox": {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3, **rope(partial_rotary_factor=0.7)},
    "opt": {"ffn_dim": 40, "activation_function": "gelu"},
    "gpt_neo": {
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 5,
        "layer_norm_epsilon": 1e-3,
    },
    "gpt_neox, not parallel": {
        "use_parallel_residual": False,
        "attention_bias": False,
        **rope(partial_rotary_factor=0.7),
    },
    "opt, no biases, relu": {"ffn_dim": 40, "enable_bias": False, "layer_norm_elementwise_affine": False},
    "opt, norms of the stream": {
        "ffn_dim": 40,
        "activation_function": "gelu",
        "do_layer_norm_before": False,
        "word_embed_proj_dim": 12,
    },
}
# Fields of SIZES that a family has no use for, or another word.
ABSENT = {
    "gpt_neox": ("num_key_value_heads",),
    "opt": ("num_key_value_heads", "intermediate_size"),
    "gpt_neo": ("num_key_value_heads", "num_hidden_layers", "num_attention_heads"),
}


class Family(NamedTuple):
    """A family in torch, as the folder it was saved in, and as this library loads that folder."""

    torch: Any
    folder: Path
    model: models.Decoder
    params: dict


def torch_model(case: str, **switches: Any) -> Any:
    """The torch model, all weights drawn anew: a norm of ones or a bias of zeros would hide its own absence."""
    kind = case.split(",")[0]
    fields = {name: value for name, value in SIZES.items() if name not in ABSENT.get(kind, ())}
    fields |= FAMILIES[case] | switches
    config = transformers.CONFIG_MAPPING[kind](**fields)
    module = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    module.generation_config = transformers.GenerationConfig(pad_token_id=0)
    generator = torch.Generator().manual_seed(len(case))
    with torch.no_grad():
        for name, weight in module.named_parameters():
            scale = weight.ndim == 1 and name.endswith("weight") and "gemma" not in kind
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3 + (1.0 if scale else 0.0))
    return module


def built(case: str, folder: Path) -> Family:
    """The torch model saved to `folder`, and loaded from there."""
    module = torch_model(case)
    module.save_pretrained(folder)
    return Family(module, folder, *models.load(folder))


def tokens(length: int = 20, rows: int = 2, seed: int = 0) -> np.ndarray:
    """Ids that are not special: torch gives the embedding of a padding token no gradient."""
    return np.random.default_rng(seed).integers(3, VOCABULARY, (rows, length)).astype(np.int32)


def torch_logits(module: Any, ids: np.ndarray, mask: np.ndarray | None = None) -> Any:
    """Logits of padded rows, positions counted from the first real token."""
    seen = torch.ones(ids.shape, dtype=torch.long) if mask is None else torch.tensor(mask)
    places = torch.clamp(seen.cumsum(1) - 1, min=0)
    options = {} if module.config.model_type == "opt" else {"position_ids": places}
    return module(torch.tensor(ids, dtype=torch.long), attention_mask=seen, **options).logits
