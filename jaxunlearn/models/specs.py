"""One table of parameters drives initialisation, loading, sharding and saving.

Each row says where a parameter sits in the nested dictionary a user sees, its shape with the layers stacked on a
leading axis, what each dimension is (for sharding), what it is called in a Hugging Face checkpoint and how it is laid
out there. torch stores a projection as [out, in] and computes `x W^T`; here it is [in, out] and `x W`. Some families
store several projections as one tensor, of which each is a part of the rows.
"""

import math
from dataclasses import dataclass
from typing import Any

from jaxunlearn.models.config import DecoderConfig
from jaxunlearn.models.families import FAMILIES
from jaxunlearn.models.layer_specs import NORMS, PROJECTIONS, ParamSpec, linear, norm, qk_width
from jaxunlearn.models.quantised import freezes, frozen_specs

UNLEARNING = "unlearning_layer"


@dataclass(frozen=True)
class LoRA:
    """Which projections have a low-rank correction, and of what size (see `models.lora`).

    Args:
        rank: columns of A and rows of B.
        alpha: numerator of the scale.
        targets: names of projections, of every layer.
        rank_stabilised: divide alpha by the root of the rank instead of the rank.
        residual: the base weights lack what the adapters began with, so that these make sense on no other.

    Raises:
        ValueError: naming the argument, its value and what it may be.

    Example:
        >>> LoRA(rank=8, alpha=16.0).scale
        2.0
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = PROJECTIONS
    rank_stabilised: bool = False
    residual: bool = False

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"LoRA(rank={self.rank}): give at least 1")
        if not self.alpha > 0:
            raise ValueError(f"LoRA(alpha={self.alpha}): give a positive number")
        if isinstance(self.targets, str) or not self.targets or not set(self.targets) <= set(PROJECTIONS):
            raise ValueError(f"LoRA(targets={self.targets!r}): give a tuple of names among {', '.join(PROJECTIONS)}")
        object.__setattr__(self, "targets", tuple(name for name in PROJECTIONS if name in self.targets))

    @property
    def scale(self) -> float:
        """`alpha / rank`, or `alpha / sqrt(rank)`."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


def param_specs(
    config: DecoderConfig,
    lora: LoRA | None = None,
    unlearning_rank: int | None = None,
    frozen_bits: int | None = None,
) -> tuple[ParamSpec, ...]:
    """The parameters of a decoder, in the order in which they are used; adapters follow what they correct.

    `unlearning_rank` is the width of the unlearning layers (`models.unlearning_layers`), None for none; `frozen_bits`
    that of the projections (`models.quantised`), None for matrices in their own dtype.

    Example:
        >>> config = DecoderConfig(vocab_size=32, hidden_size=16, num_attention_heads=4, num_hidden_layers=2)
        >>> spec = param_specs(config)[2]
        >>> spec.path, spec.shape, spec.hf_names[1]
        (('layers', 'self_attn', 'q_proj', 'kernel'), (2, 16, 16), 'model.layers.1.self_attn.q_proj.weight')
    """
    D, E, V = config.hidden_size, config.word_embed_proj_dim, config.vocab_size
    norms, family = NORMS[config.block], FAMILIES[config.model_type]
    table = (("vocab", "embed"), f"{family.stem('embed_tokens')}.weight")
    rows = [ParamSpec(("embed_tokens", "embedding"), (V, E), *table)]
    if E != D:
        name = f"{family.stem('project_in')}.weight"
        rows.append(ParamSpec(("project_in", "kernel"), (E, D), (None, "embed"), name, transposed=True))
    if config.position_offset is not None:
        shape = (config.max_position_embeddings + config.position_offset, D)
        name = f"{family.stem('embed_positions')}.weight"
        rows.append(ParamSpec(("embed_positions", "embedding"), shape, (None, "embed"), name))
    rows += norm(config, norms.before_attention)
    for name in PROJECTIONS[:4]:
        rows += linear(config, name)
        if config.qk_norm and name in ("q_proj", "k_proj"):
            rows += norm(config, f"{name[0]}_norm", qk_width(config, name))
    rows += norm(config, norms.after_attention)
    rows += norm(config, norms.before_mlp)
    for name in PROJECTIONS[4:] if config.gated_mlp else PROJECTIONS[5:]:
        rows += linear(config, name)
    rows += norm(config, norms.after_mlp)
    if unlearning_rank is not None:
        rows += _bottleneck(config, unlearning_rank)
    rows += norm(config, "norm" if config.final_norm else None)
    if E != D:
        name = f"{family.stem('project_out')}.weight"
        rows.append(ParamSpec(("project_out", "kernel"), (D, E), ("embed", None), name, transposed=True))
    head = family.stem("lm_head")
    if not config.tie_word_embeddings:
        rows.append(ParamSpec(("lm_head", "kernel"), (E, V), ("embed", "vocab"), f"{head}.weight", transposed=True))
    if config.head_bias:
        rows.append(ParamSpec(("lm_head", "bias"), (V,), ("vocab",), f"{head}.bias", "zeros"))
    if lora is not None:
        rows = [one for row in rows for one in (row, *_adapters(row, lora))]
    if frozen_bits is not None:
        rows = [one for row in rows for one in (frozen_specs(row, frozen_bits) if freezes(row) else (row,))]
    return tuple(rows)


def nest(specs: tuple[ParamSpec, ...], leaves: list[Any]) -> dict[str, Any]:
    """The nested dictionary with `leaves` at the paths of `specs`."""
    tree: dict[str, Any] = {}
    for spec, leaf in zip(specs, leaves, strict=True):
        node = tree
        for key in spec.path[:-1]:
            node = node.setdefault(key, {})
        node[spec.path[-1]] = leaf
    return tree


def at(params: dict[str, Any], spec: ParamSpec) -> Any:
    """The leaf of `params` that `spec` describes."""
    node = params
    for key in spec.path:
        node = node[key]
    return node


def _adapters(kernel: ParamSpec, lora: LoRA) -> list[ParamSpec]:
    """A and B of one projection. The rank is never split: it is shorter than a mesh axis is worth."""
    if kernel.path[-1] != "kernel" or kernel.path[-2] not in lora.targets:
        return []
    L, i, o = kernel.shape
    stem, name = kernel.path[:-1], kernel.hf_name.removesuffix(".weight")
    name = name if kernel.fused is None else f"{name}.{kernel.path[-2]}"
    a = ((L, i, lora.rank), ("layers", kernel.axes[1], None), f"{name}.lora_A.weight", "uniform")
    b = ((L, lora.rank, o), ("layers", None, kernel.axes[2]), f"{name}.lora_B.weight", "zeros")
    return [
        ParamSpec((*stem, leaf), *row, transposed=True, stacked=True) for leaf, row in (("lora_a", a), ("lora_b", b))
    ]


def _bottleneck(config: DecoderConfig, rank: int) -> list[ParamSpec]:
    """Down and up of the unlearning layers; no Hugging Face model has them, so that their names are ours."""
    L, D = config.num_hidden_layers, config.hidden_size
    shapes = {
        "down": ((L, D, rank), ("layers", "embed", None), "uniform"),
        "up": ((L, rank, D), ("layers", None, "embed"), "zeros"),
    }
    return [
        ParamSpec(
            ("layers", UNLEARNING, name), shape, axes, f"model.layers.{{layer}}.{UNLEARNING}.{name}", init, stacked=True
        )
        for name, (shape, axes, init) in shapes.items()
    ]
