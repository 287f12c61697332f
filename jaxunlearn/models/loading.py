"""Loading a checkpoint: configuration, then a check of every name and shape, then slices straight onto the devices.

`jax.make_array_from_callback` asks for the part of each array that a local device holds, and exactly that part is
read from the file. No process ever holds a whole model that is split over several.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from jaxunlearn.models.checkpoint_files import FLOATS, StoredTensor, stored_tensors
from jaxunlearn.models.config import read_config
from jaxunlearn.models.functional import HEAD_ROWS, Decoder, as_model
from jaxunlearn.models.specs import ParamSpec, nest, param_specs
from jaxunlearn.sharding import named_sharding
from jaxunlearn.types import Model, Params

# Old checkpoints store buffers that are computed from the configuration.
DERIVED = (".rotary_emb.inv_freq", ".masked_bias", ".attn.bias")


def load(
    folder: str | Path,
    *,
    mesh: Mesh | None = None,
    dtype: Any = None,
    attention: str = "auto",
    remat: str = "dots",
    head_rows: int | None = HEAD_ROWS,
) -> tuple[Model, Params]:
    """A Llama checkpoint as a model and its parameters.

    Args:
        folder: a folder with `config.json` and safetensors weights, or a model id of the Hugging Face hub.
        mesh: devices to lay the parameters out on (`jaxunlearn.sharding.make_mesh`); None for the default device.
        dtype: element type of the parameters; None for the stored one.
        attention: "auto" (blockwise above 512 tokens), "xla" or "blockwise".
        remat: what a block keeps for its backward pass: "dots", "full" (least memory) or "none" (least time).
        head_rows: rows of logits that losses and curvature hold at once on each device; None for all of them.

    Returns:
        The model (pure functions, hashable) and its parameters (a nested dictionary of arrays, layers stacked).

    Raises:
        ValueError: one message naming the file and what to do, when the folder is not a checkpoint, asks for a
            feature that is not implemented, or tensors are missing, unexpected or of a wrong shape (all are listed).
    """
    folder = resolve(folder)
    config = read_config(folder)
    decoder = Decoder(config, mesh, attention, remat, head_rows, folder=folder)
    specs = param_specs(config)
    tensors = stored_tensors(folder)
    _check(folder, specs, tensors)
    leaves = [read_leaf(spec, [tensors[name] for name in spec.hf_names], mesh, dtype) for spec in specs]
    return as_model(decoder), nest(specs, leaves)


def resolve(folder: str | Path) -> Path:
    """The local folder of a checkpoint: the path itself, or a download of a hub id.

    Raises:
        ValueError: when it is neither a folder nor a hub id that can be fetched.
    """
    path = Path(folder)
    if path.is_dir():
        return path
    text = str(folder)
    if path.exists() or path.is_absolute() or text.startswith(".") or text.count("/") != 1:
        raise ValueError(f"{text} is not a folder; give a checkpoint folder, or a hub id such as 'owner/name'")
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
        return Path(snapshot_download(text, allow_patterns=patterns))
    except Exception as error:
        raise ValueError(
            f"{text!r} is neither a folder here nor a model that could be fetched from the hub: {error}"
        ) from error


def _check(folder: Path, specs: tuple[ParamSpec, ...], tensors: dict[str, StoredTensor]) -> None:
    wanted = {name: spec.hf_shape for spec in specs for name in spec.hf_names}
    # A tied head may be stored a second time; the embedding table is the one that counts.
    allowed = wanted.keys() | {"lm_head.weight"}
    missing = [name for name in wanted if name not in tensors]
    extra = [name for name in tensors if name not in allowed and not name.endswith(DERIVED)]
    wrong = [
        f"{name} is {list(tensors[name].shape)}, config.json asks for {list(shape)}"
        for name, shape in wanted.items()
        if name in tensors and tensors[name].shape != shape
    ]
    stored = {name: tensors[name].dtype for name in wanted if name in tensors}
    odd = [f"{name} is {dtype}" for name, dtype in stored.items() if dtype not in FLOATS]
    problems = [
        f"{what} ({len(names)}): {', '.join(names[:12])}{' ...' if len(names) > 12 else ''}"
        for what, names in (
            ("missing", missing),
            ("unexpected", extra),
            ("wrong shape", wrong),
            ("not a floating-point type, quantised weights are not implemented", odd),
        )
        if names
    ]
    if problems:
        raise ValueError(f"the tensors in {folder} do not fit its config.json: " + "; ".join(problems))


def read_leaf(spec: ParamSpec, tensors: list[StoredTensor], mesh: Mesh | None, dtype: Any) -> Array:
    """One parameter from its tensors in a checkpoint, of which each process reads only its own parts."""
    stored = jnp.result_type(*(jnp.dtype(FLOATS[tensor.dtype]) for tensor in tensors))
    dtype = jax.dtypes.canonicalize_dtype(stored if dtype is None else dtype)

    def read(index: tuple[slice, ...]) -> np.ndarray:
        if not spec.stacked:
            return _part(spec, tensors[0], index).astype(dtype)
        layers = range(*index[0].indices(len(tensors)))
        return np.stack([_part(spec, tensors[layer], index[1:]).astype(dtype) for layer in layers])

    if mesh is None:
        return jnp.asarray(read((slice(None),) * len(spec.shape)))
    return jax.make_array_from_callback(spec.shape, named_sharding(mesh, spec.axes, spec.shape), read)


def _part(spec: ParamSpec, tensor: StoredTensor, index: tuple[slice, ...]) -> np.ndarray:
    return np.ascontiguousarray(tensor.read(index[::-1]).T) if spec.transposed else tensor.read(index)
