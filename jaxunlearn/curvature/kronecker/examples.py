"""Exact diagonals from per-example gradients, for parameters that a model uses outside of taps.

Costs one more pass over the data and, at a time, a gradient of the chosen parameters for each example of a microbatch.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxunlearn.accumulate import accumulate
from jaxunlearn.curvature.kronecker import layout, scores
from jaxunlearn.curvature.kronecker.paths import map_paths, paths_of
from jaxunlearn.curvature.kronecker.settings import Settings
from jaxunlearn.sharding.regions import explicit_mesh, replicate
from jaxunlearn.types import Batch, Key, Model, Params


def per_example_squares(
    model: Model, settings: Settings, params: Params, batch: Batch, ids: Array, key: Key, paths: list[str]
) -> dict[str, Array]:
    """`sum_b u_b^2` of the parameters at `paths`, for those that are used outside of taps."""
    leaves = dict(paths_of(params))

    def gradient(example: Batch, id: Array, draw: Array) -> dict[str, Array]:
        one = jax.tree.map(lambda x: x[None], example)

        def logits(some: dict[str, Array]) -> tuple[Array, tuple]:
            predictions = one.predict(model, map_paths(lambda path, leaf: some.get(path, leaf), params))
            return predictions.logits, (predictions.targets, predictions.weights)

        z, pullback, rest = jax.vjp(logits, {path: leaves[path] for path in paths}, has_aux=True)
        score, _ = scores.score_of(settings, z, *rest, id[None], key)
        return pullback(score(draw).astype(z.dtype))[0]

    def squares(draw: Array) -> dict[str, Array]:
        if explicit_mesh(batch) is None:
            rows = jax.vmap(gradient, in_axes=(0, 0, None))(batch, ids, draw[0])
            return {path: jnp.sum(layout.wide(g) ** 2, axis=0) for path, g in rows.items()}

        # On Explicit axes rows and parameters may be split over one mesh axis, which a stack of gradients cannot be
        # twice. One at a time, each example is seen whole by every device.
        def square(row: tuple[Batch, Array]) -> dict[str, Array]:
            example, id = jax.tree.map(lambda x: x[0], row)
            return {path: layout.wide(g) ** 2 for path, g in gradient(example, id, draw[0]).items()}

        return accumulate(square, replicate((batch, ids)), 1)

    number = scores.passes(settings, jax.eval_shape(lambda p, b: b.predict(model, p).logits, params, batch))
    return accumulate(squares, jnp.arange(number), 1)
