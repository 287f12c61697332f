"""The generalised Gauss-Newton matrix of the softmax NLL.

    G = (1/n) sum_t w_t J_t^T (diag(p_t) - p_t p_t^T) J_t,      J_t = d logits_t / d theta

It is positive semidefinite, equals the Fisher information of the model's own predictions, and `d.G d / 2` is the
second-order prediction of `KL(before || after)` per loss token when the parameters move by d: the natural measure of
what a step costs the retain set. The softmax Hessian `u -> p*u - p <p, u>` is applied analytically in f32.

The body of the model is linearised once, when the operator is built: every product pushes a tangent through that
linear map and pulls back through its transpose, so products in a loop never repeat the forward pass. Logits are made
chunk by chunk of places, three of their kind at a time (`losses.in_chunks`).

References: Schraudolph, Neural Computation 2002; Martens, "New insights and perspectives on the natural gradient
method", JMLR 2020.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxunlearn import losses, tree
from jaxunlearn.accumulate import accumulate
from jaxunlearn.curvature.forward_mode import check_forward_mode
from jaxunlearn.curvature.parts import Parts, parts_of, parts_of_predictor
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
        microbatch: examples per accumulation step, each linearised anew in every product; `None` takes the batch
            whole and linearises once.

    Raises:
        ForwardModeError: naming a function without a forward rule, while tracing.

    Example:
        >>> import jax.numpy as jnp
        >>> def predict(w, x):
        ...     return Predictions((x @ w)[:, None], jnp.zeros((len(x), 1), jnp.int32), jnp.ones((len(x), 1)))
        >>> G = gauss_newton(predict, jnp.zeros((1, 2)), jnp.ones((3, 1)))
        >>> G(jnp.array([[1.0, 0.0]])).tolist()  # p = (1/2, 1/2): diag(p) - p p^T = [[1/4, -1/4], [-1/4, 1/4]]
        [[0.25, -0.25]]
    """
    return _operator(parts_of_predictor(predict), params, batch, microbatch)


def gauss_newton_product(
    predict: Callable[[Params, PyTree], Predictions],
    params: Params,
    batch: PyTree,
    v: PyTree,
    *,
    microbatch: int | None = None,
) -> tuple[PyTree, Array]:
    """`(G_sum v, count)`, f32, with `G_sum` that of the loss *sum*: products of several batches add up."""
    return _product(parts_of_predictor(predict), params, batch, v, microbatch)


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
    psd: ClassVar[bool] = True

    def __call__(self, model: Model, params: Params, batch: Batch) -> LinearOperator:
        return _operator(parts_of(model, batch), params, batch, self.microbatch)

    def product(self, model: Model, params: Params, batch: Batch, v: PyTree) -> tuple[PyTree, Array]:
        """`(G_sum v, number of loss tokens)`: see `gauss_newton_product`."""
        return _product(parts_of(model, batch), params, batch, v, self.microbatch)


def _operator(parts: Parts, params: Params, batch: PyTree, microbatch: int | None) -> LinearOperator:
    once = None if microbatch else _linearised(parts, params, batch)

    def mv(v: PyTree) -> PyTree:
        gv, n = _product(parts, params, batch, v, microbatch) if once is None else (once[0](v), once[1])
        return tree.shard_like(jax.tree.map(lambda x: x / jnp.where(n > 0, n, 1.0).astype(x.dtype), gv), params)

    return LinearOperator(mv, params, psd=True)


def _product(parts: Parts, params: Params, batch: PyTree, v: PyTree, microbatch: int | None) -> tuple[PyTree, Array]:
    def one(chunk: PyTree) -> tuple[PyTree, Array]:
        linear, count = _linearised(parts, params, chunk)
        return linear(v), count

    gv, count = accumulate(one, batch, microbatch)
    return tree.shard_like(gv, params), count


def _linearised(parts: Parts, params: Params, batch: PyTree) -> tuple[Callable[[PyTree], PyTree], Array]:
    """`v -> G_sum v` with the forward pass of the body done, and the number of loss tokens."""
    check_forward_mode(lambda p: parts.body(p, batch)[0], params)
    hidden, push, weights = jax.linearize(lambda p: parts.body(p, batch), params, has_aux=True)
    pull = jax.linear_transpose(push, params)

    def product(v: PyTree) -> PyTree:
        tangent = tree.cast_like(v, params)

        def inner(p: Params, h: Array) -> Array:
            """Its gradient is `d logits^T c` with c the softmax Hessian of the logits' tangent, held constant."""

            def piece(h: Array, dh: Array, w: Array) -> Array:
                z, dz = jax.jvp(parts.head, (p, h), (tangent, dh))
                c = jax.lax.stop_gradient(softmax_hessian(z, dz, w))
                return jnp.sum(c * z)

            return losses.in_chunks(piece, parts.rows, h, push(tangent), weights)

        of_head, of_hidden = jax.grad(inner, argnums=(0, 1))(params, hidden)
        (of_body,) = pull(of_hidden)
        return jax.tree.map(lambda a, b: tree.to_vector(a) + tree.to_vector(b), of_head, of_body)

    return product, jnp.sum(weights)
