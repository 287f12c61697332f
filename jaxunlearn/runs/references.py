"""What the model said before unlearning, for every record of a run, computed once and kept on the host."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from jaxunlearn.data import Counterfactuals, Encoded, collate, counterfactuals, shapes_of
from jaxunlearn.methods import Method
from jaxunlearn.objectives import reference
from jaxunlearn.sharding import shard_batch
from jaxunlearn.types import Model, Params, Reference, TopK


class Stored(NamedTuple):
    """References by record, and what they say about where to stop.

    Attributes:
        forget: parts of `Reference` indexed by forget record.
        retain: parts indexed by retain record.
        covered: share of each forget record's loss tokens that have a counterfactual answer; None when not computed.
        unseen_nll: mean NLL (nats per token) of the forget answers when the model is asked about entities it has
            never heard of: how an answer reads that was never learned. None without counterfactuals.
    """

    forget: Reference
    retain: Reference
    covered: np.ndarray | None
    unseen_nll: float | None

    def rows(self, forget_rows: np.ndarray, retain_rows: np.ndarray) -> Reference:
        """The references of one batch."""
        return Reference(
            forget_nll=_take(self.forget.forget_nll, forget_rows),
            retain_top=_take(self.retain.retain_top, retain_rows),
            counterfactual_top=_take(self.forget.counterfactual_top, forget_rows),
        )


def _take(stored: Any, rows: np.ndarray) -> Any:
    return jax.tree.map(lambda x: x[rows], stored)


def store(
    method: Method,
    model: Model,
    params: Params,
    forget: Sequence[Encoded],
    retain: Sequence[Encoded],
    *,
    prompts: Counterfactuals | None,
    top_k: int = 64,
    batch_size: int = 16,
    mesh: Mesh | None = None,
    advance: Callable[[int], None] | None = None,
) -> Stored:
    """Compute the references that `method` reads (and the unseen NLL, when counterfactual prompts are given).

    Args:
        method: `method.needs` says which parts.
        model: pure functions.
        params: of the model before unlearning.
        forget, retain: all records of the run.
        prompts: counterfactual forget prompts, or None.
        top_k: classes kept per place.
        batch_size: records a device call (forget records count K times under substitution).
        mesh: where batches are put.
        advance: called with the number of records done.
    """

    def on_rows(f: Callable, *trees: Any) -> Any:
        return _by_rows(f, model, params, trees, batch_size, mesh, advance)

    needs = method.needs
    forget_nll = on_rows(reference.forget_nll, _batch(forget)) if "forget_nll" in needs else None
    retain_top = on_rows(_retain_top(top_k), _batch(retain)) if "retain_top" in needs else None
    answers = unseen = covered = None
    if prompts is not None:
        size = max(1, batch_size // 4)
        batch = _batch(forget)
        asked = (prompts.tokens, prompts.places, np.take_along_axis(batch.tokens, batch.positions, axis=1))
        found = _by_rows(_counterfactual(top_k), model, params, asked, size, mesh, advance)
        answers, (nll, count) = found
        covered = prompts.covered
        unseen = float(nll.sum() / max(count.sum(), 1.0)) if count.sum() > 0 else None
    wanted = answers if "counterfactual_top" in needs else None
    return Stored(Reference(forget_nll, None, wanted), Reference(None, retain_top, None), covered, unseen)


def substitute(
    forget: Sequence[Encoded], retain: Sequence[Encoded], tokenizer: Any, *, k: int, seed: int, max_length: int
) -> Counterfactuals:
    """Counterfactual prompts of the forget records with names that occur in no text of the run."""
    return counterfactuals(
        forget,
        tokenizer,
        k=k,
        seed=seed,
        avoid=[one.text for one in retain],
        places=shapes_of(forget)[1],
        max_length=max_length,
    )


def _batch(encoded: Sequence[Encoded]):
    length, places = shapes_of(encoded)
    return collate(encoded, length=length, places=places)


def _retain_top(k: int):
    return lambda model, params, batch: reference.top(model, params, batch, k)


def _counterfactual(k: int):
    def f(model: Model, params: Params, tokens: Array, places: Array, targets: Array) -> tuple[TopK, tuple]:
        top = reference.counterfactual_top(model, params, tokens, places, targets, k)
        return top, reference.counterfactual_nll(model, params, tokens, places)

    return f


def _by_rows(f, model: Model, params: Params, trees: tuple, size: int, mesh: Mesh | None, advance) -> Any:
    """`f(model, params, *trees)` over chunks of rows of one shape, on the host."""
    call = jax.jit(f, static_argnums=0)
    n = jax.tree.leaves(trees)[0].shape[0]
    size = min(size, n)
    parts = []
    for start in range(0, n, size):
        # The last chunk is filled with repeats, so that every chunk has the compiled shape.
        rows = np.minimum(np.arange(start, start + size), n - 1)
        chunk = shard_batch(jax.tree.map(lambda x, rows=rows: np.asarray(x)[rows], trees), mesh)
        out = jax.device_get(call(model, params, *chunk))
        real = min(size, n - start)
        parts.append(jax.tree.map(lambda x, real=real: x[:real], out))
        if advance is not None:
            advance(real)
    return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)
