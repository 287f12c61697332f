"""The safetensors files of a checkpoint folder: which tensor is where, and slices of them.

safetensors (https://huggingface.co/docs/safetensors) is a header of names, shapes and byte ranges followed by raw
data, so any slice can be read alone and nothing in the file is executed. Pickle files (`.bin`, `.pt`) can run code
when opened and are refused.
"""

import json
import math
import shlex
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
POINTER = b"version https://git-lfs"


class StoredTensor(NamedTuple):
    """One tensor of a checkpoint.

    Attributes:
        file: the safetensors file it is in.
        name: its name there.
        shape: its shape there.
        dtype: its element type as safetensors writes it, such as "BF16".
        start: byte of the file at which its numbers begin.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    start: int

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return np.dtype(_numpy(self.dtype)).itemsize

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        """The part of the tensor at `index`; only those bytes are read.

        Raises:
            ValueError: when the file has become shorter since its header was read.
        """
        bounds = [one.indices(size)[:2] for one, size in zip(index, self.shape, strict=True)]
        whole_rows = all(bound == (0, size) for bound, size in zip(bounds[1:], self.shape[1:], strict=True))
        dtype = np.dtype(_numpy(self.dtype))
        try:
            if whole_rows and bounds:
                (first, last), row = bounds[0], math.prod(self.shape[1:])
                found = np.fromfile(
                    self.file, dtype, (last - first) * row, offset=self.start + first * row * self.itemsize
                )
                return found.reshape(last - first, *self.shape[1:])
            mapped = np.memmap(self.file, dtype, "r", self.start, self.shape)
            return np.array(mapped[tuple(slice(*bound) for bound in bounds)])
        except ValueError as error:
            raise ValueError(f"{self.file} ended while {self.name} was read; fetch or copy it again") from error


class Contents(NamedTuple):
    """What a checkpoint folder holds.

    Attributes:
        tensors: every tensor of the files that could be read.
        problems: what is wrong with files and index, each with what to do.
        unread: names that the index places in files that could not be read.
    """

    tensors: dict[str, StoredTensor]
    problems: list[str]
    unread: set[str]


def contents(folder: Path) -> Contents:
    """Every tensor of the checkpoint in `folder`, from one file or from an index of shards, and all that is wrong."""
    if (folder / SINGLE).is_file():
        return _whole(folder / SINGLE)
    if not (folder / INDEX).is_file():
        return Contents({}, [_nothing_to_load(folder)], set())
    weight_map, problems = _weight_map(folder / INDEX)
    shards: dict[str, dict[str, StoredTensor]] = {}
    for name in sorted(set(weight_map.values())):
        if not (folder / name).is_file():
            problems.append(f"{folder / name} is listed in {INDEX} but does not exist; copy it there")
            continue
        found = _whole(folder / name)
        problems += found.problems
        if not found.problems:
            shards[name] = found.tensors
    here = {tensor: name for tensor, name in weight_map.items() if name in shards}
    absent = [f"{tensor} ({name})" for tensor, name in here.items() if tensor not in shards[name]]
    if absent:
        problems.append(f"{folder / INDEX} lists tensors that their files lack: {listed(absent)}")
    twice = [
        f"{tensor} ({name} and {weight_map[tensor]})"
        for name, held in shards.items()
        for tensor in held
        if weight_map.get(tensor, name) != name and tensor in shards.get(weight_map[tensor], ())
    ]
    if twice:
        problems.append(f"tensors are in more than one file: {listed(twice)}; keep the one that {INDEX} names")
    tensors = {tensor: stored for held in shards.values() for tensor, stored in held.items()}
    tensors |= {tensor: shards[name][tensor] for tensor, name in here.items() if tensor in shards[name]}
    return Contents(tensors, problems, set(weight_map) - set(here))


def stored_header(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of one safetensors file.

    Raises:
        ValueError: naming the file, when it is missing or damaged.
    """
    found = _whole(file)
    if found.problems:
        raise ValueError(found.problems[0])
    return found.tensors


def listed(names: list[str]) -> str:
    """The first dozen of `names`."""
    return ", ".join(names[:12]) + (f" ... and {len(names) - 12} more" if len(names) > 12 else "")


def _whole(file: Path) -> Contents:
    from safetensors import SafetensorError, safe_open

    try:
        # The library checks that names, shapes and byte ranges fit each other and the file, but keeps the ranges.
        with safe_open(file, framework="numpy") as tensors:
            names = list(tensors.keys())
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(size))
        found = {
            name: StoredTensor(file, name, tuple(row["shape"]), row["dtype"], 8 + size + row["data_offsets"][0])
            for name, row in ((name, header[name]) for name in names)
        }
    except (SafetensorError, OSError) as error:
        problem = f"{file} is not a readable safetensors file ({error}); fetch or copy it again"
        if _begins(file, POINTER):
            problem = f"{file} is a Git LFS pointer and not the weights it stands for; run `git lfs pull` in its folder"
        return Contents({}, [problem], set())
    return Contents(found, [], set())


def _begins(file: Path, first: bytes) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(len(first)) == first
    except OSError:
        return False


def _numpy(dtype: str) -> Any:
    import jax.numpy as jnp

    return jnp.dtype(FLOATS[dtype])


def _weight_map(index: Path) -> tuple[dict[str, str], list[str]]:
    """Name of a tensor to file, of the entries that are as they should be, and what is wrong with the others."""
    repeated: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen = dict(pairs)
        if len(seen) < len(pairs):
            repeated.extend(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        return seen

    try:
        entries = dict(json.loads(index.read_text(encoding="utf-8"), object_pairs_hook=unique)["weight_map"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return {}, [f"{index} is not a safetensors index with a weight_map: {error!r}"]
    problems = [f"{index} lists {listed(repeated)} more than once"] if repeated else []
    good: dict[str, str] = {}
    elsewhere: dict[str, list[str]] = {}
    for tensor, name in entries.items():
        if _plain_name(name):
            good[tensor] = name
        else:
            elsewhere.setdefault(repr(name), []).append(repr(tensor))
    problems += [
        f"{index} points to {name} for {listed(tensors)}; an index may only name .safetensors files of its own folder"
        for name, tensors in elsewhere.items()
    ]
    return good, problems


def _plain_name(name: Any) -> bool:
    return (
        isinstance(name, str)
        and Path(name).name == name
        and not set(name) & {"\\", "\0"}
        and name.endswith(".safetensors")
    )


def _nothing_to_load(folder: Path) -> str:
    pickles: list[Any] = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if pickles:
        return (
            f"{folder} holds only pickle weights ({', '.join(pickles[:4])}), which can run code when opened; if you "
            f"trust them, convert them where PyTorch is installed: {conversion(str(folder))}"
        )
    others = sorted(file.name for file in folder.glob("*.safetensors"))
    if others:
        return (
            f"{folder} holds {listed(others)}, but neither {SINGLE} nor {INDEX}, which says what is in which file; "
            "copy that there too, or weights in the layout of transformers"
        )
    return f"{folder} holds neither {SINGLE} nor {INDEX}; point to a folder with safetensors weights"


def conversion(source: str) -> str:
    """The command that writes the model and tokenizer of `source` as safetensors beside it."""
    target = f"{Path(source).name}-safetensors"
    return (
        'python -c "import sys, transformers as t; a, b = sys.argv[1:]; '
        "t.AutoModelForCausalLM.from_pretrained(a).save_pretrained(b); "
        f't.AutoTokenizer.from_pretrained(a).save_pretrained(b)" {shlex.quote(source)} {shlex.quote(target)}'
    )
