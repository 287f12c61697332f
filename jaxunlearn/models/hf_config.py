"""`config.json` of Hugging Face to `DecoderConfig` and back.

Configurations are read through `transformers.AutoConfig`, which brings old and new spellings of the rotary fields into
one form; code in a checkpoint is never run. On the way back every field that came along goes out again, as it was
spelled, changed only where the configuration was, and what was written is read once more: switches that the family
cannot express are an error, not another model.
"""

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from jaxunlearn.models.config import DecoderConfig
from jaxunlearn.models.families import FAMILIES, Family

UNSUPPORTED = {
    "quantization_config": "quantised weights are not implemented; save the model in float32 or bfloat16 first",
    "num_local_experts": "a mixture of experts is not implemented",
    "num_experts": "a mixture of experts is not implemented",
    "n_routed_experts": "a mixture of experts is not implemented",
    "is_encoder_decoder": "an encoder-decoder is not implemented",
}
NOT_KEPT = ("model_type", "transformers_version", "architectures", "dtype", "torch_dtype", "auto_map")


def from_hf(config: Any) -> DecoderConfig:
    """From a `transformers` configuration object.

    Raises:
        ValueError: naming the field, when the configuration asks for something that is not implemented.

    Example:
        >>> from transformers import Gemma2Config
        >>> config = DecoderConfig.from_hf(Gemma2Config(num_hidden_layers=2))
        >>> config.block, config.sliding_windows, config.final_logit_softcapping
        ('sandwich', (4096, None), 30.0)
    """
    _refuse(vars(config))
    family = _family(config.model_type)
    for name, known in family.only.items():
        if (value := getattr(config, name, known[0])) not in known:
            raise ValueError(f"{name}={value!r} is not implemented; known: {', '.join(map(str, known))}")
    read = {name: family.renamed.get(name, name) for name in _ours()}
    switches = {name: getattr(config, theirs) for name, theirs in read.items() if hasattr(config, theirs)}
    switches |= {**family.fixed, **family.derived(config)}
    if getattr(config, "sliding_window", None) and "sliding_windows" not in switches:
        raise ValueError(f"sliding_window={config.sliding_window!r}: sliding-window attention is not implemented")
    kept = {name: value for name, value in config.to_diff_dict().items() if name not in NOT_KEPT}
    return DecoderConfig(**switches, hf_fields=kept)


def to_hf(config: DecoderConfig, dtype: str = "float32") -> Any:
    """The `transformers` configuration object, with `dtype` as the stored type of the weights.

    Raises:
        ValueError: naming the switches that a configuration of this family cannot express.
    """
    import transformers

    family = FAMILIES[config.model_type]
    make = getattr(transformers, family.config)
    given = dict(config.hf_fields or {})
    plain = make(**given)
    before = from_hf(plain)
    for name in _ours():
        theirs = family.renamed.get(name, name)
        if hasattr(plain, theirs) and getattr(config, name) != getattr(before, name):
            given[theirs] = _json(getattr(config, name))
    if config.num_hidden_layers != before.num_hidden_layers:
        given |= family.restored(given, config.num_hidden_layers)
    written = make(**given, architectures=[family.model], dtype=dtype)
    again = from_hf(written)
    odd = [name for name in _ours() if getattr(again, name) != getattr(config, name)]
    if odd:
        asked = ", ".join(f"{name}={getattr(config, name)!r} (not {getattr(again, name)!r})" for name in odd)
        raise ValueError(
            f"a {config.model_type!r} config.json cannot say {asked}; begin with "
            f"DecoderConfig.from_hf(transformers.{family.config}(...))"
        )
    return written


def to_json(config: DecoderConfig, dtype: str) -> str:
    """The text of the `config.json` of a folder with weights of type `dtype`.

    A configuration that is still the one of the file it was read from is spelled as it was there: versions of
    `transformers` and other programs that do not know the spelling of this one go on reading it.

    Raises:
        ValueError: as `to_hf`.
    """
    theirs = to_hf(config, dtype)
    # The code that auto_map points to is not copied.
    file = {name: value for name, value in (config.hf_file or {}).items() if name != "auto_map"}
    if not file or from_hf(type(theirs).from_dict(deepcopy(file))) != config:
        return theirs.to_json_string()
    file |= dict.fromkeys([name for name in ("dtype", "torch_dtype") if name in file] or ["dtype"], dtype)
    return json.dumps(file, indent=2) + "\n"


def _ours() -> list[str]:
    return [one.name for one in fields(DecoderConfig) if one.compare]


def _family(name: Any) -> Family:
    if name not in FAMILIES:
        raise ValueError(f"model_type={name!r} is not implemented; use a checkpoint of type {', '.join(FAMILIES)}")
    return FAMILIES[name]


def _refuse(given: Mapping[str, Any]) -> None:
    if asked := [f"{name}={given[name]!r}: {what}" for name, what in UNSUPPORTED.items() if given.get(name)]:
        raise ValueError("; ".join(asked))


def read_config(folder: Path) -> DecoderConfig:
    """The configuration of a checkpoint folder.

    Raises:
        ValueError: naming the file and the field, when `config.json` is missing, is not JSON, or asks for a feature
            that is not implemented.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{path} does not exist; {_instead(folder)}")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    try:
        if not isinstance(raw, dict):
            raise ValueError("it holds no JSON object")
        _refuse(raw)
        _family(raw.get("model_type"))
        from transformers import AutoConfig

        return replace(from_hf(AutoConfig.from_pretrained(folder, trust_remote_code=False)), hf_file=raw)
    except Exception as error:
        raise ValueError(f"{path}: {error}") from error


def _instead(folder: Path) -> str:
    """What to give in the place of a folder without a configuration."""
    adapters = folder / "adapter_config.json"
    if adapters.is_file():
        return (
            f"{adapters.name} is there: these are adapters, and not a model. Load the model they belong to "
            "(models.load), put them in (models.load_adapters), save it (models.save), and give that folder"
        )
    inner = sorted({file.parent for deep in ("*", "snapshots/*") for file in folder.glob(f"{deep}/config.json")})
    if inner:
        return f"did you mean {' or '.join(map(str, inner[:4]))}?"
    return "a checkpoint folder holds config.json beside its safetensors files"


def _json(value: Any) -> Any:
    """`value` as `config.json` would hold it."""
    if isinstance(value, tuple) and value and isinstance(value[0], tuple):
        return {key: _json(one) for key, one in value}
    return list(value) if isinstance(value, tuple) else value
