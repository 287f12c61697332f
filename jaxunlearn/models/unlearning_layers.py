"""Unlearning layers (EUL): a bottleneck behind each feed-forward network, the only thing that is trained.

With y the output of the feed-forward network of a layer, the residual stream takes up

    y + gelu(y D) U,        D [D, r],  U [r, D],

instead of y. D is drawn at random and U starts at zero, so that new layers change nothing. They are ordinary leaves of
the parameter tree, stacked like all others and scanned with them:

    model, params = models.add_unlearning_layers(model, params, 16, jax.random.key(0))
    state = ju.init(methods.eul(), model, params, key=key, trainable=models.is_unlearning_layer)

Each request trains layers of its own from the original model. Several are fused without their data: for each matrix,
the map that comes closest to all of them on the inputs X_i [N_i, i] that each saw on its own forget set,

    W = argmin sum_i || X_i W - X_i W_i ||^2 = (sum_i X_i^T X_i)^-1 sum_i X_i^T X_i W_i,

for which the Gram matrices `X_i^T X_i` are enough (`input_grams`). The layer as a whole is not linear, so this is exact
for each matrix by itself, given its inputs.

After Chen and Yang, "Unlearn what you want to forget: efficient unlearning for LLMs", EMNLP 2023, a reconstruction; the
closed form is that of Jin et al., "Dataless knowledge fusion by merging weights of language models", ICLR 2023.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn.curvature.kronecker import Settings, kronecker_factors
from jaxunlearn.models.functional import as_model
from jaxunlearn.models.lora import decoder_of, drawn, put
from jaxunlearn.models.segments import cut_specs, stack_sizes
from jaxunlearn.models.specs import UNLEARNING, param_specs
from jaxunlearn.sharding.regions import auto
from jaxunlearn.types import Batch, Key, Model, Params

Layers = dict[str, Array]


def is_unlearning_layer(path: str) -> bool:
    """Whether a parameter path is that of an unlearning layer: the `trainable` argument for `methods.eul`.

    Example:
        >>> is_unlearning_layer("layers/unlearning_layer/down"), is_unlearning_layer("layers/mlp/down_proj/kernel")
        (True, False)
    """
    return UNLEARNING in path.split("/")


def add_unlearning_layers(
    model: Model, params: Params, rank: int, key: Key, *, dtype: Any = jnp.float32
) -> tuple[Model, Params]:
    """The decoder with unlearning layers that change nothing yet; the other leaves are shared, not copied.

    Args:
        model: a decoder from `models.load` or `models.init`, without such layers.
        params: its parameters, layers in one stack or in several.
        rank: r, the width of the bottleneck.
        key: for the D matrices, uniform in `+-1 / sqrt(i)`.
        dtype: of the new layers; f32 keeps updates that bfloat16 would round away.

    Raises:
        ValueError: for a rank below 1, or a model that is no decoder of this library or has such layers already.

    Example:
        >>> import jax
        >>> from jaxunlearn import models
        >>> config = models.DecoderConfig(vocab_size=32, hidden_size=16, num_attention_heads=4, num_hidden_layers=2)
        >>> model, params = models.init(config, jax.random.key(0))
        >>> forgetful, longer = add_unlearning_layers(model, params, 3, jax.random.key(1))
        >>> jax.tree.map(jnp.shape, longer["layers"]["unlearning_layer"])
        {'down': (2, 16, 3), 'up': (2, 3, 16)}
    """
    decoder = decoder_of(model, "add_unlearning_layers")
    if rank < 1:
        raise ValueError(f"add_unlearning_layers(rank={rank}): give at least 1")
    if decoder.unlearning_rank is not None:
        raise ValueError("this model has unlearning layers already; add them to the original model for each request")
    decoder = replace(decoder, unlearning_rank=rank)
    rows = tuple(spec for spec in param_specs(decoder.config, None, rank) if is_unlearning_layer("/".join(spec.path)))
    rows = cut_specs(rows, stack_sizes(params))
    return as_model(decoder), put(params, drawn(decoder, rows, key, dtype))


def input_grams(model: Model, params: Params, batch: Batch, *, microbatch: int | None = None) -> Layers:
    """`X^T X` of the inputs of each matrix of the unlearning layers, over the places of `batch` that reach its loss.

    They come out of one backward pass (`jaxunlearn.taps`). Take them after training: a place counts for D only where
    U passes a gradient on to it. Gram matrices of several batches add.

    Args:
        model: a decoder with unlearning layers.
        params: all its parameters, as `state.whole()` gives them.
        batch: the forget examples of the request.
        microbatch: examples at a time.

    Returns:
        By path, [L, D, D] for a down matrix and [L, r, r] for an up matrix, f32 (float64 for such parameters).

    Raises:
        ValueError: for a model without unlearning layers.

    Example:
        >>> import jax
        >>> from jaxunlearn import models
        >>> from jaxunlearn.types import TokenBatch
        >>> config = models.DecoderConfig(vocab_size=32, hidden_size=16, num_attention_heads=4, num_hidden_layers=2)
        >>> model, params = add_unlearning_layers(*models.init(config, jax.random.key(0)), 3, jax.random.key(1))
        >>> batch = TokenBatch(jnp.array([[5, 6, 7]]), jnp.array([[0.0, 1.0, 1.0]]))
        >>> jax.tree.map(jnp.shape, jax.eval_shape(lambda p, b: input_grams(model, p, b), params, batch))
        {'layers/unlearning_layer/down': (2, 16, 16), 'layers/unlearning_layer/up': (2, 3, 3)}
    """
    decoder = decoder_of(model, "input_grams")
    if decoder.unlearning_rank is None:
        raise ValueError("this model has no unlearning layers; models.add_unlearning_layers adds them")
    widest = max(decoder.config.hidden_size, decoder.unlearning_rank)
    settings = Settings(only=(f"*/{UNLEARNING}/*",), microbatch=microbatch, max_side=widest)
    sums = kronecker_factors(model, params, batch, settings).sums
    return {path: uses["matmul"]["A"] for path, uses in sums.items() if is_unlearning_layer(path)}


def fuse_unlearning_layers(layers: Sequence[Layers], grams: Sequence[Layers], *, damping: float = 1e-6) -> Layers:
    """The unlearning layers of several requests as one.

    Args:
        layers: of each request, its matrices by path: `state.params` of a state made with
            `trainable=models.is_unlearning_layer`, or what `curvature.partition` gives.
        grams: of each request, `input_grams`, on its own forget set.
        damping: added to the diagonal of each Gram matrix, in units of their mean eigenvalue. It draws what no input
            shows to the plain mean of the matrices; 0 is the bare formula, which needs more inputs than the matrix has
            rows.

    Returns:
        Matrices by path; `curvature.combine` puts them into the parameters, as `state.frozen` of any of the states.

    Raises:
        ValueError: for lists of different lengths or paths, or a negative damping.

    Example:
        >>> one, two = {"up": jnp.zeros((1, 2, 3))}, {"up": jnp.ones((1, 2, 3))}
        >>> gram = {"up": jnp.eye(2)[None]}
        >>> fuse_unlearning_layers([one, two], [gram, gram])["up"][0, 0].tolist()
        [0.5, 0.5, 0.5]
    """
    if len(layers) != len(grams) or not layers:
        raise ValueError(
            f"fuse_unlearning_layers: {len(layers)} layers and {len(grams)} grams; give one of each a request"
        )
    if any(set(one) != set(layers[0]) for one in (*layers, *grams)):
        raise ValueError("fuse_unlearning_layers: all layers and grams must have the same paths")
    if not damping >= 0:
        raise ValueError(f"fuse_unlearning_layers(damping={damping}): give at least 0")
    return {
        path: fuse_linear([one[path] for one in layers], [one[path] for one in grams], damping=damping)
        for path in layers[0]
    }


def fuse_linear(
    matrices: Sequence[Float[Array, "*stack i o"]], grams: Sequence[Float[Array, "*stack i i"]], *, damping: float = 0.0
) -> Float[Array, "*stack i o"]:
    """`(sum_i G_i)^-1 sum_i G_i W_i` for stacked matrices, `G_i + d I` in the place of `G_i`.

    d is `damping` times the mean eigenvalue of the G_i, and 1 where that is 0: matrices without inputs are averaged.

    Example:
        >>> W = [jnp.array([[1.0], [1.0]]), jnp.array([[3.0], [3.0]])]
        >>> G = [jnp.diag(jnp.array([1.0, 3.0])), jnp.diag(jnp.array([1.0, 1.0]))]
        >>> fuse_linear(W, G).tolist()  # each row weighted by how much was seen of it
        [[2.0], [1.5]]
    """
    wide = jnp.promote_types(matrices[0].dtype, jnp.float32)
    rows = grams[0].shape[-1]

    def fuse(matrices: list[Array], grams: list[Array]) -> Array:
        mean = sum(jnp.trace(gram, axis1=-2, axis2=-1) for gram in grams) / (len(grams) * rows)
        shift = jnp.where(mean > 0, damping * mean, 1.0)[..., None, None] * jnp.eye(rows, dtype=wide)
        damped = [gram + shift for gram in grams]
        seen = sum(jnp.matmul(gram, one, precision="highest") for gram, one in zip(damped, matrices, strict=True))
        return jnp.linalg.solve(sum(damped), seen)

    wider = [[x.astype(wide) for x in xs] for xs in (matrices, grams)]
    return auto(fuse, *wider, like=matrices[0]).astype(matrices[0].dtype)
