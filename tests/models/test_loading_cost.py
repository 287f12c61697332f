"""What loading costs: every stored number is read once, and the host holds at most a layer more than the result."""

import tracemalloc

import jax
import numpy as np
import pytest
from family_models import built
from safetensors.numpy import save_file

from jaxunlearn import models, sharding
from jaxunlearn.models.checkpoint_files import StoredTensor, contents


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("case", ["llama", "phi3", "gpt_neox"])
def test_each_stored_number_is_read_once(case, devices, bits, tmp_path, monkeypatch):
    """Also where parameters are parts of one tensor, rows of it apart, and eight devices want parts of those."""
    folder = built(case, tmp_path).folder
    times = {name: np.zeros(tensor.shape, int) for name, tensor in contents(folder).tensors.items()}
    read = StoredTensor.read

    def counting(tensor, index):
        times[tensor.name][index] += 1
        return read(tensor, index)

    monkeypatch.setattr(StoredTensor, "read", counting)
    mesh = None if devices == 1 else sharding.make_mesh(data=2, fsdp=2, tensor=2)
    models.load(folder, mesh=mesh, freeze_bits=bits)
    assert {name: (seen.min(), seen.max()) for name, seen in times.items()} == dict.fromkeys(times, (1, 1))


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A checkpoint of 4 layers of 12.8 MB each, and the bytes of a layer."""
    config = models.DecoderConfig(
        vocab_size=64, hidden_size=512, intermediate_size=1408, num_attention_heads=8, num_hidden_layers=4
    )
    folder = tmp_path_factory.mktemp("wide")
    rows = {name: spec.hf_shape for spec in models.param_specs(config) for name in spec.hf_names}
    save_file({name: np.zeros(shape, np.float32) for name, shape in rows.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(config.to_hf().to_json_string())
    return folder, sum(4 * int(np.prod(shape)) for name, shape in rows.items() if ".layers.0." in name)


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("devices", [1, 8])
def test_the_host_holds_at_most_a_layer_more_than_the_result(wide, devices, bits):
    """Whole stacks of layers, of which there are seven, would be four layers more."""
    folder, layer = wide
    mesh = None if devices == 1 else sharding.make_mesh(data=2, fsdp=2, tensor=2)

    def load():
        return jax.block_until_ready(models.load(folder, mesh=mesh, freeze_bits=bits)[1])

    load()  # imports and programs are not what is measured
    tracemalloc.start()
    try:
        params = load()
        held, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    print(f"{(most - held) / 1e6:.1f} MB above the result of {held / 1e6:.1f} MB, a layer has {layer / 1e6:.1f} MB")
    assert most - held < layer
    if bits is None:
        assert held > 4 * layer  # numbers that were read are those of the result, not copied
    del params
