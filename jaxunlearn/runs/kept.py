"""Results of a run's stages on disk, so that a restart takes them from there: JSON with NumPy arrays in it.

One safetensors file each, written whole or not at all: the arrays under numbers, and in the header the JSON, in which
`{"array": "3"}` stands for the one numbered 3. Raw data that any tool reads and nothing that could be executed. Numbers
come back to the bit: JSON writes the shortest decimal that reads as the same float64.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.files import new_file

_KEY = "jaxunlearn kept value"


def write(path: str | Path, value: Any) -> None:
    """Write a value made of dictionaries, lists, tuples (read back as lists), strings, numbers, None and arrays.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(f"{folder}/x.safetensors", {"loss": 0.1, "rows": [np.arange(3), None]})
        ...     read(f"{folder}/x.safetensors")
        {'loss': 0.1, 'rows': [array([0, 1, 2]), None]}
    """
    from safetensors.numpy import save_file

    arrays: dict[str, np.ndarray] = {}
    text = json.dumps(_pack(value, arrays))
    # The format wants at least one array.
    content = arrays or {"none": np.zeros(1, np.uint8)}
    with new_file(path, replace=True) as temporary:
        save_file(content, temporary, {_KEY: text})


def read(path: str | Path) -> Any:
    """What `write` was given.

    Raises:
        ValueError: when the file is not one of `write`, or was damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            value = json.loads((file.metadata() or {})[_KEY])
            return _unpack(value, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 -- no mapping
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and it is made anew") from None


def _pack(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        return {name: _pack(part, arrays) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_pack(part, arrays) for part in value]
    if isinstance(value, np.ndarray):
        name = str(len(arrays))
        # An array of no axes would come back with one.
        arrays[name] = np.ascontiguousarray(value).reshape(value.shape)
        return {"array": name}
    return value


def _unpack(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        if set(value) == {"array"}:
            return arrays[value["array"]]
        return {name: _unpack(part, arrays) for name, part in value.items()}
    if isinstance(value, list):
        return [_unpack(part, arrays) for part in value]
    return value
