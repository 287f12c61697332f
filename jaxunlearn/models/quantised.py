r"""Frozen weights in 8 or 4 bits, so that adapters of a large model are trained where the model itself would not fit.

With adapters only A and B of each projection are trained (`models.lora`); the matrix W beside them never changes and
need not be kept in 16 bits (Dettmers et al. 2023, "QLoRA"). Here W is rounded to nearest, symmetrically: with levels
`n = 2^(b-1) - 1` and the inputs that share a scale s of an output,

    s = max |w| / n,        q = round(w / s),        W' = s q.

For 8 bits all inputs of an output share one; for 4 bits each run of 128 does (all of them, where 128 does not divide
their number). It is the grid of `evals.attacks.quantise`. W' is made inside the scanned and rematerialised body, so
that one layer at a time is in 16 or 32 bits, and gradients and curvature products of any order flow through it to
whatever lies below. Two numbers of 4 bits share a byte, those of rows 2k and 2k + 1.

What is trained corrects W', and is added to W itself when it is saved (`models.save` reads W once more, layer by
layer), so that the folder has the form it had. Measurements of a run are of W' with the adapters.

    model, params = models.load(folder, freeze_bits=4)
    model, params = models.add_lora(model, params, models.LoRA(rank=8), key)
"""

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxunlearn.models.layer_specs import PROJECTIONS, ParamSpec
from jaxunlearn.sharding.regions import auto

BITS = (8, 4)
GROUP = 128
NUMBERS, SCALES = "kernel_numbers", "kernel_scales"
DTYPES = {8: jnp.int8, 4: jnp.uint8}


def check_bits(bits: int | None, name: str = "freeze_bits=") -> None:
    """Raises ValueError for a number of bits that weights are not frozen in, given as `name`."""
    if bits is not None and bits not in BITS:
        raise ValueError(f"{name}{bits}: weights are frozen in 8 or 4 bits; leave it out to keep them as they are")


def freezes(spec: ParamSpec) -> bool:
    """Whether a parameter is the matrix of a projection."""
    return spec.path[-1] == "kernel" and spec.path[-2] in PROJECTIONS


def frozen_specs(spec: ParamSpec, bits: int) -> tuple[ParamSpec, ParamSpec]:
    """The rows of the parameter table that stand for a projection: its numbers and its scales.

    Raises:
        ValueError: for an odd number of inputs in 4 bits.
    """
    L, i, o = spec.shape
    if bits == 4 and i % 2:
        name = "/".join(spec.path)
        raise ValueError(f"freeze_bits=4: {name} has {i} inputs, and two share a byte; use freeze_bits=8")
    rows = spec._replace(path=(*spec.path[:-1], NUMBERS), shape=(L, i if bits == 8 else i // 2, o), fused=None)
    scales = ("layers", None, spec.axes[2])
    return rows, rows._replace(path=(*spec.path[:-1], SCALES), shape=(L, _groups(i, bits), o), axes=scales)


def dtype_of(spec: ParamSpec, bits: int | None, plain: Any) -> Any:
    """The element type of a row of the table: of numbers, of scales, or `plain`."""
    return {NUMBERS: DTYPES.get(bits), SCALES: jnp.float32}.get(spec.path[-1], plain)


def quantise(kernel: Float[Array, "L i o"], bits: int) -> tuple[Int[Array, "L j o"], Float[Array, "L g o"]]:
    """Numbers and scales of a stack of matrices.

    Example:
        >>> numbers, scales = quantise(jnp.array([[[7.0], [-3.4]]]), 4)
        >>> dequantised(numbers[0], scales[0], jnp.float32).tolist(), numbers.shape
        ([[7.0], [-3.0]], (1, 1, 1))
    """
    L, i, o = kernel.shape
    groups, levels = _groups(i, bits), 2 ** (bits - 1) - 1
    wide = kernel.astype(jnp.float32).reshape(L, groups, -1, o)
    largest = jnp.max(jnp.abs(wide), axis=2, keepdims=True)
    scales = jnp.where(largest > 0, largest, 1.0) / levels
    numbers = jnp.round(wide / scales).astype(jnp.int8).reshape(L, i, o)
    if bits == 4:
        low, high = (jax.lax.bitcast_convert_type(half, jnp.uint8) for half in (numbers[:, ::2], numbers[:, 1::2]))
        numbers = (low & 15) | (high << 4)
    return numbers, scales[:, :, 0]


def dequantised(numbers: Int[Array, "j o"], scales: Float[Array, "g o"], dtype: Any) -> Float[Array, "i o"]:
    """The matrix `s q` of one layer."""
    if numbers.dtype == jnp.uint8:
        bits = jax.lax.bitcast_convert_type(jnp.stack([numbers << 4, numbers], axis=1), jnp.int8)
        numbers = (bits >> 4).reshape(-1, numbers.shape[1])  # an arithmetic shift keeps the sign
    i, o = numbers.shape
    wide = numbers.astype(jnp.float32).reshape(len(scales), -1, o) * scales[:, None]
    return wide.reshape(i, o).astype(dtype)


def frozen(
    spec: ParamSpec, layers: Iterable[Float[Array, "1 i o"]], bits: int, places: tuple[Any, Any] | None
) -> list[Array]:
    """`quantise` of a projection whose layers come one at a time, so that the others need not be there in full.

    Args:
        spec: the projection.
        layers: its matrix in each layer, from the first.
        bits: 8 or 4.
        places: shardings of numbers and scales; None for the default device.

    Returns:
        Numbers and scales of all layers.
    """
    made = tuple(
        jnp.zeros(row.shape, dtype_of(row, bits, None), device=place)
        for row, place in zip(frozen_specs(spec, bits), places or (None, None), strict=True)
    )
    write = _writer(bits, places)
    for number, layer in enumerate(layers):
        made = jax.block_until_ready(write(made, layer, number))
        del layer  # before the next one is read
    return list(made)


@lru_cache
def _writer(bits: int, places: tuple[Any, Any] | None) -> Callable[..., tuple[Array, Array]]:
    """A program that puts a layer, rounded, into the stacks of numbers and scales."""

    def write(made: tuple[Array, Array], layer: Array, number: Array) -> tuple[Array, ...]:
        pairs = zip(made, quantise(layer, bits), strict=True)
        return tuple(jax.lax.dynamic_update_slice_in_dim(stack, one, number, 0) for stack, one in pairs)

    def laid_out(made: tuple[Array, Array], layer: Array, number: Array) -> tuple[Array, ...]:
        return auto(write, made, layer, number, like=made)

    return jax.jit(laid_out, donate_argnums=0, out_shardings=places)


def _groups(inputs: int, bits: int) -> int:
    return inputs // GROUP if bits == 4 and inputs % GROUP == 0 else 1
