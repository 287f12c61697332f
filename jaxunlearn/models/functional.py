"""`Decoder`: the Flax decoder seen as pure functions of a plain dictionary of arrays.

Everything static (architecture, mesh, attention form, rematerialisation) lives in one frozen dataclass, so two loads
of the same configuration give equal, equally hashed models and share compiled functions. Bound methods compare by
the identity of their object, so each function of the model is a small dataclass that compares by value.

On a mesh with Explicit axes each function runs as an island of Auto axes: the compiler lays out its inside, its
arguments keep their typed shardings, and its result is typed as split over the batch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Float, Int

from jaxunlearn import taps
from jaxunlearn.models.attention import IMPLEMENTATIONS
from jaxunlearn.models.config import DecoderConfig
from jaxunlearn.models.fused_attention import require_fused
from jaxunlearn.models.quantised import check_bits
from jaxunlearn.models.segments import cut_specs, stack_sizes
from jaxunlearn.models.specs import LoRA, ParamSpec, at, nest, param_specs
from jaxunlearn.packed import PackedTokens
from jaxunlearn.sharding import DEFAULT_RULES, constrain, is_explicit, named_sharding
from jaxunlearn.types import Model, Params, examples_in

REMAT = ("dots", "full", "none")
HEAD_ROWS = 1024  # enough for a matrix product to run at full speed


@dataclass(frozen=True)
class Decoder:
    """A decoder's architecture and how it is run.

    Attributes:
        config: the architecture.
        mesh: devices its parameters live on; None for one device.
        attention: "auto" (blockwise above 512 tokens), "xla", "blockwise", or "fused" (`models.fused_attention`:
            GPUs and TPUs, first derivatives only).
        remat: what a block keeps for its backward pass: "dots" (outputs of projections), "full" (nothing but its
            input, least memory) or "none" (everything, least time).
        head_rows: most rows (examples times places, on each device) the head is applied to at once in losses and
            curvature, which bounds the logits they hold; None for all at once.
        lora: low-rank adapters among its parameters (`models.add_lora`); None for none.
        unlearning_rank: width of the unlearning layers among its parameters (`models.add_unlearning_layers`); None for
            none.
        frozen_bits: bits of the projections beside adapters (`models.quantised`); None for their own dtype.
        folder: the checkpoint it came from, whose tokenizer files `save` copies; not part of its identity.
        narrower: names and dtypes of its tensors that are narrower than others of the same stack of layers, as which
            `save` writes them again; not part of its identity.

    Raises:
        ValueError: naming an unknown `attention` or `remat`, `head_rows` below 1, or why there is no fused attention.
    """

    config: DecoderConfig
    mesh: Mesh | None = None
    attention: str = "auto"
    remat: str = "dots"
    head_rows: int | None = HEAD_ROWS
    lora: LoRA | None = None
    unlearning_rank: int | None = None
    frozen_bits: int | None = None
    folder: Path | None = field(default=None, compare=False)
    narrower: tuple[tuple[str, str], ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self):
        check_bits(self.frozen_bits)
        if self.attention not in IMPLEMENTATIONS:
            raise ValueError(f"attention={self.attention!r}; choose one of {', '.join(IMPLEMENTATIONS)}")
        if self.attention == "fused":
            require_fused(self.config, self.mesh)
        if self.remat not in REMAT:
            raise ValueError(f"remat={self.remat!r}; choose one of {', '.join(REMAT)}")
        if self.head_rows is not None and self.head_rows < 1:
            raise ValueError(f"head_rows={self.head_rows}; give at least 1 row, or None for all at once")

    def logits(self, params: Params, tokens: Int[Array, "B T"] | PackedTokens) -> Float[Array, "B T V"]:
        """Unnormalised log-probabilities of the next token at every place, nats, f32."""
        return self.run(lambda module, tokens: module(tokens), params, tokens)

    def logits_at(
        self, params: Params, tokens: Int[Array, "B T"] | PackedTokens, positions: Int[Array, "B P"]
    ) -> Float[Array, "B P V"]:
        """`logits` at `positions` only: P places instead of T pay for the head."""

        def places(module: Any, tokens: Array, positions: Array) -> Array:
            return module.head(jnp.take_along_axis(module.hidden(tokens), positions[..., None], axis=1))

        return self.run(places, params, tokens, positions)

    def hidden(
        self, params: Params, tokens: Int[Array, "B T"] | PackedTokens, layer: int | None = None
    ) -> Float[Array, "B T D"]:
        """Residual stream after `layer` blocks, 0 to L; None: the normalised input of the head.

        Raises:
            ValueError: when there is no such layer.
        """
        L = self.config.num_hidden_layers
        if layer is not None and not 0 <= layer <= L:
            raise ValueError(f"layer={layer}; this model has layers 0 (the embedding) to {L}, or None")
        return self.run(lambda module, tokens: module.hidden(tokens, layer), params, tokens)

    def head(self, params: Params, hidden: Float[Array, "B P D"]) -> Float[Array, "B P V"]:
        """Logits of hidden states that `hidden` returned, split over the vocabulary: losses sum over it."""
        return self.run(lambda module, hidden: module.head(hidden), params, hidden, out_axes=("batch", None, "vocab"))

    def run(self, function: Callable, params: Params, *batch: Any, out_axes: tuple = ("batch", None, None)) -> Array:
        """`function(module, *batch)`; on an explicit mesh the result is typed as split by `out_axes`."""
        mesh = _explicit_mesh(params)
        if mesh is None:
            return function(_merge(self, self.mesh, params), *batch)
        sizes = {"batch": examples_in(batch), "vocab": self.config.vocab_size}
        shape = tuple(sizes.get(axis, 1) for axis in out_axes)
        out = named_sharding(mesh, out_axes, shape)
        island = jax.sharding.auto_axes(
            lambda params, *batch: function(_merge(self, mesh, params), *batch), out_sharding=out, axes=mesh.axis_names
        )
        return island(params, *batch)


@dataclass(frozen=True)
class _Function:
    """One function of a decoder, equal to the same function of an equal decoder."""

    decoder: Decoder
    name: str

    def __call__(self, params: Params, *args: Any, **kwargs: Any) -> Array:
        return getattr(self.decoder, self.name)(params, *args, **kwargs)


def as_model(decoder: Decoder) -> Model:
    """The decoder as the `Model` that the rest of the library takes.

    Example:
        >>> config = DecoderConfig(vocab_size=32, hidden_size=16, num_attention_heads=4, num_hidden_layers=2)
        >>> as_model(Decoder(config)) == as_model(Decoder(config))
        True
    """
    functions = {name: _Function(decoder, name) for name in ("logits", "hidden", "logits_at", "head")}
    rows = decoder.head_rows
    if rows is not None and decoder.mesh is not None:
        rows *= math.prod(decoder.mesh.shape.get(axis, 1) for axis in DEFAULT_RULES.batch)
    return Model(**functions, head_rows=rows, source=decoder, packs=True)


@lru_cache(maxsize=64)
def _graph(decoder: Decoder, mesh: Mesh | AbstractMesh | None, specs: tuple[ParamSpec, ...]) -> Any:
    from flax import nnx

    from jaxunlearn.models.decoder import DecoderModule

    leaves = {spec.path: jax.ShapeDtypeStruct(spec.shape, jnp.float32) for spec in specs}
    scale = 0.0 if decoder.lora is None else decoder.lora.scale
    module = DecoderModule(
        decoder.config, leaves, mesh=mesh, attention=decoder.attention, remat=decoder.remat, lora_scale=scale
    )
    return nnx.split(module)[0]


def _merge(decoder: Decoder, mesh: Mesh | AbstractMesh | None, params: Params) -> Any:
    from flax import nnx

    rows = param_specs(decoder.config, decoder.lora, decoder.unlearning_rank, decoder.frozen_bits)
    specs = cut_specs(rows, stack_sizes(params))
    if mesh is not None:
        # A layout constraint is its own derivative and its own transpose: constrained here, gradients and
        # Hessian-vector products come out laid out like the parameters, without anyone having to ask.
        lay_out = partial(taps.lay_out, partial(constrain, mesh=mesh))
        params = nest(specs, [lay_out(at(params, spec), spec.axes) for spec in specs])
    return nnx.merge(_graph(decoder, mesh, specs), params)


def _explicit_mesh(params: Params) -> AbstractMesh | None:
    """The mesh of parameters whose type carries an explicit sharding, else None."""
    for leaf in jax.tree.leaves(params):
        mesh = jax.typeof(leaf).sharding.mesh
        if is_explicit(mesh):
            return mesh
    return None
