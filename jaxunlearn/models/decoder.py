"""The decoder as a Flax module: embedding, a scan over stacked blocks, norm, head.

A block is `x + attention(norm(x))` followed by `x + mlp(norm(x))` with root-mean-square norms (Zhang and Sennrich
2019), rotary grouped-query attention (Ainslie et al. 2023) and a gated feed-forward network (Shazeer 2020, "GLU
Variants Improve Transformer"). One block is compiled and scanned over the layers; `jax.checkpoint` says what its
backward pass keeps. A bias is applied where the parameter table put one.

Norms, softmax and accumulations are in f32; activations keep the dtype of the embedding table.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Bool, Float, Int

from jaxunlearn import taps
from jaxunlearn.models.attention import causal_attention, masked_attention
from jaxunlearn.models.config import DecoderConfig
from jaxunlearn.models.rope import rotate, rotation
from jaxunlearn.sharding import constrain

BATCH_ONLY = ("batch", None, None)
POLICIES = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}
ACTIVATIONS: dict[str, Callable] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_pytorch_tanh": jax.nn.gelu,
    "relu": jax.nn.relu,
}


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


class Part(nnx.Module):
    """A named group of parameters, or of groups."""


class DecoderModule(nnx.Module):
    """The decoder, with its parameters at the paths of `param_specs(config)`, its layers in one stack or in several.

    Args:
        config: the architecture.
        leaves: an array (or shape) for each path; see `models.segments` for layers in several stacks.
        mesh: mesh for layout constraints; None on one device.
        attention: "auto", "xla" or "blockwise".
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

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T V"]:
        return self.head(self.hidden(tokens))

    def hidden(self, tokens: Int[Array, "B T"], layer: int | None = None) -> Float[Array, "B T D"]:
        """Residual stream after `layer` blocks (none above are computed); None: the normalised input of the head."""
        rotary = rotation(self.config, jnp.arange(tokens.shape[1]))

        def block(x: Array, weights: Part) -> tuple[Array, None]:
            def attend(q: Array, k: Array, v: Array) -> tuple[Array, None]:
                return causal_attention(q, k, v, self.attention), None

            return self._block(x, weights, rotary, attend)

        if self.remat != "none":
            block = jax.checkpoint(block, policy=POLICIES[self.remat], prevent_cse=False)
        x, below = self._embed(tokens), 0
        for stack in self._stacks():
            if layer is not None:
                wanted = max(layer - below, 0)
                stack = jax.tree.map(lambda leaf, n=wanted: leaf[:n], stack)
            x, _ = jax.lax.scan(block, x, stack)
            below += jax.tree.leaves(stack)[0].shape[0]
        return self._norm(x, self.norm) if layer is None else x

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
        rotary = rotation(self.config, jnp.maximum(slots - cache.padding[:, None], 0))
        mask = _visible(slots, cache)

        def block(x: Array, layer: tuple[Part, Array, Array]) -> tuple[Array, tuple[Array, Array]]:
            weights, keys, values = layer

            def attend(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, Array]]:
                grown = [
                    jax.lax.dynamic_update_slice_in_dim(old, new, cache.length, axis=1)
                    for old, new in ((keys, k), (values, v))
                ]
                return masked_attention(q, *grown, mask), tuple(grown)

            return self._block(x, weights, rotary, attend)

        layers = jax.tree.map(lambda *stacks: jnp.concatenate(stacks), *self._stacks())
        x, (keys, values) = jax.lax.scan(block, self._embed(tokens), (layers, cache.keys, cache.values))
        logits = self.head(self._norm(x[:, -1:], self.norm))[:, 0]
        return logits, cache._replace(keys=keys, values=values, length=cache.length + T)

    def head(self, x: Float[Array, "B P D"]) -> Float[Array, "B P V"]:
        """Logits in f32 from normalised hidden states."""
        tied = self.config.tie_word_embeddings
        kernel = self.embed_tokens.embedding[...] if tied else self.lm_head.kernel[...]
        layout = ("vocab", None) if tied else (None, "vocab")
        logits = _product(x, constrain(taps.value(kernel), layout, self.mesh), 1 if tied else 0)
        (logits,) = taps.products(x, (logits,), (kernel,), transposed=tied)
        return constrain(logits, BATCH_ONLY, self.mesh)

    def _stacks(self) -> list[Part]:
        """The stacks of layers, from the bottom up."""
        names = [str(i) for i in range(len(vars(self.layers))) if hasattr(self.layers, str(i))]
        return [getattr(self.layers, name) for name in names] or [self.layers]

    def _embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        # A table split along its width would be gathered whole for each look-up; split along the vocabulary it is not.
        node = self.embed_tokens.embedding[...]
        table = constrain(taps.value(node), ("vocab", None), self.mesh)
        return constrain(taps.looked_up(tokens, table[tokens], node), BATCH_ONLY, self.mesh)

    def _block(self, x: Array, weights: Part, rotary: tuple[Array, Array], attend: Callable) -> tuple[Array, Any]:
        heads = (*x.shape[:2], -1, self.config.head_dim)
        attention = weights.self_attn
        h = self._norm(x, weights.input_layernorm)
        q, k, v = (y.reshape(heads) for y in self._linears(h, attention.q_proj, attention.k_proj, attention.v_proj))
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        out, kept = attend(q, k, v)
        x = x + self._linears(out.reshape(*x.shape[:2], -1), attention.o_proj)[0]
        mlp = weights.mlp
        h = self._norm(x, weights.post_attention_layernorm)
        gate, up = self._linears(h, mlp.gate_proj, mlp.up_proj)
        out = self._linears(ACTIVATIONS[self.config.hidden_act](gate) * up, mlp.down_proj)[0]
        x = x + (_bottleneck(out, weights.unlearning_layer) if hasattr(weights, "unlearning_layer") else out)
        return constrain(x, BATCH_ONLY, self.mesh), kept

    def _linears(self, x: Float[Array, "... i"], *parts: Part) -> tuple[Float[Array, "... o"], ...]:
        """The projections of one input; curvature factors of the input are taken once for all of them."""
        kernels = tuple(part.kernel[...] for part in parts)
        outs = []
        for part, kernel in zip(parts, kernels, strict=True):
            out = _product(x, taps.value(kernel), 0)
            if hasattr(part, "bias"):
                out = taps.shift(out, part.bias[...])
            if hasattr(part, "lora_a"):
                out = out + self.lora_scale * _low_rank(x, part)
            outs.append(out.astype(x.dtype))
        return taps.products(x, tuple(outs), kernels)

    def _norm(self, x: Array, part: Part) -> Array:
        wide = x.astype(_wide(x.dtype))
        unit = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.config.rms_norm_eps)
        return taps.scale(unit.astype(x.dtype), part.scale[...]).astype(x.dtype)


