"""The stack of layers cut in two or more, so that curvature of the upper part never touches the lower one.

Layers are stacked on a leading axis and scanned, and a scan is differentiated as a whole: were only the last layer
chosen, tangents would run through all. Cut into stacks that are scanned one after the other, the lower ones are
ordinary forward passes, and nothing is pushed through them or pulled back to them:

    params = models.split_layers(params, (7, 1))
    last, chosen = curvature.subset(model, params, ("layers", "1"))      # the last of eight blocks
    H = curvature.Hessian()(last, chosen, batch)

A decoder takes parameters in either form; `join_layers` undoes the cut.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxunlearn.models.specs import ParamSpec
from jaxunlearn.types import Params


def split_layers(params: Params, sizes: Sequence[int]) -> Params:
    """`params` with `layers` cut into stacks "0", "1", ... of `sizes` layers, from the bottom up.

    Raises:
        ValueError: when the sizes are not positive, or do not add up to the number of layers.

    Example:
        >>> params = {"layers": {"w": jnp.arange(3.0)}, "norm": jnp.ones(1)}
        >>> split_layers(params, (2, 1))["layers"]["1"]["w"].tolist()
        [2.0]
    """
    layers = join_layers(params)["layers"]
    number = jax.tree.leaves(layers)[0].shape[0]
    if min(sizes, default=0) < 1 or sum(sizes) != number:
        raise ValueError(f"sizes={tuple(sizes)}: give the layers of each stack, 1 or more, {number} in all")
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    cuts = zip(ends, sizes, strict=True)
    stacks = [jax.tree.map(lambda x, a=end - size, b=end: x[a:b], layers) for end, size in cuts]
    return params | {"layers": {str(i): stack for i, stack in enumerate(stacks)}}


def join_layers(params: Params) -> Params:
    """`params` with its layers in one stack; as they are if they never were cut.

    Example:
        >>> params = {"layers": {"w": jnp.arange(3.0)}}
        >>> join_layers(split_layers(params, (1, 2)))["layers"]["w"].tolist()
        [0.0, 1.0, 2.0]
    """
    if not stack_sizes(params):
        return params
    stacks = [params["layers"][str(i)] for i in range(len(params["layers"]))]
    return params | {"layers": jax.tree.map(lambda *parts: jnp.concatenate(parts), *stacks)}


def stack_sizes(params: Params) -> tuple[int, ...]:
    """Layers of each stack; empty for parameters that are not cut."""
    layers = params.get("layers", {})
    if "0" not in layers:
        return ()
    return tuple(jax.tree.leaves(layers[str(i)])[0].shape[0] for i in range(len(layers)))


def cut_specs(specs: tuple[ParamSpec, ...], sizes: tuple[int, ...]) -> tuple[ParamSpec, ...]:
    """Where the parameters of `specs` sit, and their shapes, once the layers are cut; `sizes` empty changes nothing."""
    rows = []
    for spec in specs:
        if not spec.stacked or not sizes:
            rows.append(spec)
            continue
        for i, size in enumerate(sizes):
            rows.append(spec._replace(path=("layers", str(i), *spec.path[1:]), shape=(size, *spec.shape[1:])))
    return tuple(rows)
