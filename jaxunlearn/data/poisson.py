"""Batches as differential privacy counts them: every record drawn by itself, with one probability, at every step.

The number drawn varies. Batches still have one shape: rows that no record fills are padding without loss, the same
whatever the records are, and where more records are drawn than there are rows, a uniformly random set of them stays
(truncated Poisson sampling, which `accounting` knows).
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from jaxunlearn.data.batches import Rows, collate, shapes_of
from jaxunlearn.data.encode import Encoded
from jaxunlearn.data.errors import DataError
from jaxunlearn.sharding import shard_rows
from jaxunlearn.types import TokenBatch


class PoissonSample(NamedTuple):
    """One step's batch.

    Attributes:
        drawn: which records it holds, in random order, int64; the first rows of the batch.
        size: rows of the batch; those after the drawn ones carry no loss.
        make: collates some of them, by their places in the batch.
    """

    drawn: Int[np.ndarray, " n"]
    size: int
    make: Rows

    @property
    def batch(self) -> TokenBatch:
        """All rows, as numpy arrays."""
        return self.make(np.arange(self.size))

    def on(self, mesh: Mesh | None) -> TokenBatch:
        """All rows, split over `mesh`; each process collates those of its own devices."""
        return shard_rows(self.make, self.size, mesh)


def poisson_batches(
    encoded: Sequence[Encoded],
    rate: float,
    *,
    capacity: int,
    steps: int,
    random: np.random.Generator,
    rows: int | None = None,
    shape: tuple[int, int] | None = None,
) -> Iterator[PoissonSample]:
    """`steps` batches, each a Poisson sample of the records truncated to `capacity`.

    Args:
        encoded: the records.
        rate: probability with which each is drawn, in (0, 1].
        capacity: most records a batch.
        steps: how many batches.
        random: decides; whoever can repeat it knows who was drawn.
        rows: rows a batch, at least `capacity`, which is the default.
        shape: `(length, places)` of every batch; default that of all records.

    Raises:
        DataError: no records, a rate outside (0, 1], or fewer rows than `capacity`.
    """
    rows = capacity if rows is None else rows
    if not encoded:
        raise DataError("no records to draw from. Give at least one.")
    if not 0 < rate <= 1 or not 1 <= capacity <= rows:
        raise DataError(
            f"a sampling rate of {rate}, at most {capacity} records in {rows} rows: the rate is a probability above 0, "
            "and the rows hold all records of a batch, at least 1"
        )
    shape = shape or shapes_of(encoded)
    for _ in range(steps):
        drawn = random.permutation(np.flatnonzero(random.random(len(encoded)) < rate))[:capacity]
        yield PoissonSample(drawn, rows, partial(_padded, encoded, drawn, shape))


def _padded(
    encoded: Sequence[Encoded], drawn: Int[np.ndarray, " n"], shape: tuple[int, int], places: Int[np.ndarray, " k"]
) -> TokenBatch:
    real = drawn[places[places < len(drawn)]]
    found = collate([encoded[row] for row in real], length=shape[0], places=shape[1])
    return TokenBatch(*(np.pad(leaf, ((0, len(places) - len(real)), (0, 0))) for leaf in found))
