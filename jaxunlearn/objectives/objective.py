"""Objectives: weighted sums of terms, each a pure `(sum, count)` loss of an `UnlearnBatch`.

    O(theta) = sum_i w_i * sum_i(theta) / count_i

minimised by every method. A term is a frozen dataclass, so an objective is hashable, prints its settings, and can be
a static argument of `jax.jit`.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn import tree
from jaxunlearn.accumulate import accumulate
from jaxunlearn.types import Model, Params, Reference, UnlearnBatch, examples_in


class Term(Protocol):
    """One loss: what it reads from the batch, and its value there.

    A term that reads stored answers of the original model names the fields of `Reference` in an attribute `needs`.
    """

    def rows(self, batch: UnlearnBatch) -> dict:
        """The parts of the batch this term reads, all with the same number of examples, by name; they are split
        together into microbatches. Raises ValueError, saying how to supply it, when a part is missing."""

    def total(self, model: Model, params: Params, rows: dict) -> tuple[Array, Array]:
        """`(sum, count)` on those rows; `count` must not depend on the parameters."""


@dataclass(frozen=True)
class Objective:
    """A composite loss.

    Args:
        terms: `(weight, term)` pairs.
        microbatch: examples per accumulation step of the gradient; `None` takes the batch whole.

    Example:
        >>> from jaxunlearn.objectives import NLL, Objective
        >>> grad_diff = Objective(((-1.0, NLL("forget")), (1.0, NLL("retain"))))
        >>> hash(grad_diff) == hash(Objective(((-1.0, NLL("forget")), (1.0, NLL("retain")))))
        True
    """

    terms: tuple[tuple[float, Term], ...]
    microbatch: int | None = None

    def value(self, model: Model, params: Params, batch: UnlearnBatch) -> Float[Array, ""]:
        """`O(theta)`."""
        total = jnp.zeros((), jnp.float32)
        for weight, term in self.terms:
            rows = term.rows(batch)
            value, count = accumulate(lambda r, t=term: t.total(model, params, r), rows, self._chunk(rows))
            total = total + weight * value / _safe(count)
        return total

    def value_and_grad(self, model: Model, params: Params, batch: UnlearnBatch) -> tuple[Float[Array, ""], Params]:
        """`O(theta)` and its gradient, f32, laid out like the parameters."""
        total, gradient = jnp.zeros((), jnp.float32), tree.zeros_like(params)
        for weight, term in self.terms:
            rows = term.rows(batch)

            def chunk(r: dict, term: Term = term):
                (value, count), grad = jax.value_and_grad(lambda p: term.total(model, p, r), has_aux=True)(params)
                return value, count, tree.to_vector(grad)

            value, count, grad = accumulate(chunk, rows, self._chunk(rows))
            total = total + weight * value / _safe(count)
            gradient = tree.axpy(weight / _safe(count), grad, gradient)
        return total, tree.shard_like(gradient, params)

    def cut(self, microbatch: int) -> "Objective":
        """The same loss, `microbatch` examples at a time."""
        return replace(self, microbatch=microbatch)

    def _chunk(self, rows: dict) -> int | None:
        return None if self.microbatch is None else min(self.microbatch, examples_in(rows))


def need(value, part: str, remedy: str):
    """`value`, or a ValueError that says which part of the batch is missing and how to supply it."""
    if value is None:
        raise ValueError(f"this objective needs UnlearnBatch.{part}, which is None: {remedy}")
    return value


def stored(batch: UnlearnBatch, part: str, remedy: str):
    """`batch.reference.<part>`, or a ValueError that says how to compute and store it."""
    return need(None if batch.reference is None else getattr(batch.reference, part), f"reference.{part}", remedy)


def needs_of(terms: tuple[tuple[float, Term], ...]) -> tuple[str, ...]:
    """The stored parts that the terms read, each once."""
    return tuple(dict.fromkeys(part for _, term in terms for part in getattr(term, "needs", ())))


def reads(terms: tuple[tuple[float, Term], ...], part: str) -> bool:
    """Whether any term reads `UnlearnBatch.<part>`, found by asking for its rows in a batch that has everything else.

    Example:
        >>> from jaxunlearn.objectives import NLL
        >>> reads(((-1.0, NLL("forget")),), "retain"), reads(((1.0, NLL("retain")),), "retain")
        (False, True)
    """
    present = object()
    everything = UnlearnBatch(*(present for _ in UnlearnBatch._fields))._replace(
        reference=Reference(*(present for _ in Reference._fields))
    )
    without = everything._replace(**{part: None})
    for _, term in terms:
        term.rows(everything)
        try:
            term.rows(without)
        except ValueError:
            return True
    return False


def _safe(count: Array) -> Array:
    return jnp.where(count > 0, count, 1.0)
