"""Loading a checkpoint: configuration, then a check of every name and shape, then slices straight onto the devices.

What headers can tell is checked before any weight is read, and reported together; weights that are not finite are found
while reading (`models.reading`).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from jaxunlearn.models.checkpoint_files import FLOATS, Contents, StoredTensor, contents, conversion, listed
from jaxunlearn.models.config import DecoderConfig
from jaxunlearn.models.families import FAMILIES
from jaxunlearn.models.functional import HEAD_ROWS, Decoder, as_model
from jaxunlearn.models.hf_config import read_config
from jaxunlearn.models.reading import read_leaves, widest
from jaxunlearn.models.specs import ParamSpec, nest, param_specs
from jaxunlearn.sharding import check_axes
from jaxunlearn.types import Model, Params

# Old checkpoints store buffers that are computed from the configuration.
DERIVED = (".rotary_emb.inv_freq", ".masked_bias", ".attn.bias", ".attention.bias")


def load(
    folder: str | Path,
    *,
    mesh: Mesh | None = None,
    dtype: Any = None,
    attention: str = "auto",
    remat: str = "dots",
    head_rows: int | None = HEAD_ROWS,
    freeze_bits: int | None = None,
) -> tuple[Model, Params]:
    """A checkpoint of any family of `models.families` as a model and its parameters.

    Args:
        folder: a folder with `config.json` and safetensors weights, or a model id of the Hugging Face hub.
        mesh: devices to lay the parameters out on (`jaxunlearn.sharding.make_mesh`); None for the default device.
        dtype: element type of the parameters; None for the stored one.
        attention: "auto" (blockwise above 512 tokens), "xla", "blockwise", or on GPUs and TPUs "fused".
        remat: what a block keeps for its backward pass: "dots", "full" (least memory) or "none" (least time).
        head_rows: rows of logits that losses and curvature hold at once on each device; None for all of them.
        freeze_bits: 8 or 4 rounds the projections to that many bits (`models.quantised`), for adapters to be trained
            beside them (`models.add_lora`); None keeps them as they are.

    Returns:
        The model (pure functions, hashable) and its parameters (a nested dictionary of arrays, layers stacked).

    Raises:
        ValueError: one message naming the file and what to do, when the folder is not a checkpoint, asks for a
            feature that is not implemented, files are damaged, or tensors are missing, unexpected, of a wrong shape or
            not finite (all are listed); or `freeze_bits` is neither 8 nor 4.
    """
    folder = resolve(folder)
    config = read_config(folder)
    specs = param_specs(config)
    tensors = stored(folder, config)
    if mesh is not None:
        check_axes(mesh, [(spec.axes, spec.shape) for spec in specs])
    decoder = Decoder(config, mesh, attention, remat, head_rows, frozen_bits=freeze_bits, folder=folder)
    if dtype is None:
        decoder = replace(decoder, narrower=_narrower(specs, tensors))
    rows = param_specs(config, frozen_bits=freeze_bits)
    return as_model(decoder), nest(rows, read_leaves(specs, tensors, mesh, dtype, folder, freeze_bits))


def stored(folder: Path, config: DecoderConfig) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint, all there and of the right shapes.

    Raises:
        ValueError: listing what is wrong with them.
    """
    found = contents(folder)
    found = found._replace(tensors=_renamed(config, found.tensors))
    _check(folder, config, param_specs(config), found)
    return found.tensors


