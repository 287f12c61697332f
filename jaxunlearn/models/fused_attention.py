"""Fused attention: a kernel of the device, for passes of first order only.

A fused kernel (Dao et al. 2022, "FlashAttention") keeps scores on the chip and has a hand-written backward pass, which
makes it the quickest form for losses, gradients and everything that is made of them. On NVIDIA GPUs it is cuDNN's, on
TPUs Pallas's (`models.splash_attention`). It has no forward-mode derivative, so that any curvature product through it
is refused while tracing (`curvature.ForwardModeError` names the kernel and says what to choose instead). What a kernel
cannot express is refused when the model is made: windows that differ from layer to layer, devices that have none, and
on GPUs soft caps; and when it is traced: on GPUs dtypes of 32 bits and packed rows.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxunlearn.models.config import DecoderConfig
from jaxunlearn.models.splash_attention import splash_attention

INSTEAD = 'choose attention="auto", which is exact, runs everywhere and has every derivative'


def platform(mesh: Any) -> str:
    """Where a model on `mesh` (None for the default device) runs."""
    found = mesh.devices.flat[0].platform if isinstance(mesh, Mesh) else jax.default_backend()
    return "gpu" if found == "cuda" else found


def require_fused(config: DecoderConfig, mesh: Any) -> None:
    """Raises ValueError where a model of `config` on `mesh` (None for the default device) has no fused kernel."""
    where = platform(mesh)
    if where not in ("gpu", "tpu"):
        raise ValueError(
            f'attention="fused" is a kernel of NVIDIA GPUs and TPUs, and the devices here are {where}; {INSTEAD}'
        )
    if where == "gpu" and config.attn_logit_softcapping is not None:
        raise ValueError(
            f'attention="fused" has no soft cap on GPUs, and this model has attn_logit_softcapping='
            f"{config.attn_logit_softcapping}; {INSTEAD}"
        )
    if len(set(config.sliding_windows or ())) > 1:
        raise ValueError(
            f'attention="fused" takes one window for all layers, and this model has {config.sliding_windows}; {INSTEAD}'
        )


def fused_attention(
    q: Float[Array, "B T H d"],
    k: Float[Array, "B T K d"],
    v: Float[Array, "B T K d"],
    *,
    scale: float | None = None,
    softcap: float | None = None,
    window: Any = None,
    segments: Any = None,
    mesh: Any = None,
) -> Float[Array, "B T H d"]:
    """As `attention.causal_attention`, by the kernel of the devices of `mesh`; None for the default device.

    Raises:
        ValueError: for what the kernel cannot express, with the form to choose instead.
    """
    if not (window is None or isinstance(window, int)):
        raise ValueError(f'attention="fused" takes one window for all layers; {INSTEAD}')
    if platform(mesh) == "tpu":
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        return splash_attention(q, k, v, scale=scale, softcap=softcap, window=window, segments=segments, mesh=mesh)
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        raise ValueError(
            f'attention="fused" computes in bfloat16 or float16 on GPUs, and the model is {q.dtype}; load it with '
            f'dtype="bfloat16", or {INSTEAD}'
        )
    for what, given in (("a soft cap", softcap), ("packed rows", segments)):
        if given is not None:
            raise ValueError(f'attention="fused" cannot take {what} on GPUs; {INSTEAD}')
    behind = None if window is None else (window - 1, 0)
    return jax.nn.dot_product_attention(
        q, k, v, scale=scale, is_causal=True, local_window_size=behind, implementation="cudnn"
    )
