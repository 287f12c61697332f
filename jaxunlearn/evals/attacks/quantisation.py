r"""Does rounding the weights bring back what was forgotten? (Zhang et al. 2025, "Catastrophic failure of LLM
unlearning via quantization", arXiv 2410.16454).

A small unlearning step can vanish in the rounding, and the rounded model is then the one from before. What is done here
is round-to-nearest, symmetric, weights only: with `b` bits and the column w of a matrix that makes one output,

    s = max |w| / (2^(b-1) - 1),        w' = s round(w / s),

so the levels are -127 ... 127 for int8 and -7 ... 7 for int4: no zero point, no calibration, ties to even. With
`group=g` each run of g consecutive inputs of a column has its own s (the last run may be shorter), the usual form of
4 bits. It is neither NF4 nor GPTQ, whose levels and errors differ. The result is the rounded weights in the dtype they
had (s is f32 until then), so any model function runs on them; activations stay as they are.

Robustness is `Q = min(before / after, 1)` on a measure of memorisation over the forget set: 1 if nothing came back, as
for a model that forgot nothing. Q speaks only of models that know little before.

    quantise(params, bits=8, group=None, embeddings=False) -> params
    quantisation(model, params, forget, bits=8, group=None, ...) -> Quantisation
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxunlearn.data import Encoded
from jaxunlearn.evals.attacks.memorised import Measured, memorised
from jaxunlearn.evals.bootstrap import bootstrap
from jaxunlearn.sharding.regions import auto
from jaxunlearn.tree import shard_like
from jaxunlearn.types import Model, Params

_NOT_MATRICES = ("scale", "bias")


class Quantisation(NamedTuple):
    """What rounding brought back.

    Attributes:
        robustness: `min(before / after, 1)` of the means; 1 if nothing came back.
        interval: bootstrap interval of it over texts.
        before, after: memorisation of each text, as it is and rounded.
        bits, group: the rounding.
    """

    robustness: float
    interval: tuple[float, float]
    before: Float[np.ndarray, " N"]
    after: Float[np.ndarray, " N"]
    bits: int
    group: int | None


def quantise(
    params: Params,
    *,
    bits: int = 8,
    group: int | None = None,
    embeddings: bool = False,
    where: Callable[[tuple[str, ...], Array], bool] | None = None,
) -> Params:
    """The parameters with their matrices rounded to `bits` bits; a pure function, works under `jit` and on any mesh.

    Matrices are leaves [..., inputs, outputs] of two dimensions or more whose name is neither "scale" nor "bias", which
    with stacked layers have two dimensions too. A table of embeddings (a leaf named "embedding", [V, D]) is left alone
    unless `embeddings`; then each token's row has its own s, which also serves the head that is tied to it.

    Args:
        params: any pytree of arrays.
        bits: 2 to 8.
        group: inputs that share a scale; None for all inputs of an output.
        embeddings: round the embedding table as well.
        where: `(path, leaf) -> bool` says which leaves are rounded instead; of those named "embedding" the rows.

    Errors:
        ValueError: bits or group out of range, a leaf chosen that is no matrix.

    Example:
        >>> quantise({"kernel": jnp.array([[7.0, 4.1], [0.6, 14.0]])}, bits=4)["kernel"].tolist()
        [[7.0, 4.0], [1.0, 14.0]]
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits={bits}: round to 2 to 8 bits")
    if group is not None and group < 1:
        raise ValueError(f"group={group}: at least one input shares a scale; leave it out for one scale an output")

    def chosen(path: tuple[str, ...], leaf: Array) -> bool:
        name = path[-1] if path else ""
        return leaf.ndim >= 2 and name not in _NOT_MATRICES and (embeddings or name != "embedding")

    def rounded(path: tuple, leaf: Array) -> Array:
        names = tuple(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
        if not (where or chosen)(names, leaf):
            return leaf
        if leaf.ndim < 2:
            raise ValueError(
                f"{'/'.join(names)} has shape {leaf.shape}: only matrices [..., inputs, outputs] are rounded"
            )
        rows = bool(names) and names[-1] == "embedding"
        return _round(leaf, bits, group, axis=-1 if rows else -2).astype(leaf.dtype)

    def all_rounded(params: Params) -> Params:
        return jax.tree_util.tree_map_with_path(rounded, params)

    return shard_like(auto(all_rounded, params, like=params), params)


def _round(w: Float[Array, "... i o"], bits: int, group: int | None, axis: int) -> Float[Array, "... i o"]:
    levels = 2 ** (bits - 1) - 1
    wide = w.astype(jnp.float32)
    n = wide.shape[axis]
    if group is None or group >= n:
        return _nearest(wide, jnp.max(jnp.abs(wide), axis=axis, keepdims=True), levels)
    # The last group is filled up with zeros, which change no maximum.
    padding = [(0, 0)] * wide.ndim
    padding[axis] = (0, -n % group)
    full = jnp.moveaxis(jnp.pad(wide, padding), axis, -1)
    groups = full.reshape(*full.shape[:-1], -1, group)
    groups = _nearest(groups, jnp.max(jnp.abs(groups), axis=-1, keepdims=True), levels)
    return jnp.moveaxis(groups.reshape(full.shape)[..., :n], -1, axis)


def _nearest(w: Array, largest: Array, levels: int) -> Array:
    scale = jnp.where(largest > 0, largest, 1.0) / levels
    return jnp.round(w / scale) * scale


def quantisation(
    model: Model,
    params: Params,
    forget: Sequence[Encoded],
    *,
    bits: int = 8,
    group: int | None = None,
    embeddings: bool = False,
    metric: Measured = "probability",
    seed: int = 0,
    **options: Any,
) -> Quantisation:
    """Rounds an unlearned model and measures what of the forget set came back.

    Args:
        model, params: the unlearned model; its parameters are left as they are.
        forget: what was to be forgotten.
        bits, group, embeddings: see `quantise`.
        metric: what is compared, see `attacks.memorised`.
        seed: of the bootstrap.
        options: `batch_size`, `mesh`, `progress` of `score`.

    Example:
        >>> bigram = Model(logits=lambda params, tokens: params[tokens])
        >>> text = Encoded(np.array([0, 1], np.int32), np.array([0.0, 1.0]), None, "", None)
        >>> pushed_down_a_little = jnp.array([[5.0, 4.0], [5.0, 7.0]])
        >>> found = quantisation(bigram, pushed_down_a_little, [text], bits=2)  # the levels of a column are -1, 0, 1
        >>> found.before.round(3).tolist(), found.after.round(3).tolist(), round(found.robustness, 3)
        ([0.269], [0.881], 0.305)
    """
    rounded = jax.jit(lambda p: quantise(p, bits=bits, group=group, embeddings=embeddings))(params)
    before, after = (memorised(model, p, forget, metric, **options) for p in (params, rounded))

    def ratio(draws: Float[np.ndarray, "R N 2"]) -> Float[np.ndarray, " R"]:
        return robustness(*np.moveaxis(draws.mean(axis=1), -1, 0))

    pairs = np.stack([before, after], axis=1)
    return Quantisation(float(ratio(pairs[None])[0]), bootstrap(ratio, pairs, seed=seed), before, after, bits, group)


def robustness(before: Float[np.ndarray, " R"], after: Float[np.ndarray, " R"]) -> Float[np.ndarray, " R"]:
    """`min(before / after, 1)`; 1 where nothing came back, even from 0.

    Example:
        >>> robustness(np.array([0.2, 0.8, 0.0, 0.0]), np.array([0.8, 0.2, 0.0, 0.5])).tolist()
        [0.25, 1.0, 1.0, 0.0]
    """
    return np.where(after > before, before / np.where(after > 0, after, 1.0), 1.0)
