"""LoRA that starts where forgetting happens: adapters out of the weights that matter to forget, not to keep.

With the relative importance `rho = E_f[g^2] / E_r[g^2]` of the weights of a projection, W [i, o] is split into a
low-rank part, which becomes the adapter, and a residual, which becomes the frozen base,

    W = (W - s A B) + s A B,      A B = argmin_{rank r} || (A B s - W) diag(d) ||_F,      d_o^2 = sum_i rho_io,

so that the function does not change but the trained directions are those that forget cares about most. Weighting whole
columns makes the minimum a singular value decomposition, of `W diag(d)`.

* `fila` takes `rho` from the squares of each example's gradient of W, as the Fisher information has it.
* `vila` takes the *variance* of each example's gradient, `E[g^2] - E[g]^2`, inside the subspace of adapters: of B at a
  random A, which has r rows instead of i. Away from a minimum the mean gradient is no noise, and it costs less.

References: Cha et al., "Towards robust and parameter-efficient knowledge unlearning for LLMs" (LoKU), ICLR 2025, for
`fila`; `vila` is after "Improving Fisher information estimation and efficiency for LoRA-based LLM unlearning", 2025, a
reconstruction from secondary sources.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn import losses
from jaxunlearn.curvature import SquaredGradients, over_chosen, partition
from jaxunlearn.models.functional import as_model
from jaxunlearn.models.lora import LoRA, adapter_specs, add_lora, put
from jaxunlearn.models.specs import at
from jaxunlearn.types import Batch, Key, Model, Params

FLOOR = 1e-6  # of the mean importance: what no example touches must not divide by zero


def fila(
    model: Model, params: Params, lora: LoRA, forget: Batch, retain: Batch, key: Key, *, microbatch: int = 1
) -> tuple[Model, Params]:
    """Adapters and a residual base, by the Fisher ratio of forget to retain; the function stays the same.

    Args:
        model: a decoder without adapters.
        params: its parameters.
        lora: rank, scale and which projections.
        forget, retain: examples to take the ratio on; one gradient an example.
        key: as in `vila`, where the importance depends on it; here nothing does.
        microbatch: examples whose gradients are held at a time.

    Returns:
        As `add_lora`; the weights of adapted projections are new arrays. `save` merges; `save_adapters` refuses, as
        these adapters mean nothing on the original base.
    """
    tuned, adapted = add_lora(model, params, lora, key)
    parts = {spec.path[:-1] for spec in adapter_specs(tuned.source, adapted)}
    chosen, rest = partition(params, lambda path: path.endswith("/kernel") and tuple(path.split("/")[:-1]) in parts)
    squares = jax.jit(lambda chosen, rest, batch: _squares(over_chosen(model, rest), chosen, batch, microbatch))
    weights = _weights(squares(chosen, rest, forget), squares(chosen, rest, retain))
    return _split(tuned, adapted, lora, {path.removesuffix("/kernel"): d for path, d in weights.items()})


def vila(
    model: Model, params: Params, lora: LoRA, forget: Batch, retain: Batch, key: Key, *, microbatch: int = 1
) -> tuple[Model, Params]:
    """As `fila`, by the ratio of the variances of the gradients of B, taken at the random A of `key`."""
    tuned, adapted = add_lora(model, params, lora, key)
    chosen, rest = partition(adapted, lambda path: path.endswith("/lora_b"))

    @jax.jit
    def variance(chosen: Params, rest: Params, batch: Batch) -> Params:
        over = over_chosen(tuned, rest)
        squares = _squares(over, chosen, batch, microbatch)
        means = jax.grad(lambda p: _mean_of_means(over, p, batch))(chosen)
        return {path: jnp.maximum(squares[path] - means[path].astype(jnp.float32) ** 2, 0.0) for path in chosen}

    weights = _weights(variance(chosen, rest, forget), variance(chosen, rest, retain))
    return _split(tuned, adapted, lora, {path.removesuffix("/lora_b"): d for path, d in weights.items()})


def _squares(model: Model, params: Params, batch: Batch, microbatch: int) -> Params:
    return SquaredGradients(microbatch=microbatch)(model, params, batch).entries


def _mean_of_means(model: Model, params: Params, batch: Batch) -> Array:
    sums, counts = losses.example_nll(model, params, batch)
    real = counts > 0
    return jnp.sum(jnp.where(real, sums / jnp.where(real, counts, 1.0), 0.0)) / jnp.maximum(jnp.sum(real), 1)


def _weights(forget: Params, retain: Params) -> dict[str, Float[Array, "L o"]]:
    """`d` of each projection, scaled to a largest entry of 1, which changes nothing but the range of numbers."""

    def column(f: Array, r: Array) -> Array:
        each = jnp.mean(r, axis=(1, 2), keepdims=True)
        d = jnp.sqrt(jnp.sum((f + FLOOR * jnp.mean(f)) / (r + FLOOR * each + 1e-30), axis=1))
        return d / jnp.max(d, axis=-1, keepdims=True)

    return {path: column(forget[path], retain[path]) for path in forget}


def _split(model: Model, params: Params, lora: LoRA, weights: dict[str, Array]) -> tuple[Model, Params]:
    if model.source.frozen_bits is not None:
        raise ValueError("adapters are cut out of the weights, which are frozen in few bits; load without freeze_bits")
    decoder = replace(model.source, lora=replace(lora, residual=True))
    divide = jax.jit(partial(weighted_factors, rank=lora.rank, scale=lora.scale))
    leaves = {}
    for spec in adapter_specs(decoder, params):
        if spec.path[-1] != "lora_a":
            continue
        stem = spec.path[:-1]
        node = at(params, spec._replace(path=stem))
        new = divide(node["kernel"], weights["/".join(stem)])
        for name, leaf in zip(("kernel", "lora_a", "lora_b"), new, strict=True):
            leaves[(*stem, name)] = jax.device_put(leaf.astype(node[name].dtype), node[name].sharding)
    return as_model(decoder), put(params, leaves)


def weighted_factors(
    kernel: Float[Array, "L i o"], d: Float[Array, "L o"], *, rank: int, scale: float
) -> tuple[Float[Array, "L i o"], Float[Array, "L i r"], Float[Array, "L r o"]]:
    """`(W - s A B, A, B)` with `s A B` the best approximation of W of that rank under the column weights d.

    Example:
        >>> W = jnp.array([[[3.0, 0.0], [0.0, 1.0]]])
        >>> base, a, b = weighted_factors(W, jnp.array([[0.1, 1.0]]), rank=1, scale=2.0)
        >>> bool(jnp.allclose(base, jnp.array([[3.0, 0.0], [0.0, 0.0]]), atol=1e-5))  # the second column weighs more
        True
    """
    wide = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    u, s, vt = jnp.linalg.svd(wide * d[:, None, :], full_matrices=False)
    root = jnp.sqrt(s[:, :rank] / scale)
    a = u[:, :, :rank] * root[:, None, :]
    b = root[:, :, None] * vt[:, :rank] / d[:, None, :]
    return wide - scale * jnp.matmul(a, b, precision="highest"), a, b
