"""Exact Hessian-vector products.

`H v = d/de grad L(theta + e v)` at `e = 0`. Three ways, in units of one gradient's time:

* "forward_over_reverse": `jax.jvp` of `jax.grad`, about two gradients, one gradient's memory and a little. Beats the
  other orders of differentiation in time and memory; every primitive needs a forward rule, which fused attention lacks.
* "linearize": the gradient is linearised when the operator is built and a product replays its tangent program, 1.6 to
  1.8 gradients. It stores two to three times the residuals of a gradient (of every microbatch), and pays in a loop
  that the host drives; inside one `jit` XLA takes the primal work out of a solver's loop by itself.
* "finite_difference": two gradients and reverse mode only, relative error 1e-5 to 1e-3 in f32 (`finite_difference`).

Reference: Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 1994.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxunlearn import losses, tree
from jaxunlearn.accumulate import accumulate
from jaxunlearn.curvature.finite_difference import central_difference, require_wide
from jaxunlearn.curvature.forward_mode import check_forward_mode, jvp
from jaxunlearn.operators import LinearOperator
from jaxunlearn.types import Batch, Model, Params

Mode = Literal["forward_over_reverse", "linearize", "finite_difference"]
MODES = ("forward_over_reverse", "linearize", "finite_difference")
Total = Callable[[Params, PyTree], tuple[Array, Array]]


def hessian(
    total: Total,
    params: Params,
    batch: PyTree,
    *,
    microbatch: int | None = None,
    mode: Mode = "forward_over_reverse",
) -> LinearOperator:
    """Hessian of `sum / count` where `(sum, count) = total(params, batch)` and `count` does not depend on params.

    Args:
        total: the loss as a sum over the batch and its weight.
        params: point at which the Hessian is taken; vectors are cast to its dtypes for the product.
        batch: pytree with the example axis first.
        microbatch: examples per accumulation step; `None` takes the batch whole.
        mode: how products are taken, see the top of this file.

    Raises:
        ForwardModeError: naming a function without a forward rule, while tracing.
        ValueError: for an unknown mode, or 16-bit parameters under finite differences.

    Example:
        >>> import jax.numpy as jnp
        >>> H = hessian(lambda w, x: (jnp.sum(0.5 * (x @ w) ** 2), len(x)), jnp.zeros(2), jnp.eye(2))
        >>> H(jnp.array([2.0, 4.0])).tolist()
        [1.0, 2.0]
    """
    check_mode(mode)
    if mode == "linearize":
        product, count = _linearized(total, params, batch, microbatch)
    else:
        if mode == "finite_difference":
            require_wide(params)
        product, count = (lambda v: hessian_product(total, params, batch, v, microbatch=microbatch, mode=mode)), None

    def mv(v: PyTree) -> PyTree:
        hv, n = (product(v), count) if mode == "linearize" else product(v)
        return tree.shard_like(tree.scale(1.0 / jnp.where(n > 0, n, 1.0), hv), params)

    return LinearOperator(mv, params)


def hessian_product(
    total: Total,
    params: Params,
    batch: PyTree,
    v: PyTree,
    *,
    microbatch: int | None = None,
    mode: Mode = "forward_over_reverse",
) -> tuple[PyTree, Array]:
    """`(H_sum v, count)`, f32, with `H_sum` the Hessian of the loss *sum*: products of several batches add up.

    A single product has nothing to linearise once, so "linearize" is "forward_over_reverse" here.
    """

    def product(chunk: PyTree) -> tuple[PyTree, Array]:
        grad = _gradient(total, chunk)
        if mode == "finite_difference":
            value, count = total(params, chunk)
            return central_difference(lambda p: grad(p)[0], params, v), jnp.asarray(count, value.dtype)
        _, hv, count = jvp(grad, params, tree.cast_like(v, params), has_aux=True)
        return tree.to_vector(hv), count

    hv, count = accumulate(product, batch, microbatch)
    return tree.shard_like(hv, params), count


def check_mode(mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}; choose one of {', '.join(MODES)}")


def _gradient(total: Total, chunk: PyTree) -> Callable[[Params], tuple[PyTree, Array]]:
    def counted(p: Params) -> tuple[Array, Array]:
        value, count = total(p, chunk)
        return value, jnp.asarray(count, value.dtype)

    return jax.grad(counted, has_aux=True)


def _linearized(total: Total, params: Params, batch: PyTree, microbatch: int | None) -> tuple[Callable, Array]:
    def gradient(p: Params) -> tuple[PyTree, Array]:
        def chunk_gradient(chunk: PyTree) -> tuple[PyTree, Array]:
            grad, count = _gradient(total, chunk)(p)
            return tree.to_vector(grad), count

        return accumulate(chunk_gradient, batch, microbatch)

    check_forward_mode(lambda p: gradient(p)[0], params)
    # Under jit the primal half is one compiled program, and so is the tangent half that every product runs again.
    _, tangents, count = jax.linearize(jax.jit(gradient), params, has_aux=True)
    return (lambda v: tangents(tree.cast_like(v, params))), count


@dataclass(frozen=True)
class Hessian:
    """Curvature recipe: the exact Hessian of the mean NLL. Indefinite away from a minimum."""

    microbatch: int | None = None
    mode: Mode = "forward_over_reverse"

    def __post_init__(self):
        check_mode(self.mode)

    def __call__(self, model: Model, params: Params, batch: Batch) -> LinearOperator:
        return hessian(_nll(model), params, batch, microbatch=self.microbatch, mode=self.mode)

    def product(self, model: Model, params: Params, batch: Batch, v: PyTree) -> tuple[PyTree, Array]:
        """`(H_sum v, number of loss tokens)`: see `hessian_product`."""
        return hessian_product(_nll(model), params, batch, v, microbatch=self.microbatch, mode=self.mode)


def _nll(model: Model) -> Total:
    return lambda p, b: losses.nll(model, p, b)
