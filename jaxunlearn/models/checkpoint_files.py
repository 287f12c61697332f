"""The safetensors files of a checkpoint folder: which tensor is where, and slices of them.

safetensors (https://huggingface.co/docs/safetensors) is a header of names, shapes and byte ranges followed by raw
data, so any slice can be read alone and nothing in the file is executed. Pickle files (`.bin`, `.pt`) can run code
when opened and are refused.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class StoredTensor(NamedTuple):
    """One tensor of a checkpoint.

    Attributes:
        file: the safetensors file it is in.
        name: its name there.
        shape: its shape there.
        dtype: its element type as safetensors writes it, such as "BF16".
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        """The part of the tensor at `index`; only those bytes are read."""
        from safetensors import safe_open

        with safe_open(self.file, framework="numpy") as tensors:
            return tensors.get_slice(self.name)[index]


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint in `folder`, from one file or from an index of shards.

    Raises:
        ValueError: naming the file, when there is no safetensors file, the index is unreadable, points outside the
            folder or to a missing file or tensor, or a file is damaged.
    """
    if (folder / SINGLE).is_file():
        return stored_header(folder / SINGLE)
    if not (folder / INDEX).is_file():
        raise ValueError(_nothing_to_load(folder))
    weight_map = _weight_map(folder / INDEX)
    shards = {name: stored_header(folder / name) for name in sorted(set(weight_map.values()))}
    absent = [f"{tensor} ({file})" for tensor, file in weight_map.items() if tensor not in shards[file]]
    if absent:
        raise ValueError(f"{folder / INDEX} lists tensors that their files lack: {', '.join(absent[:8])}")
    return {tensor: shards[file][tensor] for tensor, file in weight_map.items()}


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        entries = dict(weight_map)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index} is not a safetensors index with a weight_map: {error!r}") from None
    for tensor, name in entries.items():
        if not isinstance(name, str) or Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise ValueError(
                f"{index}: {tensor!r} points to {name!r}; an index may only name .safetensors files of its own folder"
            )
        if not (index.parent / name).is_file():
            raise ValueError(f"{index.parent / name} is listed in {index.name} but does not exist; copy it there")
    return entries


def stored_header(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of one safetensors file.

    Raises:
        ValueError: naming the file, when it is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            return {
                name: StoredTensor(file, name, tuple(part.get_shape()), part.get_dtype())
                for name, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is not a readable safetensors file ({error}); fetch or copy it again") from None


def _nothing_to_load(folder: Path) -> str:
    pickles: list[Any] = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if pickles:
        return (
            f"{folder} holds only pickle weights ({', '.join(pickles[:4])}), which can run code when opened; convert "
            "them with AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder) in PyTorch"
        )
    return f"{folder} holds neither {SINGLE} nor {INDEX}; point to a folder with safetensors weights"
