"""Decoder models: one config-driven Flax module, loaded from and saved to Hugging Face checkpoints.

`load` and `init` return a `Model` of pure functions and its parameters as a plain nested dictionary of arrays.
"""

from jaxunlearn.models.adapters import from_linen, from_nnx
from jaxunlearn.models.config import DecoderConfig, read_config
from jaxunlearn.models.functional import Decoder, as_model
from jaxunlearn.models.generation import generate
from jaxunlearn.models.initialization import init
from jaxunlearn.models.loading import load, resolve
from jaxunlearn.models.saving import save
from jaxunlearn.models.segments import join_layers, split_layers
from jaxunlearn.models.specs import ParamSpec, param_specs
from jaxunlearn.models.tokenization import load_tokenizer

__all__ = [
    "Decoder",
    "DecoderConfig",
    "ParamSpec",
    "as_model",
    "from_linen",
    "from_nnx",
    "generate",
    "init",
    "join_layers",
    "load",
    "load_tokenizer",
    "param_specs",
    "read_config",
    "resolve",
    "save",
    "split_layers",
]
