"""The gradient and the factors of one backward pass.

A factor pass has almost all that a gradient needs: it goes forward, and it carries gradients back to the output of
every matrix. With the labels of the data both come from the same cotangents, so that an optimiser pays, beyond its
gradient, for the products `a^T a` and `g^T g` only.

References: Martens and Grosse, ICML 2015; on what the labels of the data change, Kunstner, Balles and Hennig,
"Limitations of the empirical Fisher approximation for natural gradient descent", NeurIPS 2019.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn import losses, tree
from jaxunlearn.accumulate import accumulate
from jaxunlearn.curvature.kronecker import layout
from jaxunlearn.curvature.kronecker.examples import per_example_squares
from jaxunlearn.curvature.kronecker.factors import KroneckerFactors, Sums, watched
from jaxunlearn.curvature.kronecker.paths import map_paths
from jaxunlearn.curvature.kronecker.settings import Settings
from jaxunlearn.curvature.kronecker.table import make_table
from jaxunlearn.taps import Tapped
from jaxunlearn.types import Batch, Model, Params


def gradient_and_factors(
    model: Model, params: Params, batch: Batch, settings: Settings | None = None
) -> tuple[Float[Array, ""], Params, KroneckerFactors]:
    """The mean NLL, its gradient, and the factors of the empirical Fisher, from one backward pass.

    Args:
        model: a model that uses its matrices through `jaxunlearn.taps`.
        params: its parameters.
        batch: examples whose loss tokens weigh 0 or 1, as a mask has it. (Other weights enter the factors squared.)
        settings: `KFAC(fisher="empirical", ...)` or `Settings(...)` likewise; that by default.

    Returns:
        The loss, nats per loss token; its gradient, f32, laid out like the parameters; and what `kronecker_factors`
        returns for the same settings.

    Raises:
        ValueError: for the true Fisher, whose labels are not those of the data.

    Example:
        >>> from jaxunlearn import taps
        >>> from jaxunlearn.types import LabelledBatch
        >>> model = Model(logits=lambda w, x: taps.matmul(x, w))
        >>> batch = LabelledBatch(jnp.array([[1.0, 2.0]]), jnp.array([0]))
        >>> loss, gradient, factors = gradient_and_factors(model, jnp.zeros((2, 2)), batch)
        >>> gradient.tolist()
        [[-0.5, 0.5], [-1.0, 1.0]]
        >>> A, G = factors.sides(factors.table.rows[0])[0]
        >>> A.tolist()
        [[1.0, 2.0], [2.0, 4.0]]
    """
    settings = Settings(fisher="empirical") if settings is None else settings
    if settings.fisher != "empirical":
        raise ValueError(
            f"gradient_and_factors(settings={settings}): one backward pass has the labels of the data; use "
            'fisher="empirical", or kronecker_factors beside jax.grad'
        )
    return _collect(model, settings, layout.concrete(params), params, batch)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _collect(
    model: Model, settings: Settings, places: layout.Places, params: Params, batch: Batch
) -> tuple[Array, Params, KroneckerFactors]:
    limits = {"only": settings.only, "diagonal": settings.diagonal, "max_side": settings.max_side}
    table = make_table(model, params, batch, **limits)
    examples = [row.path for row in table.rows if row.block == "diagonal" and not row.terms]

    def chunk(rows: tuple[Batch, Array]) -> tuple[Array, Array, Params, Sums]:
        part, ids = rows
        nodes = watched(table, params, part, model, None)

        def total(params: Params, dummies: Sums) -> tuple[Array, Array]:
            def tap(path: str, leaf: Array) -> Array | Tapped:
                return Tapped(leaf, dummies[path]) if path in dummies else leaf

            predictions = part.predict(model, map_paths(tap, params))
            return jnp.sum(predictions.weights * losses.token_nll(predictions)), jnp.sum(predictions.weights)

        dummies = {path: node.taps for path, node in nodes.items()}
        (value, count), (grad, sums) = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(params, dummies)
        if examples:
            squares = per_example_squares(model, settings, params, part, ids, jax.random.key(0), examples)
            sums |= {path: {"examples": {"S": S}} for path, S in squares.items()}
        return value, count, tree.to_vector(grad), sums

    value, count, grad, sums = accumulate(chunk, (batch, layout.row_ids(batch)), settings.microbatch)
    share = 1.0 / jnp.where(count > 0, count, 1.0)
    factors = KroneckerFactors(settings, table, layout.constrain(sums, table, dict(places)), count)
    return share * value, tree.shard_like(tree.scale(share, grad), params), factors
