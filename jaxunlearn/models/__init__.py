"""Decoder models: one config-driven Flax module, loaded from and saved to Hugging Face checkpoints.

`load` and `init` return a `Model` of pure functions and its parameters as a plain nested dictionary of arrays.
"""

from jaxunlearn.models.adapters import from_linen, from_nnx
from jaxunlearn.models.config import DecoderConfig
from jaxunlearn.models.contrast import offset, uld, whp
from jaxunlearn.models.fisher_init import fila, vila
from jaxunlearn.models.functional import Decoder, as_model
from jaxunlearn.models.generation import generate
from jaxunlearn.models.hf_config import read_config
from jaxunlearn.models.initialization import init
from jaxunlearn.models.loading import load, resolve
from jaxunlearn.models.lora import PROJECTIONS, LoRA, add_lora, is_lora, merge_lora
from jaxunlearn.models.memfree import memfree, ngrams
from jaxunlearn.models.peft_files import load_adapters, save_adapters
from jaxunlearn.models.presets import PRESETS, preset
from jaxunlearn.models.saving import save
from jaxunlearn.models.segments import join_layers, split_layers
from jaxunlearn.models.specs import ParamSpec, param_specs
from jaxunlearn.models.task_arithmetic import negate_task_vector
from jaxunlearn.models.tokenization import load_tokenizer
from jaxunlearn.models.truncation import truncate_layers
from jaxunlearn.models.unlearning_layers import (
    add_unlearning_layers,
    fuse_linear,
    fuse_unlearning_layers,
    input_grams,
    is_unlearning_layer,
)

__all__ = [
    "PRESETS",
    "PROJECTIONS",
    "Decoder",
    "DecoderConfig",
    "LoRA",
    "ParamSpec",
    "add_lora",
    "add_unlearning_layers",
    "as_model",
    "fila",
    "from_linen",
    "from_nnx",
    "fuse_linear",
    "fuse_unlearning_layers",
    "generate",
    "init",
    "input_grams",
    "is_lora",
    "is_unlearning_layer",
    "join_layers",
    "load",
    "load_adapters",
    "load_tokenizer",
    "memfree",
    "merge_lora",
    "negate_task_vector",
    "ngrams",
    "offset",
    "param_specs",
    "preset",
    "read_config",
    "resolve",
    "save",
    "save_adapters",
    "split_layers",
    "truncate_layers",
    "uld",
    "vila",
    "whp",
]
