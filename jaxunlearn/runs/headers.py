"""What the headers of a checkpoint tell, before any of its weights is read."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxunlearn import models
from jaxunlearn.models.loading import dtypes_of
from jaxunlearn.models.specs import ParamSpec, param_specs
from jaxunlearn.runs.facts import size_text


class Checkpoint(NamedTuple):
    """What the headers of a checkpoint tell.

    Attributes:
        folder: where it is.
        config: of its decoder.
        dtypes: element type of each parameter.
        here: whether its weights are on this machine.
    """

    folder: Path
    config: models.DecoderConfig
    dtypes: Callable[[ParamSpec], Any]
    here: bool

    @classmethod
    def read(cls, model: str | Path) -> "Checkpoint":
        """The checkpoint `model`, a folder or a hub id of which no weights are fetched.

        Raises:
            ValueError: for what is wrong with names, shapes and types of the tensors.
        """
        folder = models.resolve(model, weights=False)
        config = models.read_config(folder)
        return cls(folder, config, dtypes_of(folder, config), any(folder.glob("*.safetensors")))

    @property
    def size(self) -> int:
        """Bytes of the weights."""
        return sum(math.prod(s.shape) * jnp.dtype(self.dtypes(s)).itemsize for s in param_specs(self.config))

    @property
    def parameters(self) -> int:
        """How many numbers the weights are."""
        return sum(math.prod(spec.shape) for spec in param_specs(self.config))

    def told(self) -> str:
        """One line for a person."""
        kinds = ", ".join(sorted({str(jnp.dtype(self.dtypes(spec))) for spec in param_specs(self.config)}))
        where = "" if self.here else "; its weights are not here, the element type is that of config.json"
        layers = f"{self.config.num_hidden_layers} layers, {self.parameters:,} parameters"
        return f"{self.config.model_type}, {layers} in {kinds}, {size_text(self.size)}{where}"
