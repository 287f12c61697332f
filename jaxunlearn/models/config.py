"""`DecoderConfig`: what a decoder is, in the field names of Hugging Face's `config.json`.

The configuration is frozen and hashable, so a model can be a static argument of `jax.jit` and two loads of one
checkpoint share one compilation. Whatever the decoder does not implement is refused by name: a model that silently
ignores a field computes wrong logits. `hf_config` reads and writes the form of `transformers`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxunlearn.models.families import FAMILIES

ROPE_KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
}
SMALLEST, LARGEST = 1e-6, 1e12  # of a positive number: products and quotients of some stay within float32
RANGE = f"from {SMALLEST:g} to {LARGEST:g}"
CHOICES = {
    "model_type": tuple(FAMILIES),
    "hidden_act": ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu"),
    "norm": ("rms", "layer"),
    "block": ("pre", "post", "stream", "sandwich", "parallel", "shared"),
    "qk_norm": (None, "head", "width"),
}


@dataclass(frozen=True)
class DecoderConfig:
    """A decoder: Touvron et al. 2023 ("Llama 2"), Grattafiori et al. 2024 ("The Llama 3 Herd of Models") and kin.

    The defaults are Llama's; `families.FAMILIES` says what other families set.

    Attributes:
        vocab_size: number of token ids, V.
        hidden_size: width of the residual stream, D.
        word_embed_proj_dim: width of the embedding table and of the head, E; default D. Where it differs, a projection
            leads from the table to the layers and one from these to the head.
        intermediate_size: hidden units of the feed-forward network.
        num_hidden_layers: number of blocks, L.
        num_attention_heads: query heads, H.
        num_key_value_heads: key and value heads, K; default H. Each serves H / K query heads.
        head_dim: width of a head; default D / H.
        max_position_embeddings: context length, tokens.
        rms_norm_eps: added to the mean square (or variance) before the square root, in every norm.
        rope_parameters: rotary frequencies, given as a dictionary with `rope_theta` and `rope_type` ("default",
            "linear", "llama3" or "longrope" with its factors), kept as sorted pairs; None for no rotation.
        hidden_act: activation of the gate, or of the hidden units without one.
        attention_bias: whether the attention projections have biases.
        mlp_bias: whether the feed-forward projections have biases.
        tie_word_embeddings: whether the head is the embedding table.
        initializer_range: standard deviation of random weights.
        bos_token_id, eos_token_id, pad_token_id: special ids, passed through unchanged.
        model_type: family, a key of `families.FAMILIES`.
        norm: "rms" (root mean square) or "layer" (mean and variance, with a bias).
        norm_affine: whether norms have parameters.
        norm_offset: added to the scale of every norm.
        block: where norms sit: "pre", before attention and feed-forward network; "post", behind each; "stream", behind
            each sum of stream and network; "sandwich", before and behind each; "parallel", both networks read the same
            stream, each through its norm; "shared", through one norm.
        final_norm: whether there is a norm behind the last layer.
        qk_norm: norm of queries and keys: None, "head" (each head by itself) or "width" (all heads together).
        attention_out_bias: whether the output projection of attention has a bias; default `attention_bias`.
        gated_mlp: whether the feed-forward network has a gate.
        head_bias: whether the head has a bias.
        sliding_windows: for each layer how many tokens back it sees, itself included, None for all; longer tuples are
            cut to L.
        rope_layers: for each layer whether it rotates; None for all.
        position_offset: row of the learned position table for position 0; None for no such table.
        embedding_multiplier: factor on the embedding.
        residual_multiplier: factor on what attention and feed-forward network add to the stream.
        attention_multiplier: factor on scores; default `head_dim ** -0.5`.
        logits_scaling: logits are divided by it.
        attn_logit_softcapping, final_logit_softcapping: c of `c tanh(x / c)` on scores and on logits; None for none.
        hf_fields: the fields of the `config.json` it came from, which go out again; not part of its identity.
        hf_file: that file as it was read, which `save` writes again if nothing changed; not part of its identity.

    Raises:
        ValueError: naming the field and its value, when sizes do not fit or a feature is not implemented.

    Example:
        >>> config = DecoderConfig(vocab_size=32, hidden_size=16, num_attention_heads=4, num_hidden_layers=2)
        >>> config.head_dim, config.num_key_value_heads, config.rope["rope_type"]
        (4, 4, 'default')
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    word_embed_proj_dim: int | None = None
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
    norm: str = "rms"
    norm_affine: bool = True
    norm_offset: float = 0.0
    block: str = "pre"
    final_norm: bool = True
    qk_norm: str | None = None
    attention_out_bias: bool | None = None
    gated_mlp: bool = True
    head_bias: bool = False
    sliding_windows: tuple[int | None, ...] | None = None
    rope_layers: tuple[bool, ...] | None = None
    position_offset: int | None = None
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    attention_multiplier: float | None = None
    logits_scaling: float = 1.0
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    hf_fields: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)
    hf_file: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)

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
        if self.word_embed_proj_dim is None:
            fill(self, "word_embed_proj_dim", self.hidden_size)
        if self.attention_out_bias is None:
            fill(self, "attention_out_bias", self.attention_bias)
        if self.attention_multiplier is None:
            fill(self, "attention_multiplier", self.head_dim**-0.5)
        if isinstance(self.rope_parameters, Mapping):
            fill(self, "rope_parameters", _plain(self.rope_parameters))
        fill(self, "eos_token_id", _plain(self.eos_token_id))
        for name, plain in (("sliding_windows", None), ("rope_layers", True)):
            if (each := getattr(self, name)) is not None:
                if len(each) < self.num_hidden_layers:
                    raise ValueError(f"{name} has {len(each)} entries; give one for each of the layers")
                each = tuple(each[: self.num_hidden_layers])
                fill(self, name, None if all(one == plain for one in each) else each)
        self._check()

    def _check(self) -> None:
        for name, known in CHOICES.items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name}={value!r} is not implemented; known: {', '.join(map(str, known))}")
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        for name in (*sizes, "word_embed_proj_dim", "num_key_value_heads", "head_dim", "max_position_embeddings"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; it must be at least 1")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is not a multiple of num_key_value_heads="
                f"{self.num_key_value_heads}; each key-value head must serve the same number of query heads"
            )
        if odd := [one for one in self.sliding_windows or () if one is not None and not 1 <= one < 2**31]:
            raise ValueError(f"sliding_windows has {odd[0]}; a layer must see at least 1 token, and fewer than 2^31")
        for name in ("attn_logit_softcapping", "final_logit_softcapping", "logits_scaling"):
            if (value := getattr(self, name)) is not None and not _positive(value):
                raise ValueError(f"{name}={value}; it must be positive, {RANGE}")
        for name in ("rms_norm_eps", "embedding_multiplier", "residual_multiplier", "attention_multiplier"):
            if not 0 <= (value := getattr(self, name)) <= LARGEST:
                raise ValueError(f"{name}={value}; it must be from 0 to {LARGEST:g}")
        if self.rope_parameters is not None:
            self._check_rope()

    def _check_rope(self) -> None:
        kind = self.rope.get("rope_type", "default")
        if kind not in ROPE_KEYS:
            raise ValueError(f"rope_type={kind!r} is not implemented; known: {', '.join(ROPE_KEYS)}")
        if missing := [key for key in ("rope_theta", *ROPE_KEYS[kind]) if self.rope.get(key) is None]:
            raise ValueError(f"rope_parameters of type {kind!r} lack {', '.join(missing)}: {self.rope}")
        for key in ("rope_theta", *ROPE_KEYS[kind], "factor", "attention_factor"):
            given = self.rope.get(key)
            numbers = given if isinstance(given, tuple) and key in ("short_factor", "long_factor") else (given,)
            if given is not None and not all(map(_positive, numbers)):
                raise ValueError(f"{key}={given!r} in rope_parameters; it must be positive, {RANGE}")
        if kind == "llama3" and not self.rope["low_freq_factor"] < self.rope["high_freq_factor"]:
            raise ValueError("low_freq_factor must be below high_freq_factor in rope_parameters of type 'llama3'")
        part = self.rope.get("partial_rotary_factor", 1.0)
        if part != 1.0 and not FAMILIES[self.model_type].partial_rotary:
            raise ValueError(f"partial_rotary_factor={part} is not implemented for {self.model_type!r}; use 1.0")
        if self.rotary_dim % 2 or self.rotary_dim < 2:
            what = f"head_dim={self.head_dim}" + ("" if part == 1.0 else f" with partial_rotary_factor={part}")
            raise ValueError(f"{what} is odd; rotary embedding turns pairs of coordinates")
        if kind == "longrope":
            if self.rope["original_max_position_embeddings"] < 2:
                raise ValueError("original_max_position_embeddings must be at least 2 in rope_parameters of 'longrope'")
            for name in ("short_factor", "long_factor"):
                if len(self.rope[name]) != self.rotary_dim // 2:
                    raise ValueError(
                        f"{name} has {len(self.rope[name])} entries; give one for each of {self.rotary_dim // 2} pairs"
                    )

    @property
    def rope(self) -> dict[str, Any]:
        """`rope_parameters` as a dictionary; empty for none."""
        return dict(self.rope_parameters or ())

    @property
    def rotary_dim(self) -> int:
        """Coordinates of a head that are rotated, from the first."""
        return int(self.head_dim * self.rope.get("partial_rotary_factor", 1.0))

    @property
    def switch_lengths(self) -> tuple[int, ...]:
        """Numbers of tokens beyond which a sequence is rotated by other frequencies: one for "longrope", else none."""
        return (self.rope["original_max_position_embeddings"],) if self.rope.get("rope_type") == "longrope" else ()

    @classmethod
    def from_hf(cls, config: Any) -> "DecoderConfig":
        """From a `transformers` configuration object, as `hf_config.from_hf`."""
        from jaxunlearn.models.hf_config import from_hf

        return from_hf(config)

    def to_hf(self, dtype: str = "float32") -> Any:
        """The `transformers` configuration object, as `hf_config.to_hf`."""
        from jaxunlearn.models.hf_config import to_hf

        return to_hf(self, dtype)


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and SMALLEST <= value <= LARGEST


def _plain(value: Any) -> Any:
    """`value` as something hashable."""
    if isinstance(value, Mapping):
        return tuple(sorted((key, _plain(one)) for key, one in value.items()))
    return tuple(map(_plain, value)) if isinstance(value, list) else value
