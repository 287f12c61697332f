"""The sums themselves: what the backward pass of each tapped operation hands out as derivative of its dummies.

Each takes the dummies wanted (`like`, as shapes), the input of the operation, eigenvectors if second moments are
wanted, and the gradient of its output. `jaxunlearn.taps` has the table of names.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def product_sums(like: tuple, transposed: bool, x: Array, bases: tuple, gs: tuple) -> tuple:
    rows = x.reshape(-1, x.shape[-1])
    flat = [g.reshape(-1, g.shape[-1]) for g in gs]
    sums: list[dict] = [{} for _ in gs]
    for out, wanted in zip(sums, like, strict=True):
        if "A" in wanted:
            # One gradient decides nothing for an input that several products share: any may reach the loss.
            relevant = jnp.any(jnp.stack([jnp.any(g != 0, axis=-1) for g in flat]), axis=0)
            out["A"] = _gram(jnp.where(relevant[:, None], rows, 0), wanted["A"])
            out["N"] = jnp.sum(relevant, dtype=wanted["N"].dtype)
    turned = next((_turn(x, basis["A"]) for basis in bases if "A" in basis), x)
    for g, g_rows, out, wanted, basis in zip(gs, flat, sums, like, bases, strict=True):
        if "G" in wanted:
            out["G"] = _gram(g_rows, wanted["G"])
        if "S" in wanted:
            a, b = turned, _turn(g, basis.get("G"))
            out["S"] = _squares(*((b, a) if transposed else (a, b)), wanted["S"])
        if "X" in wanted:
            out["X"], out["Y"] = x.astype(wanted["X"].dtype), g.astype(wanted["Y"].dtype)
    return tuple(sums)


def lookup_sums(like: dict, ids: Array, basis: dict, g: Array) -> dict:
    sums = {}
    rows, flat = g.reshape(-1, g.shape[-1]), ids.reshape(-1)
    if "A" in like:
        relevant = jnp.any(rows != 0, axis=-1).astype(like["A"].dtype)
        sums["A"] = jnp.zeros(like["A"].shape, like["A"].dtype).at[flat].add(relevant)
        sums["N"] = jnp.sum(relevant)
    if "G" in like:
        sums["G"] = _gram(rows, like["G"])
    if "S" in like:
        # A row read several times in one example gets the sum of its gradients, which is squared once.
        examples = ids.reshape(ids.shape[0], -1)
        turned = _turn(g, basis.get("G")).astype(like["S"].dtype).reshape(*examples.shape, -1)
        same = (examples[:, :, None] == examples[:, None, :]).astype(turned.dtype)
        squares = (same @ turned) ** 2 / jnp.sum(same, axis=-1, keepdims=True)
        sums["S"] = jnp.zeros(like["S"].shape, like["S"].dtype).at[flat].add(squares.reshape(rows.shape))
    if "X" in like:
        sums["X"], sums["Y"] = ids.astype(like["X"].dtype), g.astype(like["Y"].dtype)
    return sums


def scale_sums(like: dict, x: Array, basis: dict, g: Array) -> dict:
    return shift_sums(like, x, basis, x.astype(like["S"].dtype) * g.astype(like["S"].dtype))


def shift_sums(like: dict, x: Array, basis: dict, g: Array) -> dict:
    per_example = jnp.sum(g.astype(like["S"].dtype), axis=tuple(range(1, g.ndim - 1)))
    return {"S": jnp.sum(per_example**2, axis=0)}


def _gram(rows: Float[Array, "N d"], like: Any) -> Array:
    """`rows^T rows` or its diagonal, summed in the dtype of `like`."""
    if len(like.shape) == 1:
        return _add_up(rows.astype(like.dtype) ** 2)
    return jax.lax.dot_general(rows, rows, (((0,), (0,)), ((), ())), preferred_element_type=like.dtype)


def _add_up(x: Float[Array, "N ..."]) -> Array:
    """Sum over the leading axis, as a product with ones: XLA's CPU reductions over it are ten times slower."""
    return jnp.tensordot(jnp.ones(x.shape[:1], x.dtype), x, axes=1, precision="highest")


def _turn(x: Float[Array, "B ... d"], basis: Float[Array, "d d"] | None) -> Array:
    return x if basis is None else x.astype(basis.dtype) @ basis


def _squares(a: Float[Array, "B ... m"], b: Float[Array, "B ... n"], like: Any) -> Float[Array, "m n"]:
    """`sum_b (a_b^T b_b)^2`, entry by entry: the squares of each example's gradient."""
    a, b = (y.astype(like.dtype).reshape(y.shape[0], -1, y.shape[-1]) for y in (a, b))
    if a.shape[1] == 1:
        return jnp.tensordot(a[:, 0] ** 2, b[:, 0] ** 2, axes=(0, 0))
    return _add_up(jax.lax.dot_general(a, b, (((1,), (1,)), ((0,), (0,)))) ** 2)
