"""The lowest layers of a decoder as a smaller decoder: embedding, n blocks, the same norm and head.

It speaks the same vocabulary, knows something of language from the start, and costs n of L layers: what ULD takes for
an assistant (Ji et al., "Reversing the forget-retain objectives", NeurIPS 2024, with 8 of 32).
"""

from dataclasses import replace

import jax

from jaxunlearn.models.functional import as_model
from jaxunlearn.models.lora import decoder_of
from jaxunlearn.models.segments import stack_sizes
from jaxunlearn.types import Model, Params


def truncate_layers(model: Model, params: Params, layers: int = 8) -> tuple[Model, Params]:
    """The decoder made of the lowest `layers` layers, with the embedding, the last norm and the head.

    The slices of the layers are new arrays; the other leaves are those of `params` themselves, not copies, so that a
    step which donates its state would consume them: copy with `jax.tree.map(jnp.copy, ...)` first.

    Args:
        model: a decoder of this library, adapters or not.
        params: its parameters, layers in one stack or in several.
        layers: how many to keep, 1 to L.

    Raises:
        ValueError: when the model is not a decoder of this library, or has no so many layers.

    Example:
        >>> from jaxunlearn import models
        >>> config = models.DecoderConfig(vocab_size=32, hidden_size=16, num_attention_heads=4, num_hidden_layers=3)
        >>> model, params = models.init(config, jax.random.key(0))
        >>> small, lowest = truncate_layers(model, params, 2)
        >>> small.source.config.num_hidden_layers, lowest["layers"]["mlp"]["up_proj"]["kernel"].shape[0]
        (2, 2)
        >>> lowest["lm_head"] is params["lm_head"]
        True
    """
    decoder = decoder_of(model, "truncate_layers")
    L = decoder.config.num_hidden_layers
    if not 1 <= layers <= L:
        raise ValueError(f"truncate_layers(layers={layers}): this model has {L} layers; keep 1 to {L}")
    small = replace(decoder, config=replace(decoder.config, num_hidden_layers=layers))
    sizes = stack_sizes(params)
    if not sizes:
        return as_model(small), params | {"layers": _lowest(params["layers"], layers)}
    stacks, below = {}, 0
    for i, size in enumerate(sizes):
        if below < layers:
            stacks[str(i)] = _lowest(params["layers"][str(i)], min(size, layers - below))
        below += size
    return as_model(small), params | {"layers": stacks}


def _lowest(stack: Params, layers: int) -> Params:
    return jax.tree.map(lambda leaf: leaf[:layers], stack)
