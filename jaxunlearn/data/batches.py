"""Encoded records to batches of one fixed shape, in an order that can be taken up again anywhere.

Every batch of a data set has the same shape, so a step compiles once. The order is a pure function of
`(seed, epoch, step)`: a run that resumes at `(epoch, step)` sees exactly what it would have seen. The last short batch
is filled with repeated rows whose loss mask is zero, so sums and counts of the loss stay exact. Rows are collated when
a batch is asked for, those of a process's own devices only.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from jaxunlearn.data.encode import Encoded
from jaxunlearn.data.errors import DataError
from jaxunlearn.data.packing import PackedRow
from jaxunlearn.packed import PackedBatch
from jaxunlearn.sharding import shard_rows
from jaxunlearn.types import TokenBatch, UnlearnBatch

Rows = Callable[[Int[np.ndarray, " n"]], TokenBatch | PackedBatch]


class Step(NamedTuple):
    """One step's batch, and where it stands.

    Attributes:
        epoch, step: counted from 0; resume with `start=(epoch, step)`, or `start=step.next` after it is done.
        next: the place of the step that follows.
        rows: which records the rows are, int64, shape [B]; fillers repeat earlier rows.
        real: how many rows count; the rest are fillers with zero loss mask.
        make: collates some rows of the batch, by their places in it.
    """

    epoch: int
    step: int
    next: tuple[int, int]
    rows: Int[np.ndarray, " B"]
    real: int
    make: Rows

    @property
    def batch(self) -> TokenBatch | PackedBatch:
        """All rows, as numpy arrays."""
        return self.make(np.arange(len(self.rows)))

    def on(self, mesh: Mesh | None) -> TokenBatch | PackedBatch:
        """All rows, split over `mesh`; each process collates those of its own devices."""
        return shard_rows(self.make, len(self.rows), mesh)


class PairStep(NamedTuple):
    """A forget batch with a random retain batch: fields as in `Step`; `retain_rows` index the retain records.

    Attributes:
        make_forget, make_retain: collate some rows of either; None where there is nothing to retain.
    """

    epoch: int
    step: int
    next: tuple[int, int]
    forget_rows: Int[np.ndarray, " B"]
    retain_rows: Int[np.ndarray, " R"]
    real: int
    make_forget: Rows
    make_retain: Rows | None

    @property
    def batch(self) -> UnlearnBatch:
        """Both, whole, as numpy arrays."""
        return self._both(lambda make, count: make(np.arange(count)))

    def on(self, mesh: Mesh | None) -> UnlearnBatch:
        """Both, split over `mesh`; each process collates the rows of its own devices."""
        return self._both(lambda make, count: shard_rows(make, count, mesh))

    def _both(self, put: Callable[[Rows, int], TokenBatch | PackedBatch]) -> UnlearnBatch:
        kept = None if self.make_retain is None else put(self.make_retain, len(self.retain_rows))
        return UnlearnBatch(put(self.make_forget, len(self.forget_rows)), kept)


def shapes_of(encoded: Sequence[Encoded] | Sequence[PackedRow]) -> tuple[int, int]:
    """The shape all records fit in: `(length, places)`, T rounded up to a multiple of 16 and P of 8.

    Example:
        >>> import numpy as np
        >>> one = Encoded(np.arange(20), np.r_[0.0, np.ones(19)], np.zeros((20, 2)), "", None)
        >>> shapes_of([one])
        (32, 24)
    """
    length = max((len(one.tokens) for one in encoded), default=1)
    places = max((int(np.count_nonzero(one.loss_mask)) for one in encoded), default=1)
    return _round_up(length, 16), _round_up(places, 8)


def collate(
    encoded: Sequence[Encoded] | Sequence[PackedRow],
    *,
    length: int | None = None,
    places: int | None = None,
    pad_id: int = 0,
) -> TokenBatch | PackedBatch:
    """Right-padded batch of numpy arrays, with the positions of the loss tokens.

    Args:
        encoded: B records, or B rows that `pack` made.
        length, places: T and P; default the smallest that `shapes_of` allows.
        pad_id: what fills the tokens; it never carries loss.

    Returns:
        `tokens [B, T] int32`, `loss_mask [B, T] f32`, `positions [B, P] int32`: indices of loss tokens in order,
        padded with 0; for packed rows `segments [B, T] int32` as well.

    Raises:
        DataError: a record does not fit in `length` or `places`.
    """
    fitting = shapes_of(encoded)
    length, places = length or fitting[0], places or fitting[1]
    tokens = np.full((len(encoded), length), pad_id, np.int32)
    loss_mask = np.zeros((len(encoded), length), np.float32)
    positions = np.zeros((len(encoded), places), np.int32)
    for row, one in enumerate(encoded):
        found = np.flatnonzero(one.loss_mask)
        if len(one.tokens) > length or len(found) > places:
            raise DataError(
                f"{_where(one)}: {len(one.tokens)} tokens, {len(found)} with loss, do not fit in length={length}, "
                f"places={places}. Take both from shapes_of(all records)."
            )
        tokens[row, : len(one.tokens)] = one.tokens
        loss_mask[row, : len(one.tokens)] = one.loss_mask
        positions[row, : len(found)] = found
    if not encoded or not isinstance(encoded[0], PackedRow):
        return TokenBatch(tokens, loss_mask, positions)
    segments = np.zeros((len(encoded), length), np.int32)
    for row, one in zip(segments, encoded, strict=True):
        row[: len(one.segments)] = one.segments
    return PackedBatch(tokens, loss_mask, segments, positions)


def filled(
    encoded: Sequence[Encoded] | Sequence[PackedRow],
    rows: Int[np.ndarray, " B"],
    real: int,
    shape: tuple[int, int],
    places: Int[np.ndarray, " n"],
    *,
    pad_id: int = 0,
) -> TokenBatch | PackedBatch:
    """The rows at `places` of a batch of `rows`; those from number `real` on are fillers without loss.

    Example:
        >>> one = Encoded(np.arange(2), np.array([0.0, 1.0]), np.zeros((2, 2)), "", None)
        >>> filled([one], np.array([0, 0]), 1, (2, 1), np.array([0, 1])).loss_mask.tolist()
        [[0.0, 1.0], [0.0, 0.0]]
    """
    batch = collate([encoded[row] for row in rows[places]], length=shape[0], places=shape[1], pad_id=pad_id)
    batch.loss_mask[places >= real] = 0.0
    return batch


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Batches in one pass over `count` records, the last one filled up."""
    return -(-count // batch_size)


def batches(
    encoded: Sequence[Encoded] | Sequence[PackedRow],
    batch_size: int,
    *,
    seed: int = 0,
    epochs: int = 1,
    shuffle: bool = True,
    start: tuple[int, int] = (0, 0),
    pad_id: int = 0,
    shape: tuple[int, int] | None = None,
) -> Iterator[Step]:
    """Passes over the records, from step `start` on.

    Args:
        encoded: the records, or the rows that `pack` made of them, each of which then counts as one.
        batch_size: rows a batch, B.
        seed: fixes the order; each epoch has its own.
        epochs: how many passes.
        shuffle: or keep the order of the records.
        start: `(epoch, step)` of the first batch to yield.
        pad_id: fills the tokens.
        shape: `(length, places)` of every batch; default that of all records.

    Raises:
        DataError: no records, or a batch size below 1.
    """
    _check(encoded, batch_size, "records")
    shape, steps = shape or shapes_of(encoded), steps_per_epoch(len(encoded), batch_size)
    epoch, step = divmod(start[0] * steps + start[1], steps)
    while epoch < epochs:
        rows, real = _rows(len(encoded), batch_size, seed, epoch, step, shuffle)
        following = divmod(epoch * steps + step + 1, steps)
        yield Step(epoch, step, following, rows, real, partial(filled, encoded, rows, real, shape, pad_id=pad_id))
        epoch, step = following


def pair(
    forget: Sequence[Encoded],
    retain: Sequence[Encoded],
    batch_size: int,
    *,
    retain_size: int | None = None,
    seed: int = 0,
    epochs: int = 1,
    start: tuple[int, int] = (0, 0),
    pad_id: int = 0,
) -> Iterator[PairStep]:
    """Passes over the forget set, each batch beside a random retain batch of `retain_size` rows (default: the same).

    The retain rows of a batch are distinct while there are enough, and a pure function of `(seed, epoch, step)`. With
    an empty retain set, `batch.retain` is None.
    """
    if retain:
        _check(retain, retain_size or batch_size, "retain records")
    shape, size = shapes_of(retain), retain_size or batch_size
    for one in batches(forget, batch_size, seed=seed, epochs=epochs, start=start, pad_id=pad_id):
        rows, make = np.zeros(0, np.int64), None
        if retain:
            random = np.random.default_rng([seed, one.epoch, one.step, 1])
            rows = random.choice(len(retain), size, replace=len(retain) < size)
            make = partial(filled, retain, rows, size, shape, pad_id=pad_id)
        yield PairStep(one.epoch, one.step, one.next, one.rows, rows, one.real, one.make, make)


def _where(one: Encoded | PackedRow) -> str:
    return f"{len(one.records)} packed records" if isinstance(one, PackedRow) else one.record.where


def _rows(count: int, batch_size: int, seed: int, epoch: int, step: int, shuffle: bool) -> tuple[np.ndarray, int]:
    order = np.random.default_rng([seed, epoch]).permutation(count) if shuffle else np.arange(count)
    taken = np.arange(step * batch_size, (step + 1) * batch_size)
    return order[taken % count], int(np.count_nonzero(taken < count))


def _check(encoded: Sequence[Encoded], batch_size: int, what: str) -> None:
    if not encoded:
        raise DataError(f"no {what} to make batches of. Give at least one.")
    if batch_size < 1:
        raise DataError(f"batch size {batch_size} is below 1. Give a positive --batch-size.")


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
