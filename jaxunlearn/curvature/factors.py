"""The square root of the Gauss-Newton matrix, `G = S S^T`.

The softmax Hessian of one place has the analytic root

    diag(p) - p p^T = B B^T,       B = diag(sqrt p) - p sqrt(p)^T

(the cross terms give `-2 p p^T`, and `sqrt(p)^T sqrt(p) = 1` gives back `p p^T`), so with J the Jacobian of the logits

    S c = (1/sqrt n) sum_t sqrt(w_t) J_t^T B_t c_t,       (S^T v)_t = sqrt(w_t / n) B_t^T J_t v

are one vjp and one jvp. `S eps` is noise with covariance G at the cost of a gradient: the curvature's own noise, and a
Monte-Carlo draw for whatever is needed of G. The root of the empirical Fisher is in `empirical_fisher`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxunlearn import tree
from jaxunlearn.accumulate import chunks_of, sum_over
from jaxunlearn.curvature.forward_mode import jvp
from jaxunlearn.operators import Factor
from jaxunlearn.types import Params, Predictions


def gauss_newton_factor(
    predict: Callable[[Params, PyTree], Predictions],
    params: Params,
    batch: PyTree,
    *,
    microbatch: int | None = None,
) -> Factor:
    """`S` with `S S^T` the Gauss-Newton matrix of the mean NLL of `predict(params, batch)`.

    Dual vectors are f32 of shape [B / microbatch, microbatch, P, V]: one number a class and place, which is the whole
    memory of it; `microbatch` bounds everything else.

    Example:
        >>> import jax.numpy as jnp
        >>> def predict(w, x):
        ...     return Predictions((x @ w)[:, None], jnp.zeros((len(x), 1), jnp.int32), jnp.ones((len(x), 1)))
        >>> S = gauss_newton_factor(predict, jnp.zeros((1, 2)), jnp.ones((3, 1)))
        >>> S.operator()(jnp.array([[1.0, 0.0]])).round(4).tolist()  # [[1/4, -1/4], [-1/4, 1/4]]
        [[0.25, -0.25]]
    """
    chunks = chunks_of(batch, microbatch)

    def logits(p: Params, chunk: PyTree) -> tuple[Array, Array]:
        predictions = predict(p, chunk)
        return predictions.logits, predictions.weights

    count = sum_over(lambda chunk: jnp.sum(logits(params, chunk)[1]), chunks)
    root = jnp.sqrt(jnp.where(count > 0, count, 1.0))

    def transpose(v: PyTree) -> Array:
        tangent = tree.cast_like(v, params)

        def push(chunk: PyTree) -> Array:
            z, dz, weights = jvp(lambda p: logits(p, chunk), params, tangent, has_aux=True)
            p, u = jax.nn.softmax(_wide(z), axis=-1), _wide(dz)
            mixed = jnp.sqrt(p) * (u - jnp.sum(p * u, axis=-1, keepdims=True))
            return jnp.sqrt(weights.astype(u.dtype))[..., None] * mixed / root

        return jax.lax.map(push, chunks)

    def forward(c: Float[Array, "k b P V"]) -> PyTree:
        def pull(pair: tuple[PyTree, Array]) -> PyTree:
            z, pullback, weights = jax.vjp(lambda p: logits(p, pair[0]), params, has_aux=True)
            p = jax.nn.softmax(_wide(z), axis=-1)
            half = jnp.sqrt(p) * _wide(pair[1])
            cotangent = half - p * jnp.sum(half, axis=-1, keepdims=True)
            scale = jnp.sqrt(weights.astype(p.dtype))[..., None] / root
            (out,) = pullback((scale * cotangent).astype(z.dtype))
            return tree.to_vector(out)

        return tree.shard_like(sum_over(pull, (chunks, c)), params)

    return Factor(forward, transpose, params)


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
