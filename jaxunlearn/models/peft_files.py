"""Adapter folders in the format of the PEFT library: `adapter_config.json` and `adapter_model.safetensors`.

PEFT names the adapter of a projection after the projection, `base_model.model.<its name>.lora_A.weight`, and stores it
the way torch stores a linear layer, transposed. Settings that would change the result and are not implemented here are
refused by name.

Reference: https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.files import new_folder
from jaxunlearn.models.checkpoint_files import stored_header
from jaxunlearn.models.config import DecoderConfig
from jaxunlearn.models.functional import Decoder, as_model
from jaxunlearn.models.lora import LoRA, adapter_specs, put
from jaxunlearn.models.reading import read_leaves
from jaxunlearn.models.segments import join_layers
from jaxunlearn.models.specs import at, param_specs
from jaxunlearn.sharding import on_host
from jaxunlearn.types import Model, Params

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# What PEFT can ask for beyond plain LoRA, and the values that ask for nothing.
PLAIN = {
    "bias": ("none",),
    "use_dora": (False,),
    "modules_to_save": (None, []),
    "layers_to_transform": (None,),
    "layers_pattern": (None, [], ""),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layer_replication": (None,),
    "fan_in_fan_out": (False,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
    "lora_bias": (False,),
    "use_qalora": (False,),
    "alora_invocation_tokens": (None,),
}


def save_adapters(folder: str | Path, model: Model, params: Params, *, base: str | None = None) -> Path:
    """Write the adapters of a decoder as a folder that torch `peft` loads onto the same base model.

    Args:
        folder: the folder to make; it must not exist, or be empty.
        model: a decoder with adapters.
        params: its parameters, adapters included.
        base: name or folder of the base model, for `base_model_name_or_path`; default the one it was loaded from.

    Raises:
        ValueError: when the model has no adapters, or some whose base weights were changed with them (`fila`, `vila`),
            or unlearning layers beside them.
    """
    decoder = model.source
    if not isinstance(decoder, Decoder) or decoder.lora is None:
        raise ValueError("save_adapters() takes a decoder with LoRA adapters; models.add_lora adds them")
    if decoder.lora.residual:
        raise ValueError(
            "these adapters were initialised out of the base weights, which changed with them, so they mean nothing on "
            "the original base; write the merged model with models.save"
        )
    if decoder.unlearning_rank is not None:
        raise ValueError(
            "a PEFT folder has no place for the unlearning layers these adapters were trained beside; keep all "
            "parameters with orbax"
        )
    modules = _modules(decoder.config)
    if fused := [name for name in decoder.lora.targets if modules.get(name, "") is None]:
        raise ValueError(
            f"a {decoder.config.model_type!r} checkpoint stores {', '.join(fused)} fused with others, and PEFT has no "
            "adapter for a part of a matrix; write the merged model with models.save"
        )
    params = join_layers(params)
    tensors: dict[str, np.ndarray] = {}
    for spec in adapter_specs(decoder, params):
        for layer, name in enumerate(spec.hf_names):
            tensors[PREFIX + name] = np.ascontiguousarray(on_host(at(params, spec)[layer]).T)
    base = base or (None if decoder.folder is None else str(decoder.folder))
    with new_folder(folder) as out:
        if out is not None:
            from safetensors.numpy import save_file

            save_file(tensors, out / WEIGHTS, metadata={"format": "pt"})
            (out / CONFIG).write_text(
                json.dumps(_config(decoder.lora, modules, base), indent=2) + "\n", encoding="utf-8"
            )
    return Path(folder)


def load_adapters(folder: str | Path, model: Model, params: Params, *, dtype: Any = None) -> tuple[Model, Params]:
    """The decoder with the adapters of a PEFT folder.

    Args:
        folder: holds `adapter_config.json` and `adapter_model.safetensors`.
        model: the decoder that they were trained on, without adapters.
        params: its parameters, layers in one stack.
        dtype: of the adapters; None for the stored one.

    Raises:
        ValueError: naming the file, when it is missing or damaged, asks for something that is not implemented, or its
            tensors do not fit the model (all are listed).
    """
    folder = Path(folder)
    decoder = model.source
    if not isinstance(decoder, Decoder) or decoder.lora is not None:
        raise ValueError("load_adapters() takes a decoder without adapters, as models.load returns it")

    decoder = replace(decoder, lora=_read(folder / CONFIG, _modules(decoder.config)))
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder / WEIGHTS} does not exist; adapters are read from safetensors only")
    found = {name.removeprefix(PREFIX): tensor for name, tensor in stored_header(folder / WEIGHTS).items()}
    specs = adapter_specs(decoder, params)
    wanted = {name: spec.hf_shape for spec in specs for name in spec.hf_names}
    problems = [f"missing {name}" for name in wanted if name not in found]
    problems += [f"unexpected {name}" for name in found if name not in wanted]
    problems += [
        f"{name} is {list(found[name].shape)}, the model and rank ask for {list(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name].shape != shape
    ]
    if problems:
        more = f" ... and {len(problems) - 12} more" if len(problems) > 12 else ""
        raise ValueError(f"the adapters in {folder / WEIGHTS} do not fit the model: {'; '.join(problems[:12])}{more}")
    leaves = read_leaves(specs, found, decoder.mesh, dtype, folder)
    return as_model(decoder), put(params, {spec.path: leaf for spec, leaf in zip(specs, leaves, strict=True)})


def _modules(config: DecoderConfig) -> dict[str, str | None]:
    """What Hugging Face calls the projections that a model has; None for those it stores fused with others."""
    kernels = [spec for spec in param_specs(config) if spec.path[-1] == "kernel" and spec.path[0] == "layers"]
    return {spec.path[-2]: spec.hf_name.split(".")[-2] if spec.fused is None else None for spec in kernels}


def _config(lora: LoRA, modules: dict[str, str | None], base: str | None) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "use_rslora": lora.rank_stabilised,
        "lora_dropout": 0.0,
        "target_modules": [modules[name] for name in lora.targets if name in modules],
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
    }


def _read(path: Path, modules: dict[str, str | None]) -> LoRA:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        rank, alpha, targets = int(config["r"]), float(config["lora_alpha"]), config["target_modules"]
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; point to a PEFT adapter folder") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the configuration of a LoRA adapter: {error!r}") from None
    odd = [f"{key}={config[key]!r}" for key, plain in PLAIN.items() if key in config and config[key] not in plain]
    if config.get("peft_type") != "LORA":
        odd.append(f"peft_type={config.get('peft_type')!r}")
    known = {theirs: ours for ours, theirs in modules.items() if theirs is not None}
    if targets == "all-linear":
        targets = list(known)
    # PEFT matches the ends of module names; only names of projections mean the same here.
    names = [targets] if isinstance(targets, str) else list(targets)
    ends = [str(name).rsplit(".", 1)[-1] for name in names]
    odd += [f"target_modules {name!r}" for name, end in zip(names, ends, strict=True) if end not in known]
    if odd:
        raise ValueError(f"{path} asks for what is not implemented: {', '.join(odd)}; merge it in torch and save that")
    return LoRA(rank, alpha, tuple({known[end] for end in ends}), bool(config.get("use_rslora", False)))
