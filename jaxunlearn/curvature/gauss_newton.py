"""The generalised Gauss-Newton matrix of the softmax NLL.

    G = (1/n) sum_t w_t J_t^T (diag(p_t) - p_t p_t^T) J_t,      J_t = d logits_t / d theta

It is positive semidefinite, equals the Fisher information of the model's own predictions, and `d.G d / 2` is the
second-order prediction of `KL(before || after)` per loss token when the parameters move by d: the natural measure of
what a step costs the retain set. The softmax Hessian `u -> p*u - p <p, u>` is applied analytically in f32.

References: Schraudolph, Neural Computation 2002; Martens, "New insights and perspectives on the natural gradient
method", JMLR 2020.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxunlearn import tree
from jaxunlearn.curvature.accumulate import accumulate
from jaxunlearn.operators import LinearOperator
from jaxunlearn.types import Batch, Model, Params, Predictions


def gauss_newton(
    predict: Callable[[Params, PyTree], Predictions],
    params: Params,
    batch: PyTree,
    *,
    microbatch: int | None = None,
) -> LinearOperator:
    """Gauss-Newton operator of the mean NLL of `predict(params, batch)`.

    Args:
        predict: gives logits and loss weights; differentiated in both modes.
        params: point of linearisation; vectors are cast to its dtypes for the product.
        batch: pytree with the example axis first.
        microbatch: examples per accumulation step; `None` takes the batch whole.

    Example:
        >>> import jax.numpy as jnp
        >>> def predict(w, x):
        ...     return Predictions((x @ w)[:, None], jnp.zeros((len(x), 1), jnp.int32), jnp.ones((len(x), 1)))
        >>> G = gauss_newton(predict, jnp.zeros((1, 2)), jnp.ones((3, 1)))
        >>> G(jnp.array([[1.0, 0.0]])).tolist()  # p = (1/2, 1/2): diag(p) - p p^T = [[1/4, -1/4], [-1/4, 1/4]]
        [[0.25, -0.25]]
    """

    def mv(v: PyTree) -> PyTree:
        tangent = tree.cast_like(v, params)

        def product(chunk: PyTree) -> tuple[PyTree, Array]:
            def logits(p: Params) -> tuple[Array, Array]:
                predictions = predict(p, chunk)
                return predictions.logits, predictions.weights

            z, pullback, weights = jax.vjp(logits, params, has_aux=True)
            _, dz = jax.jvp(lambda p: logits(p)[0], (params,), (tangent,))
            (gv,) = pullback(softmax_hessian(z, dz, weights).astype(z.dtype))
            return tree.to_vector(gv), jnp.sum(weights)

        gv, count = accumulate(product, batch, microbatch)
        return tree.shard_like(tree.scale(1.0 / count, gv), params)

    return LinearOperator(mv, params, psd=True)


def softmax_hessian(logits: Array, u: Array, weights: Array) -> Array:
    """`w (diag(p) - p p^T) u` along the last axis, in f32 or wider."""
    wide = jnp.promote_types(logits.dtype, jnp.float32)
    p = jax.nn.softmax(logits.astype(wide), axis=-1)
    u = u.astype(wide)
    return weights[..., None] * p * (u - jnp.sum(p * u, axis=-1, keepdims=True))


@dataclass(frozen=True)
class GaussNewton:
    """Curvature recipe: the Gauss-Newton matrix of the mean NLL, the default metric of retain."""

    microbatch: int | None = None

    def __call__(self, model: Model, params: Params, batch: Batch) -> LinearOperator:
        return gauss_newton(lambda p, b: b.predict(model, p), params, batch, microbatch=self.microbatch)
