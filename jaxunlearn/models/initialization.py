"""Random parameters for a new decoder, created where they will live.

Weights are normal with the standard deviation of the configuration (0.02, as in Radford et al. 2019), norms one,
biases zero. All leaves come out of one compiled function whose outputs are laid out on the mesh, so no device ever
holds a whole large model; the values do not depend on the mesh.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from jaxunlearn.models.config import DecoderConfig
from jaxunlearn.models.functional import HEAD_ROWS, Decoder, as_model
from jaxunlearn.models.specs import ParamSpec, nest, param_specs
from jaxunlearn.sharding import check_axes, named_sharding
from jaxunlearn.types import Key, Model, Params


def init(
    config: DecoderConfig,
    key: Key,
    *,
    mesh: Mesh | None = None,
    dtype: Any = jnp.float32,
    attention: str = "auto",
    remat: str = "dots",
    head_rows: int | None = HEAD_ROWS,
) -> tuple[Model, Params]:
    """A decoder with random parameters.

    Args:
        config: the architecture.
        key: random key.
        mesh: devices to create the parameters on; None for the default device.
        dtype: element type of the parameters.
        attention: "auto" (blockwise above 512 tokens), "xla", "blockwise", or on GPUs "fused".
        remat: what a block keeps for its backward pass: "dots", "full" (least memory) or "none" (least time).
        head_rows: rows of logits that losses and curvature hold at once on each device; None for all of them.

    Returns:
        The model and its parameters, as `load` returns them.

    Example:
        >>> config = DecoderConfig(vocab_size=32, hidden_size=16, num_attention_heads=4, num_hidden_layers=2,
        ...                        intermediate_size=24)
        >>> model, params = init(config, jax.random.key(0))
        >>> model.logits(params, jnp.array([[1, 2, 3]])).shape
        (1, 3, 32)
    """
    if mesh is not None:
        check_axes(mesh, [(spec.axes, spec.shape) for spec in param_specs(config)])
    quick = _platform(mesh) == "cpu" and not isinstance(key, jax.core.Tracer)
    params = _drawer(config, mesh, jnp.dtype(dtype).name, quick)(key)
    return as_model(Decoder(config, mesh, attention, remat, head_rows)), params


@lru_cache(maxsize=16)
def _drawer(config: DecoderConfig, mesh: Mesh | None, dtype: str, quick: bool) -> Callable[[Key], Params]:
    """One compiled function a configuration, so that models of several seeds share a compilation."""
    specs = param_specs(config)

    def draw(key: Key) -> Params:
        keys = jax.random.split(key, len(specs))
        return nest(specs, [_draw(spec, k, config, dtype) for spec, k in zip(specs, keys, strict=True)])

    layout = None
    if mesh is not None:
        layout = nest(specs, [named_sharding(mesh, spec.axes, spec.shape) for spec in specs])
    # A full optimisation of many random draws takes XLA's CPU backend five times as long and runs no faster. Compiler
    # options can only be given outside of a trace, and `jax.eval_shape(init, ...)` is one.
    options = {"xla_backend_optimization_level": 1} if quick else None
    return jax.jit(draw, out_shardings=layout, compiler_options=options)


def _platform(mesh: Mesh | None) -> str:
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def _draw(spec: ParamSpec, key: Key, config: DecoderConfig, dtype: str) -> Array:
    if spec.init == "normal":
        return config.initializer_range * jax.random.normal(key, spec.shape, dtype)
    return jnp.full(spec.shape, 1.0 if spec.init == "ones" else 0.0, dtype)
