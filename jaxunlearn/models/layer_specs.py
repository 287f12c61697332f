"""Rows of the parameter table: the norms and projections of a layer, as the switches of the configuration have them.

A family that stores several projections as one tensor (GPT-NeoX head by head, Phi-3 one below the other) has a row for
each all the same: sharding, adapters and curvature never meet the fused form, which is a matter of files.
"""

from typing import NamedTuple

from jaxunlearn.models.config import DecoderConfig
from jaxunlearn.models.families import FAMILIES
from jaxunlearn.sharding import LogicalAxes, Whole

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FUSABLE = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class Norms(NamedTuple):
    """The norms of a block, by the names of their parameters; None where there is none."""

    before_attention: str | None
    after_attention: str | None
    before_mlp: str | None
    after_mlp: str | None


NORMS = {
    "pre": Norms("input_layernorm", None, "post_attention_layernorm", None),
    "parallel": Norms("input_layernorm", None, "post_attention_layernorm", None),
    "shared": Norms("input_layernorm", None, None, None),
    "post": Norms(None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
    "stream": Norms(None, "input_layernorm", None, "post_attention_layernorm"),
    "sandwich": Norms(
        "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"
    ),
}


class Fused(NamedTuple):
    """Which rows of a stored tensor are a parameter's: of each of `groups` runs of `width` rows, `start` to `stop`."""

    groups: int
    width: int
    start: int
    stop: int


class ParamSpec(NamedTuple):
    """One parameter of the decoder.

    Attributes:
        path: keys from the root of the parameter dictionary to the leaf.
        shape: shape here; stacked layers come first.
        axes: logical name of each dimension (see `jaxunlearn.sharding.Rules`).
        hf_name: name in a checkpoint, with `{layer}` for stacked parameters.
        init: "normal", "ones", "zeros", or "uniform" for the A of an adapter.
        transposed: whether a checkpoint stores the two matrix dimensions the other way round.
        stacked: whether the leading axis counts layers.
        fused: which rows of the stored tensor it is; None for all.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    axes: LogicalAxes
    hf_name: str
    init: str = "normal"
    transposed: bool = False
    stacked: bool = False
    fused: Fused | None = None

    @property
    def hf_names(self) -> tuple[str, ...]:
        """The checkpoint tensors this parameter is made of, in the order of its layers."""
        return tuple(self.hf_name.format(layer=i) for i in range(self.shape[0])) if self.stacked else (self.hf_name,)

    @property
    def hf_shape(self) -> tuple[int, ...]:
        """Shape of each of those tensors."""
        shape = self.shape[1:] if self.stacked else self.shape
        shape = shape[::-1] if self.transposed else shape
        return shape if self.fused is None else (self.fused.groups * self.fused.width, *shape[1:])


def _projections(config: DecoderConfig) -> dict[str, tuple[str, tuple, tuple, bool]]:
    """Of each projection: the network it belongs to, what it maps from and to, and whether it has a bias."""
    embed, mlp = ("embed", config.hidden_size), ("mlp", config.intermediate_size)
    heads = ("heads", config.num_attention_heads * config.head_dim)
    kv_heads = (Whole("kv_heads", config.head_dim), config.num_key_value_heads * config.head_dim)
    bias = config.attention_bias
    return {
        "q_proj": ("self_attn", embed, heads, bias),
        "k_proj": ("self_attn", embed, kv_heads, bias),
        "v_proj": ("self_attn", embed, kv_heads, bias),
        "o_proj": ("self_attn", heads, embed, config.attention_out_bias),
        "gate_proj": ("mlp", embed, mlp, config.mlp_bias),
        "up_proj": ("mlp", embed, mlp, config.mlp_bias),
        "down_proj": ("mlp", mlp, embed, config.mlp_bias),
    }


def linear(config: DecoderConfig, name: str) -> list[ParamSpec]:
    """The kernel of one projection, and its bias if it has one."""
    part, into, out, bias = _projections(config)[name]
    path, hf = ("layers", part, name), FAMILIES[config.model_type].stem(name)
    L, fused = config.num_hidden_layers, _fused(config, name)
    shape, axes = (L, into[1], out[1]), ("layers", into[0], out[0])
    rows = [ParamSpec((*path, "kernel"), shape, axes, f"{hf}.weight", transposed=True, stacked=True, fused=fused)]
    if bias:
        row = ((*path, "bias"), (L, out[1]), ("layers", None), f"{hf}.bias", "zeros")
        rows.append(ParamSpec(*row, stacked=True, fused=fused))
    return rows


def _fused(config: DecoderConfig, name: str) -> Fused | None:
    family, sizes = FAMILIES[config.model_type], _projections(config)
    for group in FUSABLE:
        beside = [other for other in group if family.stem(other) == family.stem(name)]
        if name in beside and len(beside) > 1:
            groups = config.num_attention_heads if family.interleaved else 1
            widths = {other: sizes[other][2][1] // groups for other in beside}
            start = sum(widths[other] for other in beside[: beside.index(name)])
            return Fused(groups, sum(widths.values()), start, start + widths[name])
    return None


def qk_width(config: DecoderConfig, name: str) -> int:
    """Length of the norm of queries or keys."""
    return config.head_dim if config.qk_norm == "head" else _projections(config)[name][2][1]


def norm(config: DecoderConfig, name: str | None, width: int | None = None) -> list[ParamSpec]:
    """The parameters of one norm, of every layer unless it is the last; `width` is that of a norm of attention."""
    if name is None or not config.norm_affine:
        return []
    stem = FAMILIES[config.model_type].stem(name)
    shape: tuple[int, ...] = (width or config.hidden_size,)
    path: tuple[str, ...] = (name,) if name == "norm" else ("layers", name)
    path = path if width is None else ("layers", "self_attn", name)
    axes: LogicalAxes = (None,)
    if stacked := name != "norm":
        shape, axes = (config.num_hidden_layers, *shape), ("layers", None)
    start = "zeros" if config.norm_offset else "ones"
    rows = [ParamSpec((*path, "scale"), shape, axes, f"{stem}.weight", start, stacked=stacked)]
    if config.norm == "layer":
        rows.append(ParamSpec((*path, "bias"), shape, axes, f"{stem}.bias", "zeros", stacked=stacked))
    return rows
