"""The decoder as a Flax module: embedding, a scan over stacked blocks, norm, head.

One block is compiled and scanned over the layers; `jax.checkpoint` says what its backward pass keeps. What differs from
layer to layer, the window of attention and whether it rotates, is an array that is scanned with the weights.

Softmax and accumulations are in f32; activations keep the dtype of the embedding table.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Bool, Float, Int

from jaxunlearn import taps
from jaxunlearn.models.attention import causal_attention, in_window, masked_attention
from jaxunlearn.models.block import Block, Part, Rotary, norm, product, projected
from jaxunlearn.models.config import DecoderConfig
from jaxunlearn.models.rope import rotation
from jaxunlearn.packed import PackedTokens
from jaxunlearn.sharding import constrain

BATCH_ONLY = ("batch", None, None)
POLICIES = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}
EVERYTHING = 2**30  # a window that no sequence fills


class Cache(NamedTuple):
    """Keys and values of the tokens seen so far.

    Attributes:
        keys: rotated keys, shape [L, B, S, K, d].
        values: values, shape [L, B, S, K, d].
        length: number of slots filled.
        padding: slots to ignore at the left of each row, shape [B].
    """

    keys: Float[Array, "L B S K d"]
    values: Float[Array, "L B S K d"]
    length: Int[Array, ""]
    padding: Int[Array, " B"]


class DecoderModule(nnx.Module):
    """The decoder, with its parameters at the paths of `param_specs(config)`, its layers in one stack or in several.

    Args:
        config: the architecture.
        leaves: an array (or shape) for each path; see `models.segments` for layers in several stacks.
        mesh: mesh for layout constraints; None on one device.
        attention: "auto", "xla", "blockwise" or "fused".
        remat: what the backward pass of a block keeps: "dots" (outputs of projections), "full" (nothing but its
            input) or "none" (everything).
        lora_scale: factor on the low-rank corrections of the projections that have one.
    """

    def __init__(
        self,
        config: DecoderConfig,
        leaves: dict[tuple[str, ...], Any],
        *,
        mesh: Mesh | AbstractMesh | None = None,
        attention: str = "auto",
        remat: str = "dots",
        lora_scale: float = 0.0,
    ):
        self.config, self.mesh, self.attention, self.remat = config, mesh, attention, remat
        self.lora_scale = lora_scale
        for path, leaf in leaves.items():
            node = self
            for key in path[:-1]:
                if not hasattr(node, key):
                    setattr(node, key, Part())
                node = getattr(node, key)
            setattr(node, path[-1], nnx.Param(leaf))

    def __call__(self, tokens: Int[Array, "B T"] | PackedTokens) -> Float[Array, "B T V"]:
        return self.head(self.hidden(tokens))

    def hidden(self, tokens: Int[Array, "B T"] | PackedTokens, layer: int | None = None) -> Float[Array, "B T D"]:
        """Residual stream after `layer` blocks (none above are computed); None: the normalised input of the head."""
        tokens, segments = tokens if isinstance(tokens, PackedTokens) else (tokens, None)
        T, context = tokens.shape[1], self.config.max_position_embeddings
        if self.config.position_offset is not None and context < T:
            raise ValueError(f"examples of {T} tokens, but this model has learned {context} positions; shorten them")
        places = jnp.arange(T) if segments is None else _places(segments)
        rotary = rotation(self.config, places, T if segments is None else jnp.max(places) + 1)

        def block(x: Array, layer: tuple[Part, dict[str, Array]]) -> tuple[Array, None]:
            weights, own = layer

            def attend(q: Array, k: Array, v: Array) -> tuple[Array, None]:
                options = {**self._scores(), "window": self._window(own), "segments": segments, "mesh": self.mesh}
                return causal_attention(q, k, v, self.attention, **options), None

            return self._block(x, weights, _turned(rotary, own), attend)

        if self.remat != "none":
            block = jax.checkpoint(block, policy=POLICIES[self.remat], prevent_cse=False)
        x, below = self._embed(tokens, places), 0
        for stack in self._stacks():
            size = jax.tree.leaves(stack)[0].shape[0]
            layers = (stack, jax.tree.map(lambda leaf, a=below, n=size: leaf[a : a + n], self._per_layer()))
            if layer is not None:
                wanted = max(layer - below, 0)
                layers = jax.tree.map(lambda leaf, n=wanted: leaf[:n], layers)
            x, _ = jax.lax.scan(block, x, layers)
            below += size
        return self._last_norm(x) if layer is None else x

    def empty_cache(self, padding: Int[Array, " B"], slots: int) -> Cache:
        """A cache with room for `slots` tokens a row, of which the first `padding` are to be ignored."""
        config = self.config
        shape = (
            config.num_hidden_layers,
            padding.shape[0],
            slots,
            config.num_key_value_heads,
            config.head_dim,
        )
        zeros = jnp.zeros(shape, self.embed_tokens.embedding[...].dtype)
        axes = ("layers", "batch", None, "kv_heads", None)
        zeros = constrain(zeros, axes, self.mesh)
        return Cache(zeros, zeros, jnp.zeros((), jnp.int32), padding)

    def extend(self, tokens: Int[Array, "B T"], cache: Cache) -> tuple[Float[Array, "B V"], Cache]:
        """Logits after the last of `tokens`, which follow those in `cache`, and the cache with them added."""
        T = tokens.shape[1]
        slots = cache.length + jnp.arange(T)
        places = jnp.maximum(slots - cache.padding[:, None], 0)
        rotary = rotation(self.config, places, jnp.max(places) + 1)
        mask = _visible(slots, cache)

        def block(x: Array, layer: tuple[Part, dict[str, Array], Array, Array]) -> tuple[Array, tuple[Array, Array]]:
            weights, own, keys, values = layer
            window = self._window(own)

            def attend(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, Array]]:
                grown = [
                    jax.lax.dynamic_update_slice_in_dim(old, new, cache.length, axis=1)
                    for old, new in ((keys, k), (values, v))
                ]
                seen = mask
                if window is not None:
                    seen = mask & in_window(slots[:, None], jnp.arange(keys.shape[1]), window)
                return masked_attention(q, *grown, seen, **self._scores()), tuple(grown)

            return self._block(x, weights, _turned(rotary, own), attend)

        layers = jax.tree.map(lambda *stacks: jnp.concatenate(stacks), *self._stacks())
        layers = (layers, self._per_layer(), cache.keys, cache.values)
        x, (keys, values) = jax.lax.scan(block, self._embed(tokens, places), layers)
        logits = self.head(self._last_norm(x[:, -1:]))[:, 0]
        return logits, cache._replace(keys=keys, values=values, length=cache.length + T)

    def head(self, x: Float[Array, "B P D"]) -> Float[Array, "B P V"]:
        """Logits in f32 from normalised hidden states."""
        config = self.config
        if hasattr(self, "project_out"):
            x = projected(x, self.project_out.kernel[...])
        tied = config.tie_word_embeddings
        kernel = self.embed_tokens.embedding[...] if tied else self.lm_head.kernel[...]
        layout = ("vocab", None) if tied else (None, "vocab")
        logits = product(x, constrain(taps.value(kernel), layout, self.mesh), 1 if tied else 0)
        (logits,) = taps.products(x, (logits,), (kernel,), transposed=tied)
        if config.head_bias:
            logits = taps.shift(logits, self.lm_head.bias[...])
        if config.logits_scaling != 1.0:
            logits = logits / config.logits_scaling
        if (cap := config.final_logit_softcapping) is not None:
            logits = cap * jnp.tanh(logits / cap)
        return constrain(logits, ("batch", None, "vocab"), self.mesh)

    def _last_norm(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return norm(self.config, x, self, "norm" if self.config.final_norm else None)

    def _scores(self) -> dict[str, float | None]:
        return {"scale": self.config.attention_multiplier, "softcap": self.config.attn_logit_softcapping}

    def _per_layer(self) -> dict[str, Array]:
        """What differs from layer to layer, as arrays to scan."""
        config, own = self.config, {}
        if config.sliding_windows is not None and len(set(config.sliding_windows)) > 1:
            own["window"] = jnp.asarray([one or EVERYTHING for one in config.sliding_windows], jnp.int32)
        if config.rope_layers is not None:
            own["rotates"] = jnp.asarray(config.rope_layers)
        return own

    def _window(self, own: dict[str, Array]) -> int | Array | None:
        windows = self.config.sliding_windows
        return own["window"] if "window" in own else None if windows is None else windows[0]

    def _stacks(self) -> list[Part]:
        """The stacks of layers, from the bottom up."""
        names = [str(i) for i in range(len(vars(self.layers))) if hasattr(self.layers, str(i))]
        return [getattr(self.layers, name) for name in names] or [self.layers]

    def _block(self, x: Array, weights: Part, rotary: Rotary, attend: Callable) -> tuple[Array, Any]:
        x, kept = Block(self.config, self.lora_scale)(x, weights, rotary, attend)
        return constrain(x, BATCH_ONLY, self.mesh), kept

    def _embed(self, tokens: Int[Array, "B T"], places: Int[Array, "... T"]) -> Float[Array, "B T D"]:
        # A table split along its width would be gathered whole for each look-up; split along the vocabulary it is not.
        node, config = self.embed_tokens.embedding[...], self.config
        table = constrain(taps.value(node), ("vocab", None), self.mesh)
        x = taps.looked_up(tokens, table[tokens], node)
        if config.embedding_multiplier != 1.0:
            x = x * jnp.asarray(config.embedding_multiplier, x.dtype)
        if hasattr(self, "project_in"):
            x = projected(x, self.project_in.kernel[...])
        if config.position_offset is not None:
            node = self.embed_positions.embedding[...]
            rows = jnp.broadcast_to(places + config.position_offset, tokens.shape)
            table = constrain(taps.value(node), (None, None), self.mesh)
            x = x + taps.looked_up(rows, table[rows], node)
        return constrain(x, BATCH_ONLY, self.mesh)


def _turned(rotary: Rotary, own: dict[str, Array]) -> Rotary:
    """The rotation of one layer, by no angle where it has none."""
    if rotary is None or "rotates" not in own:
        return rotary
    return jnp.where(own["rotates"], rotary[0], 1.0), jnp.where(own["rotates"], rotary[1], 0.0)


def _places(segments: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Positions that count from the first token of each segment."""
    at = jnp.arange(segments.shape[1])
    first = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return at - jax.lax.cummax(jnp.where(first, at, 0), axis=1)


def _visible(slots: Int[Array, " T"], cache: Cache) -> Bool[Array, "B T S"]:
    keys = jnp.arange(cache.keys.shape[2])
    return (keys <= slots[:, None]) & (keys >= cache.padding[:, None, None])
