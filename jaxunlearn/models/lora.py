"""LoRA: a low-rank correction to each projection, the only thing that is trained.

A projection `x W` with W [i, o] becomes

    x W + s (x A) B,      A [i, r],  B [r, o],  s = alpha / r    (or alpha / sqrt(r), rank-stabilised),

inside the scanned and rematerialised body of the decoder. A is drawn at random and B starts at zero, so that adding
adapters changes nothing. They are ordinary leaves of the parameter tree, beside the kernel that they correct:

    model, params = models.add_lora(model, params, models.LoRA(rank=8), jax.random.key(0))
    state = ju.init(method, model, params, key=key, trainable=models.is_lora)
    ...
    models.save("forgotten", model, state.whole())       # adapters merged into the weights

References: Hu et al., "LoRA: low-rank adaptation of large language models", ICLR 2022; Kalajdzievski, "A rank
stabilization scaling factor for fine-tuning with LoRA", 2023.
"""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn.models.functional import Decoder, as_model
from jaxunlearn.models.segments import cut_specs, stack_sizes
from jaxunlearn.models.specs import PROJECTIONS, LoRA, ParamSpec, at, param_specs
from jaxunlearn.sharding import named_sharding
from jaxunlearn.types import Key, Model, Params

__all__ = ["PROJECTIONS", "LoRA", "add_lora", "is_lora", "merge_lora"]


def is_lora(path: str) -> bool:
    """Whether a parameter path is that of an adapter: the `trainable` or `select` argument for LoRA.

    Example:
        >>> is_lora("layers/mlp/up_proj/lora_a"), is_lora("layers/mlp/up_proj/kernel")
        (True, False)
    """
    return path.rsplit("/", 1)[-1] in ("lora_a", "lora_b")


def add_lora(model: Model, params: Params, lora: LoRA, key: Key, *, dtype: Any = jnp.float32) -> tuple[Model, Params]:
    """The decoder with adapters that change nothing yet; the other leaves are shared, not copied.

    Args:
        model: a decoder from `models.load` or `models.init`, without adapters.
        params: its parameters, layers in one stack or in several.
        lora: rank, scale and which projections.
        key: for the A matrices, uniform in `+-1 / sqrt(i)`.
        dtype: of the adapters. They are small, and f32 keeps updates that bfloat16 would round away.

    Raises:
        ValueError: when the model is not a decoder of this library, or has adapters already.

    Example:
        >>> from jaxunlearn import models
        >>> config = models.DecoderConfig(vocab_size=32, hidden_size=16, num_attention_heads=4, num_hidden_layers=2)
        >>> model, params = models.init(config, jax.random.key(0))
        >>> tuned, adapted = add_lora(model, params, LoRA(rank=2, targets=("q_proj",)), jax.random.key(1))
        >>> jax.tree.map(jnp.shape, adapted["layers"]["self_attn"]["q_proj"])
        {'kernel': (2, 16, 16), 'lora_a': (2, 16, 2), 'lora_b': (2, 2, 16)}
    """
    decoder = decoder_of(model, "add_lora")
    if decoder.lora is not None:
        raise ValueError("this model has LoRA adapters already; merge_lora(model, params) folds them into its weights")
    decoder = replace(decoder, lora=lora)
    return as_model(decoder), put(params, drawn(decoder, adapter_specs(decoder, params), key, dtype))


def merge_lora(model: Model, params: Params) -> tuple[Model, Params]:
    """`W + s A B` for every adapted projection, and the decoder without adapters.

    The sum is made in f32 and rounded once to the dtype of W.

    Raises:
        ValueError: when the model is not a decoder of this library, or its weights are frozen in few bits.
    """
    decoder = decoder_of(model, "merge_lora")
    if decoder.lora is None:
        return model, params
    if decoder.frozen_bits is not None:
        raise ValueError(
            f"the weights are frozen in {decoder.frozen_bits} bits, which cannot hold what adapters add; models.save "
            "adds it to the weights of the checkpoint"
        )
    plain = replace(decoder, lora=None)
    merge = jax.jit(partial(_merged, decoder.lora.scale))
    leaves, gone = {}, set()
    for spec in adapter_specs(decoder, params):
        gone.add(spec.path)
        if spec.path[-1] == "lora_a":
            part = spec.path[:-1]
            node = at(params, spec._replace(path=part))
            leaves[(*part, "kernel")] = merge(node["kernel"], node["lora_a"], node["lora_b"])
    return as_model(plain), put(without(params, gone), leaves)


def adapter_specs(decoder: Decoder, params: Params) -> tuple[ParamSpec, ...]:
    """The rows of the parameter table that are adapters, at the paths they have in `params`."""
    rows = tuple(spec for spec in param_specs(decoder.config, decoder.lora) if is_lora("/".join(spec.path)))
    return cut_specs(rows, stack_sizes(params))


def drawn(decoder: Decoder, rows: tuple[ParamSpec, ...], key: Key, dtype: Any) -> dict[tuple[str, ...], Array]:
    """New leaves for `rows`, laid out on the mesh of the decoder: zeros, or uniform in `+-1 / sqrt(i)`."""
    places = [_place(decoder, spec) for spec in rows]

    def draw(keys: Key) -> list[Array]:
        return [_drawn(spec, one, dtype) for spec, one in zip(rows, keys, strict=True)]

    leaves = jax.jit(draw, out_shardings=places)(jax.random.split(key, len(rows)))
    return {spec.path: leaf for spec, leaf in zip(rows, leaves, strict=True)}


def put(params: Params, leaves: dict[tuple[str, ...], Array]) -> Params:
    """`params` with `leaves` at their paths; neither it nor what it holds is changed."""
    out = dict(params)
    for path, leaf in leaves.items():
        node = out
        for key in path[:-1]:
            node[key] = dict(node.get(key, {}))
            node = node[key]
        node[path[-1]] = leaf
    return out


def without(params: Params, paths: set[tuple[str, ...]], here: tuple[str, ...] = ()) -> Params:
    """`params` without the leaves at `paths`."""
    return {
        key: without(value, paths, (*here, key)) if isinstance(value, dict) else value
        for key, value in params.items()
        if (*here, key) not in paths
    }


def _merged(
    scale: float, kernel: Float[Array, "L i o"], a: Float[Array, "L i r"], b: Float[Array, "L r o"]
) -> Float[Array, "L i o"]:
    wide = jnp.promote_types(kernel.dtype, jnp.float32)
    change = jax.lax.dot_general(a.astype(wide), b.astype(wide), (((2,), (1,)), ((0,), (0,))), precision="highest")
    return (kernel.astype(wide) + scale * change).astype(kernel.dtype)


def _drawn(spec: ParamSpec, key: Key, dtype: Any) -> Array:
    if spec.init == "zeros":
        return jnp.zeros(spec.shape, dtype)
    bound = 1.0 / math.sqrt(spec.shape[1])
    return jax.random.uniform(key, spec.shape, dtype, -bound, bound)


def _place(decoder: Decoder, spec: ParamSpec) -> Any:
    return None if decoder.mesh is None else named_sharding(decoder.mesh, spec.axes, spec.shape)


def decoder_of(model: Model, name: str) -> Decoder:
    """The decoder behind a model, or a ValueError in the name of the function that needs one."""
    if not isinstance(model.source, Decoder):
        raise ValueError(f"{name}() takes a decoder made by models.load or models.init; adapt other models yourself")
    return model.source
