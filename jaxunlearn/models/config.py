"""`DecoderConfig`: what a decoder is, in the field names of Hugging Face's `config.json`.

The configuration is frozen and hashable, so a model can be a static argument of `jax.jit` and two loads of one
checkpoint share one compilation. Configurations are read through `transformers.AutoConfig`, which brings old and new
spellings of the rotary fields into one form. Whatever the decoder does not implement is refused by name: a model
that silently ignores a field computes wrong logits.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROPE_KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu")
UNSUPPORTED = {
    "quantization_config": "quantised weights; save the model in float32 or bfloat16 first",
    "sliding_window": "sliding-window attention",
    "num_local_experts": "mixture of experts",
    "num_experts": "mixture of experts",
}


@dataclass(frozen=True)
class DecoderConfig:
    """A Llama decoder: Touvron et al. 2023 ("Llama 2"), Grattafiori et al. 2024 ("The Llama 3 Herd of Models").

    Attributes:
        vocab_size: number of token ids, V.
        hidden_size: width of the residual stream, D.
        intermediate_size: hidden units of the gated feed-forward network.
        num_hidden_layers: number of blocks, L.
        num_attention_heads: query heads, H.
        num_key_value_heads: key and value heads, K; default H. Each serves H / K query heads.
        head_dim: width of a head; default D / H.
        max_position_embeddings: context length, tokens.
        rms_norm_eps: added to the mean square before the square root.
        rope_parameters: rotary frequencies, given as a dictionary with `rope_theta` and `rope_type` ("default",
            "linear" or "llama3" with its factors), kept as sorted pairs.
        hidden_act: activation of the gate.
        attention_bias: whether the attention projections have biases.
        mlp_bias: whether the feed-forward projections have biases.
        tie_word_embeddings: whether the head is the embedding table.
        initializer_range: standard deviation of random weights.
        bos_token_id, eos_token_id, pad_token_id: special ids, passed through unchanged.
        model_type: family, "llama".

    Raises:
        ValueError: naming the field and its value, when sizes do not fit or a feature is not implemented.

    Example:
        >>> config = DecoderConfig(vocab_size=32, hidden_size=16, num_attention_heads=4, num_hidden_layers=2)
        >>> config.head_dim, config.num_key_value_heads, config.rope["rope_type"]
        (4, 4, 'default')
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_parameters: Any = (("rope_theta", 10000.0), ("rope_type", "default"))
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    bos_token_id: int | None = 1
    eos_token_id: Any = 2
    pad_token_id: int | None = None
    model_type: str = "llama"

    def __post_init__(self):
        fill = object.__setattr__
        if self.num_key_value_heads is None:
            fill(self, "num_key_value_heads", self.num_attention_heads)
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"hidden_size={self.hidden_size} is not a multiple of num_attention_heads="
                    f"{self.num_attention_heads}; set head_dim"
                )
            fill(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if isinstance(self.rope_parameters, Mapping):
            fill(self, "rope_parameters", tuple(sorted((k, _plain(v)) for k, v in self.rope_parameters.items())))
        if isinstance(self.eos_token_id, list):
            fill(self, "eos_token_id", tuple(self.eos_token_id))
        self._check()

    def _check(self) -> None:
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        for name in (*sizes, "num_key_value_heads", "head_dim", "max_position_embeddings"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; it must be at least 1")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is not a multiple of num_key_value_heads="
                f"{self.num_key_value_heads}; each key-value head must serve the same number of query heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} is odd; rotary embedding turns pairs of coordinates")
        if self.model_type != "llama":
            raise ValueError(f"model_type={self.model_type!r} is not implemented; use a checkpoint of type 'llama'")
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act={self.hidden_act!r} is not implemented; known: {', '.join(ACTIVATIONS)}")
        kind = self.rope.get("rope_type", "default")
        if kind not in ROPE_KEYS:
            raise ValueError(f"rope_type={kind!r} is not implemented; known: {', '.join(ROPE_KEYS)}")
        if missing := [key for key in ("rope_theta", *ROPE_KEYS[kind]) if key not in self.rope]:
            raise ValueError(f"rope_parameters of type {kind!r} lack {', '.join(missing)}: {self.rope}")
        if self.rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise ValueError(f"partial_rotary_factor={self.rope['partial_rotary_factor']} is not implemented; use 1.0")

    @property
    def rope(self) -> dict[str, Any]:
        """`rope_parameters` as a dictionary."""
        return dict(self.rope_parameters)

    @classmethod
    def from_hf(cls, config: Any) -> "DecoderConfig":
        """From a `transformers` configuration object.

        Raises:
            ValueError: naming the field, when the configuration asks for something that is not implemented.
        """
        for name, what in UNSUPPORTED.items():
            if getattr(config, name, None):
                raise ValueError(f"{name}={getattr(config, name)!r}: {what} is not implemented")
        return cls(**{name: getattr(config, name) for name in cls.__dataclass_fields__ if hasattr(config, name)})

    def to_hf(self, dtype: str = "float32") -> Any:
        """The `transformers` configuration object, with `dtype` as the stored type of the weights."""
        from transformers import LlamaConfig

        fields = asdict(self) | {"rope_parameters": self.rope}
        if isinstance(self.eos_token_id, tuple):
            fields["eos_token_id"] = list(self.eos_token_id)
        del fields["model_type"]
        return LlamaConfig(**fields, architectures=["LlamaForCausalLM"], dtype=dtype)


def read_config(folder: Path) -> DecoderConfig:
    """The configuration of a checkpoint folder.

    Raises:
        ValueError: naming the file and the field, when `config.json` is missing, is not JSON, or asks for a feature
            that is not implemented.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{path} does not exist; a checkpoint folder holds config.json beside its safetensors files")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    family = raw.get("model_type") if isinstance(raw, dict) else None
    try:
        if family != "llama":
            raise ValueError(f"model_type={family!r} is not implemented; use a checkpoint of type 'llama'")
        from transformers import AutoConfig

        return DecoderConfig.from_hf(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    except Exception as error:
        raise ValueError(f"{path}: {error}") from error


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