def resolve(folder: str | Path, *, weights: bool = True) -> Path:
    """The local folder of a checkpoint: the path itself, or a download of a hub id, with or without its weights.

    Raises:
        ValueError: when it is neither a folder nor a hub id that can be fetched.
    """
    path = Path(folder)
    if path.is_dir():
        return path
    text = str(folder)
    if path.exists() or path.is_absolute() or text.startswith(".") or text.count("/") != 1:
        near = get_close_matches(path.name, [one.name for one in path.absolute().parent.glob("*/")], n=1)
        hint = f" (did you mean {path.with_name(near[0])}?)" if near else ""
        raise ValueError(f"{text} is not a folder{hint}; give a checkpoint folder, or a hub id such as 'owner/name'")
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.model", "*.jinja", "*.txt"]
        fetched = Path(snapshot_download(text, allow_patterns=patterns + ["*.safetensors"] * weights))
    except Exception as error:
        raise ValueError(
            f"{text!r} is neither a folder here nor a model that could be fetched from the hub: {error}"
        ) from error
    if weights and not any(fetched.glob("*.safetensors")):
        raise ValueError(
            f"{text!r} has no safetensors weights on the hub, and pickle weights can run code when opened; if you "
            f"trust them, convert them where PyTorch is installed: {conversion(text)}"
        )
    return fetched


def dtypes_of(folder: Path, config: DecoderConfig) -> Callable[[ParamSpec], Any]:
    """The element type that each parameter will have: as stored, or where no weights are there, as config.json says.

    Raises:
        ValueError: what `stored` finds wrong.
    """
    if not any(folder.glob("*.safetensors")):
        said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        dtype = jnp.dtype(said.get("dtype") or said.get("torch_dtype") or "float32")
        return lambda spec: dtype
    tensors = stored(folder, config)
    return lambda spec: widest([tensors[name] for name in spec.hf_names])


def _renamed(config: DecoderConfig, tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """`tensors` under the names of the family, where a checkpoint has other ones for the same."""
    out = dict(tensors)
    for old, new in FAMILIES[config.model_type].aliases:
        for name in tensors:
            if name.startswith(old) and (known := new + name.removeprefix(old)) not in tensors:
                out[known] = out.pop(name)
    return out


def _check(folder: Path, config: DecoderConfig, specs: tuple[ParamSpec, ...], found: Contents) -> None:
    tensors = found.tensors
    wanted = {name: spec.hf_shape for spec in specs for name in spec.hf_names}
    # A tied head may be stored a second time; the embedding table is the one that counts.
    allowed = wanted.keys() | {f"{FAMILIES[config.model_type].stem('lm_head')}.weight"}
    missing = [name for name in wanted if name not in tensors and name not in found.unread]
    extra = [name for name in tensors if name not in allowed and not name.endswith(DERIVED)]
    wrong = [
        f"{name} is {list(tensors[name].shape)}, config.json asks for {list(shape)}"
        for name, shape in wanted.items()
        if name in tensors and tensors[name].shape != shape
    ]
    stored = {name: tensors[name].dtype for name in wanted if name in tensors}
    odd = [f"{name} is {dtype}" for name, dtype in stored.items() if dtype not in FLOATS]
    problems = [
        f"{what} ({len(names)}): {listed(names)}"
        for what, names in (
            ("missing", missing if tensors or not found.problems else []),
            ("unexpected", extra),
            ("wrong shape", wrong),
            ("not a floating-point type, quantised weights are not implemented", odd),
        )
        if names
    ]
    said = list(found.problems)
    if problems:
        said.append(
            f"the tensors in {folder} do not fit its config.json: {'; '.join(problems)}; use the config.json that "
            "belongs to these weights, or fetch both again"
        )
    if said:
        raise ValueError("; ".join(said))


def _narrower(specs: tuple[ParamSpec, ...], tensors: Mapping[str, StoredTensor]) -> tuple[tuple[str, str], ...]:
    """Tensors, by name, whose dtype is narrower than that of the parameter whose layers they are one of."""
    each = ((name, tensors[name], spec) for spec in specs for name in spec.hf_names)
    wide = {spec.path: widest([tensors[name] for name in spec.hf_names]) for spec in specs}
    found = {name: FLOATS[tensor.dtype] for name, tensor, spec in each if FLOATS[tensor.dtype] != wide[spec.path]}
    return tuple(found.items())
