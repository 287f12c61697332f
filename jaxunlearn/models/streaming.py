"""Stored tensors into the arrays where they belong, a few megabytes at a time.

Checkpoints store matrices the other way round than they are used here, and devices hold parts of them. Every stored row
is read once, in chunks that stay in the processor's cache while they are checked for NaN and copied to all the places
that want them, so that beside the result there is never more than a chunk.

Transposing is what takes longest. Copying one number after the other is bound by their number, whatever their size, so
numbers of 2 or 4 bytes are first put side by side with those of the rows below, to words of 8 bytes, and words are
transposed instead.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from jaxunlearn.models.checkpoint_files import StoredTensor

CHUNK = 1 << 21
STRIP = 64  # rows transposed at a time
ALIGNMENT = 64  # of memory that XLA takes over on CPUs instead of copying it


class Wanted(NamedTuple):
    """A part of a stored tensor and the place it goes to.

    Attributes:
        rows: rows of the stored tensor, start and stop given.
        rest: start and stop in its other dimensions.
        to: array of that shape, which may be the transpose of another.
    """

    rows: slice
    rest: tuple[slice, ...]
    to: np.ndarray


def stream(tensor: StoredTensor, wanted: list[Wanted]) -> bool:
    """Fill every `to`, and say whether all numbers that were read are finite.

    Places that want the same rows share what is read of them.
    """
    together: dict[tuple[int, int], list[Wanted]] = {}
    for one in wanted:
        together.setdefault((one.rows.start, one.rows.stop), []).append(one)
    finite = True
    for (start, stop), group in together.items():
        for rest, places in _reads(group):
            row = tensor.itemsize * int(np.prod([one.stop - one.start for one in rest]))
            step = max(CHUNK // max(row, 1), 1)
            for first in range(start, stop, step):
                last = min(first + step, stop)
                part = tensor.read((slice(first, last), *rest))
                finite = all_finite(part) and finite
                for place in places:
                    inner = (slice(a.start - b.start, a.stop - b.start) for a, b in zip(place.rest, rest, strict=True))
                    fill(place.to[first - start : last - start], part[(slice(None), *inner)])
    return finite


def _reads(group: list[Wanted]) -> Iterator[tuple[tuple[slice, ...], list[Wanted]]]:
    """What to read of the rows that `group` wants: all at once where it leaves nothing out, else part by part."""
    parts: dict[tuple, list[Wanted]] = {}
    for one in group:
        parts.setdefault(tuple((s.start, s.stop) for s in one.rest), []).append(one)
    edges = list(zip(*parts, strict=True))
    hull = tuple(slice(min(a for a, _ in each), max(b for _, b in each)) for each in edges)
    sizes = [int(np.prod([b - a for a, b in part])) for part in parts]
    if sum(sizes) == int(np.prod([one.stop - one.start for one in hull])):
        yield hull, group
        return
    for part, places in parts.items():
        yield tuple(slice(*one) for one in part), places


def fill(to: Shaped[np.ndarray, "..."], part: Shaped[np.ndarray, "..."]) -> None:
    """`to[...] = part`, in the dtype of `to`; quick where `to` is the transpose of an array in order.

    Example:
        >>> out = np.zeros((3, 5), np.float32)
        >>> fill(out.T, np.arange(15.0).reshape(5, 3))
        >>> out[1].tolist()
        [1.0, 4.0, 7.0, 10.0, 13.0]
    """
    part = part.astype(to.dtype, copy=False)
    size = to.dtype.itemsize
    bits = np.dtype(f"u{size}")
    # As bits: NumPy copies types that it only emulates number by number.
    to, part = to.view(bits), part.view(bits)
    if to.ndim != 2 or to.strides[0] != size or to.strides[1] % 8 or to.ctypes.data % 8:
        to[...] = part
        return
    out, beside = to.T, 8 // size
    whole = len(part) - len(part) % beside
    words = out[:, :whole].view(np.uint64)
    for first in range(0, whole, STRIP):
        rows = part[first : min(first + STRIP, whole)]
        strip = np.empty((len(rows) // beside, rows.shape[1], beside), bits)
        for i in range(beside):
            strip[:, :, i] = rows[i::beside]
        words[:, first // beside : (first + len(rows)) // beside] = strip.view(np.uint64)[..., 0].T
    out[:, whole:] = part[whole:].T


def transposed(matrix: Shaped[np.ndarray, "i o"]) -> Shaped[np.ndarray, "o i"]:
    """The transpose, in order in memory.

    Example:
        >>> transposed(np.arange(6.0).reshape(2, 3)).tolist()
        [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    """
    out = aligned(matrix.shape[::-1], matrix.dtype)
    fill(out.T, matrix)
    return out


def all_finite(values: Shaped[np.ndarray, "..."]) -> bool:
    """Whether none is NaN or infinite. Types that NumPy only emulates are looked at as bits: an exponent of ones."""
    if values.dtype.itemsize != 2:
        return bool(np.isfinite(values).all())
    exponent = np.uint16(0x7C00 if values.dtype == np.float16 else 0x7F80)
    return values.size == 0 or bool((values.view(np.uint16) & exponent).max() != exponent)


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array that is not filled, at an address that XLA takes over on CPUs.

    Example:
        >>> aligned((3, 2), np.float32).ctypes.data % 64
        0
    """
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)
