"""Saving a decoder as a Hugging Face checkpoint that PyTorch's transformers loads unchanged.

Tensors go out one at a time (`models.tensor_file`): no more than the one being written is on the host, and what is
transposed or fused for it. Everything is written into a temporary folder beside the target, which is renamed at the
end, so a target folder is either complete or absent, and nothing that exists is overwritten.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxunlearn.files import new_folder, refuse_folder
from jaxunlearn.models.checkpoint_files import INDEX, SINGLE
from jaxunlearn.models.config import DecoderConfig
from jaxunlearn.models.functional import Decoder
from jaxunlearn.models.hf_config import to_json
from jaxunlearn.models.lora import merge_lora
from jaxunlearn.models.restoring import restored
from jaxunlearn.models.segments import join_layers
from jaxunlearn.models.specs import ParamSpec, at, param_specs
from jaxunlearn.models.streaming import transposed
from jaxunlearn.models.tensor_file import Row, write_tensors
from jaxunlearn.models.tokenization import GENERATION_CONFIG, copy_tokenizer
from jaxunlearn.sharding import on_host
from jaxunlearn.types import Model, Params

Text = str | Callable[[Path], str]


class _Tensor(NamedTuple):
    """One tensor to write: its parameter, or the several that are fused in it, and which layer of theirs."""

    specs: list[ParamSpec]
    layer: int | None
    name: str
    row: Row


def save(
    folder: str | Path,
    model: Model,
    params: Params,
    *,
    tokenizer: Any = None,
    card: str | None = None,
    extra: Mapping[str, Text] | None = None,
    max_shard_size: int | str = "5GB",
) -> Path:
    """Write `params` as a Hugging Face checkpoint folder.

    Args:
        folder: the folder to make; it must not exist, or be empty.
        model: the model that `load` or `init` returned.
        params: its parameters, as trained or unlearned; low-rank adapters are merged into the weights, those of the
            checkpoint itself where the model keeps them in few bits.
        tokenizer: a Hugging Face tokenizer, or a folder whose tokenizer files and `generation_config.json` are
            copied unchanged; None for the folder the model was loaded from.
        card: text of the README.md to put beside the weights.
        extra: further text files (a run's record): name to content, or to a function that gives it once the weights
            are written, from the folder they are in until the end.
        max_shard_size: largest size of one weight file (a single tensor may exceed it), in bytes or as "500MB", "5GB"
            or "2GiB".

    Returns:
        The folder.

    Raises:
        ValueError: when the folder holds something already, the model is not one of this library's decoders or has
            unlearning layers or switches that its family cannot express, a parameter is missing or of a wrong shape,
            or the size is not one.
    """
    target = Path(folder)
    decoder = model.source
    if not isinstance(decoder, Decoder):
        raise ValueError("save() writes decoders made by models.load or models.init; keep other models with orbax")
    if decoder.unlearning_rank is not None:
        raise ValueError(
            "a Hugging Face checkpoint has no place for unlearning layers, and a nonlinear layer cannot be merged into "
            "the weights. Keep all parameters with orbax, or those layers alone, curvature.partition(params, "
            "models.is_unlearning_layer)[0], with safetensors beside the original folder; or train LoRA adapters "
            "(models.add_lora), which merge"
        )
    refuse_folder(target)
    limit = byte_size(max_shard_size)
    params = join_layers(params)
    params = merge_lora(model, params)[1] if decoder.frozen_bits is None else restored(decoder, params)
    _check(decoder.config, params)
    tokenizer = decoder.folder if tokenizer is None else tokenizer
    if isinstance(tokenizer, str | Path) and not Path(tokenizer).is_dir():
        raise ValueError(f"tokenizer={str(tokenizer)!r} is not a folder; pass a tokenizer or a folder that holds one")

    config = to_json(decoder.config, at(params, param_specs(decoder.config)[0]).dtype.name)

    with new_folder(target) as out:
        _write_weights(out, decoder, params, limit)
        if out is not None:
            (out / "config.json").write_text(config, encoding="utf-8")
            _write_rest(out, decoder, tokenizer, {"README.md": card, **(extra or {})})
    return target


def byte_size(size: int | str, name: str = "max_shard_size") -> int:
    """A number of bytes from itself or from text such as "500MB" (10^6 each) or "2GiB" (2^30).

    Raises:
        ValueError: when the argument (or flag) `name` is neither, or below 1.

    Example:
        >>> byte_size("1.5kB"), byte_size("2GiB") == 2**31, byte_size(7)
        (1500, True, 7)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", str(size).strip().lower())
    bytes_ = 0
    if found is not None:
        number, prefix, binary = found.groups()
        bytes_ = int(float(number) * (1024 if binary else 1000) ** " kmgt".index(prefix or " "))
    if bytes_ < 1:
        given = f"{name} {size}" if name.startswith("--") else f"{name}={size!r}"
        raise ValueError(f"{given}: give bytes, or a size such as '500MB', '5GB' or '2GiB'")
    return bytes_


def _check(config: DecoderConfig, params: Params) -> None:
    problems = []
    for spec in param_specs(config):
        try:
            shape = at(params, spec).shape
        except (KeyError, TypeError):
            problems.append(f"{'/'.join(spec.path)} is missing")
            continue
        if shape != spec.shape:
            problems.append(f"{'/'.join(spec.path)} is {list(shape)}, the model has {list(spec.shape)}")
    if problems:
        raise ValueError("these parameters do not fit the model: " + "; ".join(problems))


def _write_weights(folder: Path | None, decoder: Decoder, params: Params, max_shard_size: int) -> None:
    shards = list(_shards(decoder.config, params, max_shard_size, dict(decoder.narrower)))
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map.update({tensor.name: name for tensor in shard})
        # Every process takes part in collecting a tensor that is split over several.
        known = {tensor.name: tensor for tensor in shard}
        read = partial(_named, params, known)
        write_tensors(None if folder is None else folder / name, {one: known[one].row for one in known}, read)
    if folder is not None and len(shards) > 1:
        total = sum(tensor.row.bytes for shard in shards for tensor in shard)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(
    config: DecoderConfig, params: Params, max_shard_size: int, narrower: Mapping[str, str]
) -> Iterator[list[_Tensor]]:
    parts: dict[str, list[tuple[ParamSpec, int | None]]] = {}
    for spec in param_specs(config):
        for layer, name in enumerate(spec.hf_names):
            parts.setdefault(name, []).append((spec, layer if spec.stacked else None))
    tensors = []
    for name, beside in parts.items():
        specs, (layer, *_) = zip(*beside, strict=True)
        dtype = narrower.get(name) or jnp.result_type(*(at(params, spec).dtype for spec in specs)).name
        tensors.append(_Tensor(list(specs), layer, name, Row(dtype, specs[0].hf_shape)))
    shard: list[_Tensor] = []
    size = 0
    for tensor in tensors:
        if shard and size + tensor.row.bytes > max_shard_size:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += tensor.row.bytes
    yield shard


def _named(params: Params, tensors: Mapping[str, _Tensor], name: str) -> np.ndarray:
    return _host(params, tensors[name])


def _host(params: Params, tensor: _Tensor) -> np.ndarray:
    parts = [_layer(at(params, spec), tensor.layer, spec) for spec in tensor.specs]
    whole = parts[0]
    if (fused := tensor.specs[0].fused) is not None:
        rest = whole.shape[1:]
        whole = np.empty((fused.groups, fused.width, *rest), np.result_type(*parts))
        for spec, part in zip(tensor.specs, parts, strict=True):
            whole[:, spec.fused.start : spec.fused.stop] = part.reshape(fused.groups, -1, *rest)
        whole = whole.reshape(-1, *rest)
    return whole.astype(jnp.dtype(tensor.row.dtype), copy=False)


def _layer(leaf: Array, layer: int | None, spec: ParamSpec) -> np.ndarray:
    part = on_host(leaf if layer is None else leaf[layer])
    return transposed(part) if spec.transposed else np.ascontiguousarray(part)


def _write_rest(folder: Path, decoder: Decoder, tokenizer: Any, texts: Mapping[str, Text | None]) -> None:
    if isinstance(tokenizer, str | Path):
        copy_tokenizer(Path(tokenizer), folder)
    elif tokenizer is not None:
        tokenizer.save_pretrained(folder)
    if decoder.folder is not None and not (folder / GENERATION_CONFIG).exists():
        source = decoder.folder / GENERATION_CONFIG
        if source.is_file():
            shutil.copyfile(source, folder / GENERATION_CONFIG)
    for name, text in texts.items():
        if text is not None:
            (folder / name).write_text(text(folder) if callable(text) else text, encoding="utf-8")
