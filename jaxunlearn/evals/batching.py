"""Few shapes, any batch size: how evaluation cuts a set of examples into padded batches.

Every new array shape costs a compilation, every padded place costs work. Examples are therefore grouped by length up
to a power of two, so a set needs a handful of shapes whatever it holds; inside a group all batches have the shape its
longest example asks for, the last one filled up with copies whose results are dropped. What comes out per example
depends neither on the batch size nor on the padding, which the tests hold to.
"""

from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from jaxunlearn.data import Encoded, batches
from jaxunlearn.sharding import on_host
from jaxunlearn.types import TokenBatch

Progress = Callable[[int, int], None]
_SHORTEST = 16


def loss_tokens(example: Encoded) -> int:
    """Number of loss tokens n_i of one example; the first token has no predecessor and never counts."""
    return int(np.count_nonzero(np.asarray(example.loss_mask)[1:]))


def bucketed(
    encoded: Sequence[Encoded], batch_size: int, mesh: Mesh | None = None
) -> Iterator[tuple[list[int], TokenBatch]]:
    """Yields `(indices, batch)`: row r of the batch is example `indices[r]`; rows beyond `len(indices)` are filler.

    Batches are split over `mesh`, or are host arrays without one.
    """
    groups: dict[int, list[int]] = {}
    for index, example in enumerate(encoded):
        groups.setdefault(_power_of_two(len(example.tokens), _SHORTEST), []).append(index)
    for _, members in sorted(groups.items()):
        rows = min(batch_size, _power_of_two(len(members), 1))
        for one in batches([encoded[i] for i in members], rows, shuffle=False):
            indices = [members[i] for i in one.rows[: one.real]]
            yield indices, one.batch if mesh is None else one.on(mesh)


def per_example(
    measure: Callable[[TokenBatch], dict[str, jax.Array]],
    encoded: Sequence[Encoded],
    *,
    batch_size: int,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> dict[str, list[np.ndarray]]:
    """Runs a jitted `measure(batch) -> {name: [B, P]}` over a set and returns `{name: [values of example i]}`.

    Errors:
        ValueError: nothing to measure, an example without any loss token, or a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    if not encoded:
        raise ValueError("there is nothing to evaluate: the set is empty; pass at least one example")
    counts = [loss_tokens(example) for example in encoded]
    if 0 in counts:
        raise ValueError(
            f"example {counts.index(0)} has no loss token, so no metric is defined on it; "
            "give it an answer, or leave it out"
        )
    out: dict[str, list] = {}
    done = 0
    for indices, batch in bucketed(encoded, batch_size, mesh):
        values = on_host(measure(batch))
        for name, rows in values.items():
            column = out.setdefault(name, [None] * len(encoded))
            for row, index in enumerate(indices):
                kept = rows[row, : counts[index]]
                column[index] = kept if kept.dtype == bool else kept.astype(np.float64)
        done += len(indices)
        if progress is not None:
            progress(done, len(encoded))
    return out


def _power_of_two(n: int, least: int) -> int:
    return max(least, 1 << (n - 1).bit_length())
