"""One block of the decoder: attention, a feed-forward network, and norms around them.

In Llama a block is `x + attention(norm(x))` followed by `x + mlp(norm(x))` with root-mean-square norms (Zhang and
Sennrich 2019), rotary grouped-query attention (Ainslie et al. 2023) and a gated feed-forward network (Shazeer 2020,
"GLU Variants Improve Transformer"). Other families differ by switches of the configuration: where norms sit and of what
kind they are, what is added, scaled or bounded on the way. A bias is applied where the parameter table put one.

Norms and accumulations are in f32; activations keep the dtype of the embedding table.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxunlearn import taps
from jaxunlearn.models.config import DecoderConfig
from jaxunlearn.models.layer_specs import NORMS
from jaxunlearn.models.quantised import NUMBERS, dequantised
from jaxunlearn.models.rope import rotate

Rotary = tuple[Array, Array] | None
ACTIVATIONS: dict[str, Callable] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": jax.nn.gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "relu": jax.nn.relu,
}


class Part(nnx.Module):
    """A named group of parameters, or of groups."""


@dataclass(frozen=True)
class Block:
    """A block as a function of its weights.

    Attributes:
        config: the architecture.
        lora_scale: factor on the low-rank corrections of the projections that have one.
    """

    config: DecoderConfig
    lora_scale: float = 0.0

    def __call__(self, x: Array, weights: Part, rotary: Rotary, attend: Callable) -> tuple[Array, Any]:
        """The residual stream after the block, and what `attend` kept of keys and values."""
        norms, beside = NORMS[self.config.block], self.config.block in ("parallel", "shared")
        h = norm(self.config, x, weights, norms.before_attention)
        out, kept = self._attention(h, weights.self_attn, rotary, attend)
        if self.config.block == "stream":
            x = norm(self.config, x + self._added(out), weights, norms.after_attention)
            out = _unlearning(self._feed_forward(x, weights.mlp), weights)
            return norm(self.config, x + self._added(out), weights, norms.after_mlp), kept
        added = self._added(norm(self.config, out, weights, norms.after_attention))
        stream = x if beside else x + added
        h = h if self.config.block == "shared" else norm(self.config, stream, weights, norms.before_mlp)
        out = norm(self.config, self._feed_forward(h, weights.mlp), weights, norms.after_mlp)
        x = x + added if beside else stream
        return x + self._added(_unlearning(out, weights)), kept

    def _added(self, out: Array) -> Array:
        factor = self.config.residual_multiplier
        return out if factor == 1.0 else out * jnp.asarray(factor, out.dtype)

    def _attention(self, h: Array, part: Part, rotary: Rotary, attend: Callable) -> tuple[Array, Any]:
        config = self.config
        heads = (*h.shape[:2], -1, config.head_dim)
        q, k, v = self._linears(h, part.q_proj, part.k_proj, part.v_proj)
        if config.qk_norm == "width":
            q, k = norm(self.config, q, part, "q_norm"), norm(self.config, k, part, "k_norm")
        q, k, v = (y.reshape(heads) for y in (q, k, v))
        if config.qk_norm == "head":
            q, k = norm(self.config, q, part, "q_norm"), norm(self.config, k, part, "k_norm")
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        out, kept = attend(q, k, v)
        return self._linears(out.reshape(*h.shape[:2], -1), part.o_proj)[0], kept

    def _feed_forward(self, h: Array, mlp: Part) -> Array:
        activation = ACTIVATIONS[self.config.hidden_act]
        if self.config.gated_mlp:
            gate, up = self._linears(h, mlp.gate_proj, mlp.up_proj)
            return self._linears(activation(gate) * up, mlp.down_proj)[0]
        return self._linears(activation(self._linears(h, mlp.up_proj)[0]), mlp.down_proj)[0]

    def _linears(self, x: Float[Array, "... i"], *parts: Part) -> tuple[Float[Array, "... o"], ...]:
        """The projections of one input; curvature factors of the input are taken once for all of them."""
        kernels = tuple(_kernel(part, x.dtype) for part in parts)
        outs = []
        for part, kernel in zip(parts, kernels, strict=True):
            out = product(x, taps.value(kernel), 0)
            if hasattr(part, "bias"):
                out = taps.shift(out, part.bias[...])
            if hasattr(part, "lora_a"):
                out = out + self.lora_scale * _low_rank(x, part)
            outs.append(out.astype(x.dtype))
        return taps.products(x, tuple(outs), kernels)


def _kernel(part: Part, dtype: Any) -> Any:
    """The matrix of a projection, made of few bits where it is kept in those."""
    if hasattr(part, NUMBERS):
        return dequantised(part.kernel_numbers[...], part.kernel_scales[...], dtype)
    return part.kernel[...]


def norm(config: DecoderConfig, x: Array, owner: nnx.Module, name: str | None) -> Array:
    """The norm of `owner` with that name; x itself for None."""
    if name is None:
        return x
    wide = x.astype(wide_dtype(x.dtype))
    if config.norm == "layer":
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    unit = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + config.rms_norm_eps)
    if not config.norm_affine:
        return unit.astype(x.dtype)
    part = getattr(owner, name)
    if config.norm == "rms" and not config.norm_offset:
        return taps.scale(unit.astype(x.dtype), part.scale[...]).astype(x.dtype)
    # Scales near zero and biases are rounded once, with the result, as in the models that have them.
    out = taps.scale(unit, part.scale[...])
    if config.norm_offset:
        out = out + config.norm_offset * unit
    if config.norm == "layer":
        out = taps.shift(out, part.bias[...])
    return out.astype(x.dtype)


def product(x: Float[Array, "... i"], matrix: Float[Array, "_ _"], axis: int) -> Float[Array, "... o"]:
    """`x` contracted with `axis` of `matrix`, accumulated and returned in f32."""
    # As one matrix of all tokens: with batch and time apart, the weight's derivative sums over two axes, and XLA writes
    # transposed copies of the activations to bring them together.
    rows = x.reshape(-1, x.shape[-1])
    out = jax.lax.dot_general(rows, matrix, (((1,), (axis,)), ((), ())), preferred_element_type=wide_dtype(x.dtype))
    return out.reshape(*x.shape[:-1], out.shape[-1])


def _low_rank(x: Float[Array, "... i"], part: Part) -> Float[Array, "... o"]:
    """`(x A) B` of an adapter, its factors watched like any other matrix."""
    return projected(projected(x, part.lora_a[...]), part.lora_b[...])


def _unlearning(x: Float[Array, "... D"], weights: Part) -> Float[Array, "... D"]:
    """`x + gelu(x down) up` where the block has an unlearning layer, else x."""
    if not hasattr(weights, "unlearning_layer"):
        return x
    part = weights.unlearning_layer
    return x + projected(ACTIVATIONS["gelu"](projected(x, part.down[...])), part.up[...])


def projected(x: Float[Array, "... i"], matrix: Float[Array, "i o"]) -> Float[Array, "... o"]:
    """`x matrix`, watched, in the dtype of x: adapters may be kept in a wider one."""
    return taps.products(x, (product(x, taps.value(matrix).astype(x.dtype), 0).astype(x.dtype),), (matrix,))[0]


def wide_dtype(dtype: Any) -> Any:
    """The dtype in which norms, softmax and sums of a model of `dtype` are computed."""
    return jnp.promote_types(dtype, jnp.float32)
