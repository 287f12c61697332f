"""Well-known architectures by name, for plans and benchmarks that need shapes and no weights.

Sizes are those of the released configurations: Touvron et al. 2023 (Llama 2), Grattafiori et al. 2024 (Llama 3) and the
model cards of Llama 3.2.
"""

from typing import Any

from jaxunlearn.models.config import DecoderConfig

_LLAMA_3 = {"vocab_size": 128256, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "max_position_embeddings": 8192}
_ROPE_3 = {"rope_theta": 500000.0, "rope_type": "default"}
_ROPE_32 = _ROPE_3 | {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _sizes(hidden: int, intermediate: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


PRESETS: dict[str, dict[str, Any]] = {
    "llama-3.2-1b": _LLAMA_3
    | _sizes(2048, 8192, 16, 32)
    | {"tie_word_embeddings": True, "max_position_embeddings": 131072, "rope_parameters": _ROPE_32},
    "llama-2-7b": _sizes(4096, 11008, 32, 32) | {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
    "llama-3-8b": _LLAMA_3 | _sizes(4096, 14336, 32, 32) | {"rope_parameters": _ROPE_3},
    "llama-3-70b": _LLAMA_3 | _sizes(8192, 28672, 80, 64) | {"rope_parameters": _ROPE_3},
}


def preset(name: str) -> DecoderConfig:
    """The configuration of a well-known model.

    Raises:
        ValueError: when there is none of this name; the known ones are listed.

    Example:
        >>> preset("llama-3-8b").num_hidden_layers
        32
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; known: {', '.join(PRESETS)}")
    return DecoderConfig(**PRESETS[name])
