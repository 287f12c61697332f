"""The operations of a tapped model: on plain arrays what their names say, on `Tapped` ones watched as well."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jaxtyping import Array, Float, Int

from jaxunlearn.sharding.regions import auto
from jaxunlearn.taps.node import Tapped, value
from jaxunlearn.taps.sums import lookup_sums, product_sums, scale_sums, shift_sums


def matmul(
    x: Float[Array, "B ... i"], w: Float[Array, "i o"] | Tapped, *, transposed: bool = False
) -> Float[Array, "B ... o"]:
    """`x @ w`, or `x @ w.T` for a head tied to its embedding table.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> node = Tapped(jnp.eye(2), {"matmul": {"A": jnp.zeros((2, 2)), "N": jnp.zeros(())}})
        >>> x = jnp.array([[1.0, 2.0]])
        >>> jax.grad(lambda w: matmul(x, w).sum(), allow_int=True)(node).taps["matmul"]["A"].tolist()
        [[1.0, 2.0], [2.0, 4.0]]
    """
    out = x @ (value(w).T if transposed else value(w))
    return products(x, (out,), (w,), transposed=transposed)[0]


def products(
    x: Float[Array, "B ... i"], outputs: tuple[Array, ...], kernels: tuple[Any, ...], *, transposed: bool = False
) -> tuple[Array, ...]:
    """`outputs`, watched as the products of one input `x` with each of `kernels`; biases may have been added.

    For models that multiply in their own way. Products of one call share the sum over inputs: it is taken once, by
    the first of them.
    """
    use = "transposed" if transposed else "matmul"
    nodes = [w if isinstance(w, Tapped) else None for w in kernels]
    watched = [node for node in nodes if node is not None]
    if not watched:
        return outputs
    if probe := watched[0].probe:
        source = len(probe.uses)
        for node, out in zip(nodes, outputs, strict=True):
            if node is not None:
                node.probe.note(use, node.value, x, out, source)
        return outputs
    taps = tuple({} if node is None else node.taps.get(use, {}) for node in nodes)
    bases = tuple({} if node is None else node.bases.get(use, {}) for node in nodes)
    return _products(_avals(taps), transposed, outputs, x, taps, bases)


def lookup(ids: Int[Array, "B ..."], table: Float[Array, "V D"] | Tapped) -> Float[Array, "B ... D"]:
    """`table[ids]`."""
    return looked_up(ids, value(table)[ids], table)


def looked_up(ids: Int[Array, "B ..."], rows: Float[Array, "B ... D"], table: Array | Tapped) -> Array:
    """`rows`, watched as `table[ids]`."""
    return _observe("lookup", lookup_sums, ids, rows, table)


def scale(x: Float[Array, "B ... D"], s: Float[Array, " D"] | Tapped) -> Float[Array, "B ... D"]:
    """`x * s`, as of a norm."""
    return _observe("scale", scale_sums, x, x * value(s), s)


def shift(x: Float[Array, "B ... D"], b: Float[Array, " D"] | Tapped) -> Float[Array, "B ... D"]:
    """`x + b`, as of a bias."""
    return _observe("shift", shift_sums, x, x + value(b), b)


def _observe(use: str, measure: Callable, x: Array, out: Array, node: Array | Tapped) -> Array:
    if not isinstance(node, Tapped):
        return out
    if node.probe:
        node.probe.note(use, node.value, x, out, len(node.probe.uses))
        return out
    taps = node.taps.get(use, {})
    return _identity(_avals(taps), measure, out, x, taps, node.bases.get(use, {})) if taps else out


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _identity(avals: tuple, measure: Callable, out: Array, x: Array, taps: dict, bases: dict) -> Array:
    return out


def _identity_bwd(avals: tuple, measure: Callable, kept: tuple, g: Array) -> tuple:
    like = dict(avals)
    return g, None, auto(lambda *a: measure(like, *a), *kept, g, like=like), None


_identity.defvjp(lambda avals, measure, out, x, taps, bases: (out, (x, bases)), _identity_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _products(avals: tuple, transposed: bool, outputs: tuple, x: Array, taps: tuple, bases: tuple) -> tuple:
    return outputs


def _products_bwd(avals: tuple, transposed: bool, kept: tuple, gs: tuple) -> tuple:
    like = tuple(dict(one) for one in avals)
    return gs, None, auto(lambda *a: product_sums(like, transposed, *a), *kept, gs, like=like), None


_products.defvjp(lambda avals, transposed, outputs, x, taps, bases: (outputs, (x, bases)), _products_bwd)


def _avals(taps: Any) -> tuple:
    """Shapes, dtypes and layouts of dummies, hashable: the dummies themselves need not live until the backward pass."""
    if isinstance(taps, dict):
        kinds = {name: jax.typeof(tap) for name, tap in taps.items()}
        return tuple((name, jax.ShapeDtypeStruct(t.shape, t.dtype, sharding=t.sharding)) for name, t in kinds.items())
    return tuple(_avals(one) for one in taps)
