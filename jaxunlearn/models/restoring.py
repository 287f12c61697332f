"""The matrices a checkpoint has, read once more, with what adapters learnt added: `W + s A B`, a layer at a time.

A model with weights frozen in few bits (`models.quantised`) no longer has them. `save` takes what is given here in
their place, and so writes the original weights with the correction, rounded once to their own dtype.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float

from jaxunlearn.models.functional import Decoder
from jaxunlearn.models.loading import stored
from jaxunlearn.models.lora import put, without
from jaxunlearn.models.quantised import freezes, frozen_specs
from jaxunlearn.models.reading import read_layer
from jaxunlearn.models.specs import ParamSpec, at, param_specs
from jaxunlearn.sharding import on_host
from jaxunlearn.types import Params


class Restored:
    """Stands for a stacked kernel [L, i, o] in a parameter tree: `[layer]` reads and corrects one matrix."""

    def __init__(self, spec: ParamSpec, decoder: Decoder, tensors: list, adapters: dict):
        self.spec, self.tensors, self.shape = spec, tensors, spec.shape
        self.scale = 0.0 if decoder.lora is None else decoder.lora.scale
        # Every process takes part in collecting what is split over several.
        self.a, self.b = (None if x is None else on_host(x) for x in (adapters.get("lora_a"), adapters.get("lora_b")))
        self.dtype = read_layer(spec, tensors, 0).dtype

    def __getitem__(self, layer: int) -> Float[np.ndarray, "i o"]:
        kernel = read_layer(self.spec, self.tensors, layer)
        if self.a is None:
            return kernel
        wide = np.result_type(self.a.dtype, np.float32)
        change = self.a[layer].astype(wide) @ self.b[layer].astype(wide)
        return (kernel.astype(wide) + self.scale * change).astype(self.dtype)


def restored(decoder: Decoder, params: Params) -> Params:
    """`params` with the stored kernels, corrected, in the place of numbers, scales and adapters.

    Args:
        decoder: with `frozen_bits`.
        params: its parameters, layers in one stack.

    Raises:
        ValueError: when the checkpoint that the model was loaded from is gone or no longer fits.
    """
    folder = decoder.folder
    if folder is None or not Path(folder).is_dir():
        raise ValueError(f"the weights are frozen in {decoder.frozen_bits} bits, and {folder}, which has them, is gone")
    tensors = stored(folder, decoder.config)
    leaves, gone = {}, set()
    for spec in filter(freezes, param_specs(decoder.config)):
        node = at(params, spec._replace(path=spec.path[:-1]))
        leaves[spec.path] = Restored(spec, decoder, [tensors[name] for name in spec.hf_names], node)
        gone |= {row.path for row in frozen_specs(spec, decoder.frozen_bits)}
        gone |= {(*spec.path[:-1], name) for name in ("lora_a", "lora_b")}
    return put(without(params, gone), leaves)
