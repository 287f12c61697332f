"""Writing a safetensors file one tensor after the other, so that the host holds one of them at a time.

The format (https://huggingface.co/docs/safetensors) is the length of a header in 8 bytes, the header in JSON (element
type, shape and byte range of each tensor), and the numbers. Ranges follow from types and shapes, so that the header
can be written before any tensor is there. Wider types come first, as the library has it, which keeps every tensor
aligned: the file is the one that `safetensors.numpy.save_file` would write of all tensors together.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxunlearn.models.checkpoint_files import FLOATS

ORDER = ("F64", "F32", "BF16", "F16")


class Row(NamedTuple):
    """What the header says of a tensor.

    Attributes:
        dtype: its element type, as NumPy calls it.
        shape: its shape.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Bytes of its numbers."""
        import jax.numpy as jnp

        return math.prod(self.shape) * jnp.dtype(self.dtype).itemsize


def write_tensors(file: Path | None, rows: Mapping[str, Row], read: Callable[[str], np.ndarray]) -> None:
    """Write the tensors that `read` gives for the names of `rows`; each is asked for once, and let go before the next.

    Args:
        file: where to; None to ask for all and write nothing, as processes do that only take part in collecting them.
        rows: type and shape of each, which `read` must keep to.
        read: name to tensor.

    Example:
        >>> import tempfile
        >>> from safetensors.numpy import load_file
        >>> with tempfile.TemporaryDirectory() as home:
        ...     write_tensors(Path(home, "x"), {"a": Row("float32", (2,))}, lambda name: np.ones(2, np.float32))
        ...     load_file(Path(home, "x"))["a"].tolist()
        [1.0, 1.0]
    """
    kinds = {dtype: kind for kind, dtype in FLOATS.items()}
    names = sorted(rows, key=lambda name: (ORDER.index(kinds[rows[name].dtype]), name))
    if file is None:
        for name in names:
            read(name)
        return
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in names:
        row = rows[name]
        ends = [start, start + row.bytes]
        header[name] = {"dtype": kinds[row.dtype], "shape": list(row.shape), "data_offsets": ends}
        start = ends[1]
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            out.write(np.ascontiguousarray(read(name)).reshape(-1).view(np.uint8).data)
