"""Named arrays in a folder of safetensors files (https://huggingface.co/docs/safetensors): what stored curvature is
kept in.

Raw arrays that any tool reads and nothing that could be executed. Every header holds the same description, in which
`files` says which array is in which file. The folder is written under a temporary name and renamed at the end, so it is
either complete or absent, and nothing that exists is overwritten.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array

from jaxunlearn.files import new_folder, refuse_folder
from jaxunlearn.sharding import on_host


class Format(NamedTuple):
    """A kind of content: its files are `stem-*.safetensors`, its description stands under `key`, `writer` makes it."""

    stem: str
    key: str
    writer: str


def write(
    folder: str | Path,
    form: Format,
    arrays: Mapping[str, Array],
    about: Mapping[str, Any],
    max_shard_size: int,
    beside: Mapping[str, str] | None = None,
) -> Path:
    """Write arrays and their description; leaves may be spread over devices and hosts, and are collected file by file.

    `beside` are texts by file name that appear together with them.

    Raises:
        ValueError: when the folder holds something already.
    """
    refuse_folder(folder)
    shards = list(_shards(arrays, max_shard_size))
    names = [f"{form.stem}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    files = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    with new_folder(folder) as out:
        for name, shard in zip(names, shards, strict=True):
            _write(None if out is None else out / name, shard, {form.key: json.dumps({**about, "files": files})})
        if out is not None:
            for name, text in (beside or {}).items():
                (out / name).write_text(text, encoding="utf-8")
    return Path(folder)


def holds(folder: str | Path, form: Format) -> bool:
    """Whether the folder holds files of this kind."""
    return any(Path(folder).glob(f"{form.stem}-*.safetensors"))


def description(folder: str | Path, form: Format) -> dict[str, Any]:
    """What `write` was told.

    Raises:
        ValueError: when there is no such file or it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    files = sorted(Path(folder).glob(f"{form.stem}-*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no {form.stem}-*.safetensors; point to a folder that {form.writer} wrote")
    try:
        with safe_open(files[0], framework="numpy") as tensors:
            return json.loads((tensors.metadata() or {})[form.key])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{files[0]} is no readable file of {form.writer} ({error!r}); write it again") from None


def missing(folder: str | Path, about: Mapping[str, Any]) -> list[str]:
    """Arrays whose files are not there, one line each."""
    return [f"{key}: {file} is missing" for key, file in about["files"].items() if not _file(folder, file).is_file()]


def place_of(folder: str | Path, about: Mapping[str, Any], key: str) -> Path:
    """The file that holds an array."""
    return _file(folder, about["files"][key])


def _file(folder: str | Path, name: str) -> Path:
    return Path(folder) / Path(name).name  # never outside of the folder, whatever a header says


def _shards(arrays: Mapping[str, Array], limit: int) -> Iterator[dict[str, Array]]:
    shard: dict[str, Array] = {}
    size = 0
    for key, array in arrays.items():
        if shard and size + array.nbytes > limit:
            yield shard
            shard, size = {}, 0
        shard[key] = array
        size += array.nbytes
    yield shard


def _write(file: Path | None, shard: dict[str, Array], metadata: dict[str, str]) -> None:
    from safetensors.numpy import save_file

    # Every process takes part in collecting an array that is spread over several.
    host = {key: np.ascontiguousarray(on_host(array)).reshape(array.shape) for key, array in shard.items()}
    if file is not None:
        save_file(host, file, metadata=metadata)
