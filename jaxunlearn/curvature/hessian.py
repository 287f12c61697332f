"""Exact Hessian-vector products, forward over reverse.

`H v = d/de grad L(theta + e v)` at `e = 0`, by `jax.jvp` of `jax.grad`: about two gradients of time, one gradient's
memory and a little, no matrix. Forward over reverse beats the other orders in time and memory, and it needs every
primitive to have a forward rule; fused attention kernels have none.

Reference: Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 1994.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
from jaxtyping import Array, PyTree

from jaxunlearn import losses, tree
from jaxunlearn.curvature.accumulate import accumulate
from jaxunlearn.operators import LinearOperator
from jaxunlearn.types import Batch, Model, Params


def hessian(
    total: Callable[[Params, PyTree], tuple[Array, Array]],
    params: Params,
    batch: PyTree,
    *,
    microbatch: int | None = None,
) -> LinearOperator:
    """Hessian of `sum / count` where `(sum, count) = total(params, batch)` and `count` does not depend on params.

    Args:
        total: the loss as a sum over the batch and its weight.
        params: point at which the Hessian is taken; vectors are cast to its dtypes for the product.
        batch: pytree with the example axis first.
        microbatch: examples per accumulation step; `None` takes the batch whole.

    Example:
        >>> import jax.numpy as jnp
        >>> H = hessian(lambda w, x: (jnp.sum(0.5 * (x @ w) ** 2), len(x)), jnp.zeros(2), jnp.eye(2))
        >>> H(jnp.array([2.0, 4.0])).tolist()
        [1.0, 2.0]
    """

    def mv(v: PyTree) -> PyTree:
        tangent = tree.cast_like(v, params)

        def product(chunk: PyTree) -> tuple[PyTree, Array]:
            def grad(p: Params) -> tuple[PyTree, Array]:
                return jax.grad(lambda q: total(q, chunk), has_aux=True)(p)

            _, hv, count = jax.jvp(grad, (params,), (tangent,), has_aux=True)
            return tree.to_vector(hv), count

        hv, count = accumulate(product, batch, microbatch)
        return tree.shard_like(tree.scale(1.0 / count, hv), params)

    return LinearOperator(mv, params)


@dataclass(frozen=True)
class Hessian:
    """Curvature recipe: the exact Hessian of the mean NLL. Indefinite away from a minimum."""

    microbatch: int | None = None

    def __call__(self, model: Model, params: Params, batch: Batch) -> LinearOperator:
        return hessian(lambda p, b: losses.nll(model, p, b), params, batch, microbatch=self.microbatch)
