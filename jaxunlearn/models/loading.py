"""Loading a checkpoint: configuration, then a check of every name and shape, then slices straight onto the devices.

`jax.make_array_from_callback` asks for the part of each array that a local device holds, and exactly that part is
read from the file. No process ever holds a whole model that is split over several. What headers can tell is checked
before any weight is read, and reported together; weights that are not finite are found while reading.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from jaxunlearn.models.checkpoint_files import FLOATS, Contents, StoredTensor, contents, conversion, listed
from jaxunlearn.models.config import DecoderConfig
from jaxunlearn.models.families import FAMILIES
from jaxunlearn.models.functional import HEAD_ROWS, Decoder, as_model
from jaxunlearn.models.hf_config import read_config
from jaxunlearn.models.layer_specs import Fused
from jaxunlearn.models.specs import ParamSpec, nest, param_specs
from jaxunlearn.sharding import named_sharding
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
) -> tuple[Model, Params]:
    """A checkpoint of any family of `models.families` as a model and its parameters.

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
            feature that is not implemented, files are damaged, or tensors are missing, unexpected, of a wrong shape or
            not finite (all are listed).
    """
    folder = resolve(folder)
    config = read_config(folder)
    specs = param_specs(config)
    found = contents(folder)
    found = found._replace(tensors=_renamed(config, found.tensors))
    _check(folder, config, specs, found)
    decoder = Decoder(config, mesh, attention, remat, head_rows, folder=folder)
    if dtype is None:
        decoder = replace(decoder, narrower=_narrower(specs, found.tensors))
    return as_model(decoder), nest(specs, read_leaves(specs, found.tensors, mesh, dtype, folder))


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
        fetched = Path(snapshot_download(text, allow_patterns=patterns))
    except Exception as error:
        raise ValueError(
            f"{text!r} is neither a folder here nor a model that could be fetched from the hub: {error}"
        ) from error
    if not any(fetched.glob("*.safetensors")):
        raise ValueError(
            f"{text!r} has no safetensors weights on the hub, and pickle weights can run code when opened; if you "
            f"trust them, convert them where PyTorch is installed: {conversion(text)}"
        )
    return fetched


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
        said.append(f"the tensors in {folder} do not fit its config.json: " + "; ".join(problems))
    if said:
        raise ValueError("; ".join(said))


def read_leaves(
    specs: tuple[ParamSpec, ...], tensors: Mapping[str, StoredTensor], mesh: Mesh | None, dtype: Any, source: Path
) -> list[Array]:
    """The parameters of `specs` from the tensors of a checkpoint, of which each process reads only its own parts.

    Raises:
        ValueError: naming all tensors that hold NaN or infinity.
    """
    flawed: set[str] = set()
    leaves = [_read_leaf(spec, [tensors[name] for name in spec.hf_names], mesh, dtype, flawed) for spec in specs]
    if flawed:
        raise ValueError(
            f"the weights in {source} are not finite (NaN or infinity) in {len(flawed)} tensors: "
            f"{listed(sorted(flawed))}; training has diverged or the files are damaged: use another checkpoint"
        )
    return leaves


def _read_leaf(spec: ParamSpec, tensors: list[StoredTensor], mesh: Mesh | None, dtype: Any, flawed: set[str]) -> Array:
    dtype = jax.dtypes.canonicalize_dtype(_widest(tensors) if dtype is None else dtype)

    def part(tensor: StoredTensor, index: tuple[slice, ...]) -> np.ndarray:
        values = _part(spec, tensor, index)
        if not _finite(values):
            flawed.add(tensor.name)
        return values.astype(dtype, copy=False)

    def whole(index: tuple[slice, ...]) -> np.ndarray:
        if not spec.stacked:
            return np.ascontiguousarray(part(tensors[0], index))
        layers = range(*index[0].indices(len(tensors)))
        first = part(tensors[layers[0]], index[1:])
        out = np.empty((len(layers), *first.shape), dtype)
        for i, layer in enumerate(layers):
            out[i] = first if i == 0 else part(tensors[layer], index[1:])
        return out

    last: dict[str, np.ndarray] = {}

    def read(index: tuple[slice, ...]) -> np.ndarray:
        # Devices that hold the same part ask one after the other; its bytes are read once.
        if (key := str(index)) not in last:
            last.clear()
            last[key] = whole(index)
        return last[key]

    if mesh is None:
        return jnp.asarray(read((slice(None),) * len(spec.shape)))
    return jax.make_array_from_callback(spec.shape, named_sharding(mesh, spec.axes, spec.shape), read)


def _widest(tensors: list[StoredTensor]) -> Any:
    return jnp.result_type(*(jnp.dtype(FLOATS[tensor.dtype]) for tensor in tensors))


def _narrower(specs: tuple[ParamSpec, ...], tensors: Mapping[str, StoredTensor]) -> tuple[tuple[str, str], ...]:
    """Tensors, by name, whose dtype is narrower than that of the parameter whose layers they are one of."""
    each = ((name, tensors[name], spec) for spec in specs for name in spec.hf_names)
    widest = {spec.path: _widest([tensors[name] for name in spec.hf_names]) for spec in specs}
    found = {name: FLOATS[tensor.dtype] for name, tensor, spec in each if FLOATS[tensor.dtype] != widest[spec.path]}
    return tuple(found.items())


def _finite(values: np.ndarray) -> bool:
    """Whether all are finite. Types that NumPy only emulates are looked at as bits: the exponent is not all ones."""
    if values.dtype.itemsize != 2:
        return bool(np.isfinite(values).all())
    exponent = np.uint16(0x7C00 if values.dtype == np.float16 else 0x7F80)
    return not bool(((values.view(np.uint16) & exponent) == exponent).any())


def _part(spec: ParamSpec, tensor: StoredTensor, index: tuple[slice, ...]) -> np.ndarray:
    index = index[::-1] if spec.transposed else index
    part = tensor.read(index) if spec.fused is None else tensor.read_rows(_runs(spec.fused, index[0]), index[1:])
    return part.T if spec.transposed else part


def _runs(fused: Fused, index: slice) -> list[slice]:
    """The rows of a fused tensor that are the rows `index` of one of its parts."""
    size = fused.stop - fused.start
    low, high, _ = index.indices(fused.groups * size)
    runs = []
    for group in range(low // size, -(-high // size)):
        first = group * fused.width + fused.start - group * size
        runs.append(slice(first + max(low, group * size), first + min(high, (group + 1) * size)))
    return runs
