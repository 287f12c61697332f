r"""How hard a text still pulls on the weights: the exact 2-norm of its own gradient,

    || grad_theta (1/n_i) sum_t -log p_theta(y_t | y_<t) ||_2,

over all parameters, nats per token. Near zero where a text was trained on until it was known by heart. Of the gradients
as many are in memory as are taken at once, each as large as the model in f32.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxunlearn import losses, tree
from jaxunlearn.curvature.empirical_fisher import mean_losses
from jaxunlearn.data import Encoded
from jaxunlearn.evals.batching import Progress, per_example
from jaxunlearn.sharding.regions import replicate, split_rows
from jaxunlearn.types import Model, Params, TokenBatch, examples_in


def gradient_norms(
    model: Model,
    params: Params,
    encoded: Sequence[Encoded],
    *,
    at_once: int = 1,
    batch_size: int = 32,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> Float[np.ndarray, " N"]:
    """The gradient's 2-norm of each text's mean NLL.

    Args:
        model, params: the model, left as it is.
        encoded: the texts; a place counts once where its loss mask is not 0.
        at_once: gradients in memory at once.
        batch_size: texts a device call; with `at_once` it changes no number.
        mesh, progress: as in `score`.

    Example:
        >>> bigram = Model(logits=lambda params, tokens: params[tokens])
        >>> text = Encoded(np.array([0, 1], np.int32), np.array([0.0, 1.0], np.float32), None, "", None)
        >>> gradient_norms(bigram, jnp.zeros((2, 2)), [text]).round(4).tolist()  # of softmax - one-hot: (.5, -.5)
        [0.7071]
    """
    if at_once < 1:
        raise ValueError(f"at_once={at_once}: at least one gradient is taken at a time")
    measure = partial(_norms, model, at_once, params)
    columns = per_example(measure, encoded, batch_size=batch_size, mesh=mesh, progress=progress)
    return np.array([row[0] for row in columns["norm"]])


@partial(jax.jit, static_argnums=(0, 1))
def _norms(model: Model, at_once: int, params: Params, batch: TokenBatch) -> dict[str, Float[Array, "B 1"]]:
    batch = batch._replace(loss_mask=(batch.loss_mask != 0).astype(jnp.float32))
    values = mean_losses(lambda p, b: losses.example_nll(model, p, b))

    def norm(example: TokenBatch) -> Float[Array, ""]:
        gradient = jax.grad(lambda p: jnp.sum(values(p, example)[0]))(params)
        return replicate(tree.norm(tree.to_vector(gradient)))

    examples = split_rows(replicate(batch), examples_in(batch))
    return {"norm": jax.lax.map(norm, examples, batch_size=None if at_once == 1 else at_once)[:, None]}
