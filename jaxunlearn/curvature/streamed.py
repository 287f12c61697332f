"""Products over more data than fits: the host walks through batches, the device adds up.

    A v = sum_b S_b v / sum_b n_b

`S_b v` is the product with batch b before normalisation and `n_b` its count, so that the result is that of one batch
with all the data, to rounding. Each batch goes through one compiled function that adds onto donated accumulators. The
host only waits for the batch before last: transfers overlap with computation, and two batches at most are in flight.

A solver passes over the data once a product, so `batches` is a collection, or a function that starts a new pass; an
iterator would be empty the second time. Streamed operators are driven by solvers that loop on the host.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxunlearn import tree
from jaxunlearn.curvature.diagonal import DiagonalOperator
from jaxunlearn.curvature.subset import over_chosen
from jaxunlearn.operators import LinearOperator
from jaxunlearn.sharding.regions import replicate_rest
from jaxunlearn.types import Batch, Model, Params

Batches = Iterable[Batch] | Callable[[], Iterator[Batch]]
Product = Callable[..., tuple[PyTree, Array]]
IN_FLIGHT = 2


class Additive(Protocol):
    """A curvature recipe whose products over several batches add up.

    A class attribute `psd = True` says that they are those of a positive semidefinite operator.
    """

    def product(self, model: Model, params: Params, batch: Batch, v: PyTree) -> tuple[PyTree, Array]:
        """`(sum, count)`: the product with `batch` is `sum / count`."""


def streamed(
    curvature: Additive, model: Model, params: Params, batches: Batches, frozen: Params | None = None
) -> LinearOperator:
    """The curvature of all `batches` together, as an operator that passes over them once a product.

    Args:
        curvature: a recipe with a `product`: `Hessian()`, `GaussNewton()`, `EmpiricalFisher()`, `TrueFisher()`.
        model: pure functions.
        params: where the curvature is taken.
        batches: a list, a data set that can be walked through again and again, or a function without arguments that
            returns an iterator. A last batch of another size compiles once more.
        frozen: the other parameters, where `params` are those that `partition` chose.

    Raises:
        TypeError: for an iterator, which could only be walked through once; for a product inside `jit`; for a curvature
            without additive products.
        ValueError: when a pass finds no batch, or not as many as the pass before.

    Example:
        >>> from jaxunlearn.curvature import Hessian
        >>> from jaxunlearn.types import LabelledBatch
        >>> model = Model(logits=lambda w, x: x @ w)
        >>> data = LabelledBatch(jnp.eye(4), jnp.array([0, 1, 0, 1]))
        >>> half = lambda rows: jax.tree.map(lambda x: x[rows], data)
        >>> w = jnp.zeros((4, 2))
        >>> A = streamed(Hessian(), model, w, [half(slice(0, 2)), half(slice(2, 4))])
        >>> bool(jnp.allclose(A(w + 1.0), Hessian()(model, w, data)(w + 1.0)))
        True
    """
    if not hasattr(curvature, "product"):
        raise TypeError(
            f"{curvature!r} has no product(model, params, batch, v) -> (sum, count), so batches of it do not add up: "
            "stream Hessian, GaussNewton, EmpiricalFisher or TrueFisher"
        )
    psd = getattr(curvature, "psd", False)
    return streamed_product(Bound(curvature, model), params, batches, frozen, psd=psd)


class AdditiveDiagonal(Protocol):
    """A recipe of diagonals that are means over examples or loss tokens, so that those of several batches add up.

    Attributes:
        mean_over: "examples" or "tokens".
        seed: of its random draws; every batch has its own.
    """

    mean_over: str
    seed: int

    def entries(self, model: Model, params: Params, batch: Batch, key: Array) -> PyTree:
        """The diagonal on one batch, in a form whose mean over batches is that on all."""

    def operator(self, entries: PyTree) -> DiagonalOperator:
        """The operator of such a mean."""


def streamed_diagonal(curvature: AdditiveDiagonal, model: Model, params: Params, batches: Batches) -> DiagonalOperator:
    """The diagonal of all `batches` together, from one pass over them.

    Args:
        curvature: `SquaredGradients()`, `GaussNewtonBartlett()` or `HutchinsonDiagonal()`. Draws of a batch come from
            the recipe's seed and the batch's number.
        model: pure functions.
        params: where the diagonal is taken.
        batches: as for `streamed`; an iterator will do, as it is walked through once.

    Raises:
        TypeError: for a curvature without additive diagonals.
        ValueError: when there is no batch.

    Example:
        >>> from jaxunlearn.curvature import SquaredGradients
        >>> from jaxunlearn.types import LabelledBatch
        >>> model = Model(logits=lambda w, x: x @ w)
        >>> data = LabelledBatch(jnp.eye(4), jnp.array([0, 1, 0, 1]))
        >>> parts = [jax.tree.map(lambda x: x[rows], data) for rows in (slice(0, 1), slice(1, 4))]
        >>> w = jnp.zeros((4, 2))
        >>> d = streamed_diagonal(SquaredGradients(), model, w, parts)
        >>> bool(jnp.allclose(d.entries, SquaredGradients()(model, w, data).entries))
        True
    """
    if not hasattr(curvature, "mean_over"):
        raise TypeError(
            f"{curvature!r} is no diagonal that adds up over batches: use SquaredGradients, GaussNewtonBartlett or "
            "HutchinsonDiagonal"
        )
    rows = batches() if callable(batches) else batches
    return curvature.operator(mean_over(_Entries(curvature, model), params, rows, lambda number: (jnp.uint32(number),)))


def streamed_product(
    product: Product, params: Params, batches: Batches, *more: PyTree, psd: bool = False
) -> LinearOperator:
    """`v -> sum_b product(params, b, v, *more) / count`; see `streamed`.

    Args:
        product: `(params, batch, v, *more) -> (sum, count)`, pure and hashable; one compilation serves all operators of
            equal products.
        params: passed on, and the structure of vectors.
        batches: as for `streamed`.
        more: other arrays that the product reads, the same for all batches.
        psd: whether the products are those of a positive semidefinite operator.
    """
    passes = _Passes(batches)

    def mv(v: PyTree) -> PyTree:
        if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(v)):
            raise TypeError(
                "a streamed operator reads its batches on the host and cannot be part of a compiled function: use a "
                "solver that is driven from the host, or put the data into one batch with microbatch="
            )
        return mean_over(product, params, passes.walk(), lambda number: (v, *more))

    return LinearOperator(mv, params, psd)


@dataclass(frozen=True)
class Bound:
    """A recipe's product with its model filled in, equal for equal recipes and models."""

    curvature: Additive
    model: Model

    def __call__(self, params: Params, batch: Batch, v: PyTree, frozen: Params | None) -> tuple[PyTree, Array]:
        model = self.model if frozen is None else over_chosen(self.model, frozen)
        return self.curvature.product(model, params, batch, v)