def _product(x: Float[Array, "... i"], matrix: Float[Array, "_ _"], axis: int) -> Float[Array, "... o"]:
    """`x` contracted with `axis` of `matrix`, accumulated and returned in f32."""
    # As one matrix of all tokens: with batch and time apart, the weight's derivative sums over two axes, and XLA writes
    # transposed copies of the activations to bring them together.
    rows = x.reshape(-1, x.shape[-1])
    out = jax.lax.dot_general(rows, matrix, (((1,), (axis,)), ((), ())), preferred_element_type=_wide(x.dtype))
    return out.reshape(*x.shape[:-1], out.shape[-1])


def _low_rank(x: Float[Array, "... i"], part: Part) -> Float[Array, "... o"]:
    """`(x A) B` of an adapter, its factors watched like any other matrix."""
    return _narrow(_narrow(x, part.lora_a[...]), part.lora_b[...])


def _bottleneck(x: Float[Array, "... D"], part: Part) -> Float[Array, "... D"]:
    """`x + gelu(x down) up`: an unlearning layer."""
    return x + _narrow(ACTIVATIONS["gelu"](_narrow(x, part.down[...])), part.up[...])


def _narrow(x: Float[Array, "... i"], matrix: Float[Array, "i o"]) -> Float[Array, "... o"]:
    """`x matrix`, watched, in the dtype of x: adapters may be kept in a wider one."""
    return taps.products(x, (_product(x, taps.value(matrix).astype(x.dtype), 0).astype(x.dtype),), (matrix,))[0]


def _visible(slots: Int[Array, " T"], cache: Cache) -> Bool[Array, "B T S"]:
    keys = jnp.arange(cache.keys.shape[2])
    return (keys <= slots[:, None]) & (keys >= cache.padding[:, None, None])


def _wide(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)
