"""Short records to full rows: several of them one behind the other, so that padding is not computed.

Which records share a row is bin packing. First-fit decreasing, longest record first and each into the first row that
still has room, needs at most 11/9 of the fewest rows possible, plus one (Johnson 1973, "Near-optimal bin packing
algorithms"). `packed` says what a model makes of such rows, and what may be computed from them.

    rows = pack(encode(records, tokenizer, max_length=512), 2048)
    for step in batches(rows, 8):            # batches of 8 rows, in random order
        losses.nll(model, params, step.batch)
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxunlearn.data.encode import Encoded
from jaxunlearn.data.errors import DataError


class PackedRow(NamedTuple):
    """A row of several records.

    Attributes:
        tokens: their token ids, int32, shape [T].
        loss_mask: their loss masks, f32, shape [T].
        segments: 1, 2, ... for the tokens of the first, the second, ... of them, int32, shape [T].
        records: which of the packed records they are.
    """

    tokens: Int[np.ndarray, " T"]
    loss_mask: Float[np.ndarray, " T"]
    segments: Int[np.ndarray, " T"]
    records: tuple[int, ...]


def pack(encoded: Sequence[Encoded], length: int) -> list[PackedRow]:
    """Rows of at most `length` tokens that hold every record once, whole.

    Args:
        encoded: the records, each with loss mask 0 at its first token.
        length: tokens of a row; at most the model's context.

    Raises:
        DataError: naming the first record that is longer than a row.

    Example:
        >>> def record(n):
        ...     return Encoded(np.arange(n), np.r_[0.0, np.ones(n - 1)], None, "", None)
        >>> [row.records for row in pack([record(2), record(5), record(3)], 5)]
        [(1,), (2, 0)]
    """
    lengths = [len(one.tokens) for one in encoded]
    for one, size in zip(encoded, lengths, strict=True):
        if size > length:
            raise DataError(
                f"{one.record.where}: {size} tokens do not fit in a packed row of {length}; make rows longer"
            )
    rows: list[list[int]] = []
    room = np.zeros(0, np.int64)
    for i in np.argsort(-np.asarray(lengths, np.int64), kind="stable"):
        fits = np.flatnonzero(room >= lengths[i])
        if len(fits) == 0:
            rows.append([])
            room, fits = np.append(room, length), np.array([len(rows) - 1])
        rows[fits[0]].append(int(i))
        room[fits[0]] -= lengths[i]
    return [_row(encoded, row) for row in rows]


def _row(encoded: Sequence[Encoded], row: list[int]) -> PackedRow:
    tokens, loss_mask = (
        np.concatenate([getattr(encoded[i], name) for i in row]).astype(dtype)
        for name, dtype in (("tokens", np.int32), ("loss_mask", np.float32))
    )
    numbers = [np.full(len(encoded[i].tokens), n, np.int32) for n, i in enumerate(row, start=1)]
    return PackedRow(tokens, loss_mask, np.concatenate(numbers), tuple(row))
