"""A model seen as a body and a head, so that curvature of its predictions makes logits chunk by chunk of places.

Whatever is computed at the logits (a softmax Hessian, labels drawn from the model) is local to a place. The body runs
once for all places; the head is applied to a chunk of them at a time, `losses.in_chunks`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, PyTree

from jaxunlearn.types import Batch, Model, Params, Predictions


class Parts(NamedTuple):
    """A model as a body and a head.

    Attributes:
        body: `(params, batch) -> (hidden [B, P, D], weights [B, P])`.
        head: `(params, hidden) -> logits [B, P, V]`.
        rows: most rows of logits at once; `None` means all.
    """

    body: Callable[[Params, PyTree], tuple[Array, Array]]
    head: Callable[[Params, Array], Array]
    rows: int | None = None


def parts_of(model: Model, batch: Batch) -> Parts:
    """The parts of `model` on batches like `batch`; the whole model is the body where it does not show its head."""
    if model.head is None or not hasattr(batch, "places"):
        return parts_of_predictor(lambda params, chunk: chunk.predict(model, params))

    def body(params: Params, chunk: Any) -> tuple[Array, Array]:
        places = chunk.places(model, params)
        return places.hidden, places.weights

    return Parts(body, model.head, model.head_rows)


def parts_of_predictor(predict: Callable[[Params, PyTree], Predictions]) -> Parts:
    """A function that gives logits at once, as a body with nothing on top."""

    def body(params: Params, chunk: PyTree) -> tuple[Array, Array]:
        predictions = predict(params, chunk)
        return predictions.logits, predictions.weights

    return Parts(body, lambda params, logits: logits)