@dataclass(frozen=True)
class _Entries:
    """A recipe's diagonal in the form of a product: with the number of the batch, which its draws come from."""

    curvature: AdditiveDiagonal
    model: Model

    def __call__(self, params: Params, batch: Batch, number: Array) -> tuple[PyTree, Array]:
        weights = batch.predict(self.model, params).weights
        n = jnp.sum(jnp.any(weights > 0, axis=-1)) if self.curvature.mean_over == "examples" else jnp.sum(weights)
        key = jax.random.fold_in(jax.random.key(self.curvature.seed), number)
        return tree.scale(n.astype(jnp.float32), self.curvature.entries(self.model, params, batch, key)), n


@dataclass
class _Passes:
    """The data, as something to walk through any number of times, always alike."""

    source: Any
    number: int = 0
    length: int | None = field(default=None)

    def __post_init__(self):
        if not callable(self.source) and iter(self.source) is self.source:
            raise TypeError(
                "batches is an iterator, which is used up after one pass, and every product is a pass: give a list, or "
                "a function that returns a new iterator, for example lambda: make_batches(...)"
            )

    def walk(self) -> Iterator[Batch]:
        self.number += 1
        n = 0
        for batch in self.source() if callable(self.source) else self.source:
            n += 1
            yield batch
        if n == 0:
            raise ValueError(
                f"pass {self.number} over batches found none: the function must return a new iterator every time"
                if self.number > 1
                else "batches is empty: curvature needs at least one batch"
            )
        if self.length not in (None, n):
            raise ValueError(
                f"pass {self.number} over batches found {n} of them, the one before {self.length}: every pass must see "
                "the same data"
            )
        self.length = n


def mean_over(
    product: Product, like: PyTree, batches: Iterable[Batch], more: Callable[[int], tuple] = lambda number: ()
) -> PyTree:
    """`sum_b S_b / sum_b n_b` from one pass, where `(S_b, n_b) = product(like, b, *more(number of b))`.

    Args:
        product: pure and hashable.
        like: passed on; the sums have its structure and its layout, in f32.
        batches: walked through once.
        more: further arguments, by the number of the batch.

    Raises:
        ValueError: when there is no batch.

    Example:
        >>> sums = lambda like, x: (jnp.sum(x), len(x))
        >>> float(mean_over(sums, jnp.float32(0), [jnp.array([1.0, 2.0]), jnp.array([6.0])]))
        3.0
    """
    # Where `add_batch` leaves them, or it would be compiled anew for the second batch.
    total, count = replicate_rest((tree.zeros_like(like), jnp.zeros((), jnp.result_type(float))), like)
    number = 0
    waiting: deque[Array] = deque()
    for batch in batches:
        total, count, done = add_batch(product, total, count, like, batch, more(number))
        number += 1
        waiting.append(done)
        if len(waiting) == IN_FLIGHT:
            jax.block_until_ready(waiting.popleft())
    if number == 0:
        raise ValueError("batches is empty: curvature needs at least one batch")
    return _mean(total, count, like)


@partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def add_batch(
    product: Product, total: PyTree, count: Array, like: PyTree, batch: PyTree, more: tuple
) -> tuple[PyTree, Array, Array]:
    """What one batch adds: the program that every pass is made of."""
    part, n = product(like, batch, *more)
    total = jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, part)
    count = count + jnp.asarray(n, count.dtype)
    # A third result, because the accumulators are donated to the next batch and cannot be waited for.
    return tree.shard_like(total, like), count, count + 0


@jax.jit
def _mean(total: PyTree, count: Array, like: PyTree) -> PyTree:
    return tree.shard_like(tree.scale(1.0 / jnp.where(count > 0, count, 1.0), total), like)
