"""Streaming puts every stored number where it belongs, reads it once, and finds the one that is not finite."""

import weakref
from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest
from family_models import built
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from jaxunlearn import models
from jaxunlearn.models import saving, streaming
from jaxunlearn.models.checkpoint_files import StoredTensor, stored_header
from jaxunlearn.models.streaming import Wanted, aligned, fill, stream

DTYPES = (jnp.bfloat16, np.float16, np.float32, np.float64)
SHAPE = (150, 37)


@pytest.fixture(scope="module", params=DTYPES)
def stored(request, tmp_path_factory):
    values = np.random.default_rng(0).standard_normal(SHAPE).astype(request.param)
    file = tmp_path_factory.mktemp("stored") / "model.safetensors"
    save_file({"before": np.zeros(3, np.int8), "x": values}, file)
    return values, stored_header(file)["x"]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 70), st.integers(0, 30), st.integers(0, 9), st.sampled_from(DTYPES), st.sampled_from(DTYPES))
def test_filling_a_transpose_is_assigning_to_it(rows, columns, skipped, kind, other):
    part = np.random.default_rng(rows).standard_normal((rows, columns)).astype(other)
    whole = aligned((columns, rows + skipped), kind)
    whole[...] = np.asarray(7, kind)
    fill(whole.T[skipped:], part)
    np.testing.assert_array_equal(whole[:, skipped:], part.T.astype(kind))
    assert (whole[:, :skipped] == np.asarray(7, kind)).all()


def edges(size):
    return st.lists(st.integers(0, size), min_size=2, max_size=3, unique=True).map(sorted)


@settings(max_examples=40, deadline=None)
@given(rows=edges(SHAPE[0]), columns=edges(SHAPE[1]), left_out=st.booleans(), chunk=st.integers(1, 9000))
def test_every_part_is_filled_and_shared_rows_are_read_once(stored, rows, columns, left_out, chunk):
    values, tensor = stored
    sizes = []

    class Counting(StoredTensor):
        def read(self, index):
            part = super().read(index)
            sizes.append(part.size)
            return part

    spans = [slice(a, b) for a, b in pairwise(columns)]
    spans = [spans[0], slice(columns[-1], SHAPE[1])] if left_out else spans  # what lies between them is not read
    spans = [one for one in dict.fromkeys((s.start, s.stop) for s in spans) if one[0] < one[1]]
    parts = [
        (slice(a, b), slice(*span), turned) for a, b in pairwise(rows) for span in spans for turned in (False, True)
    ]
    places = [aligned(values[r, c].T.shape if turned else values[r, c].shape, np.float64) for r, c, turned in parts]
    wanted = [
        Wanted(r, (c,), place.T if turned else place) for (r, c, turned), place in zip(parts, places, strict=True)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "CHUNK", chunk)
        assert stream(Counting(*tensor), wanted)
    for (r, c, turned), place in zip(parts, places, strict=True):
        np.testing.assert_array_equal(place.T if turned else place, values[r, c].astype(np.float64))
    assert sum(sizes) == (rows[-1] - rows[0]) * sum(b - a for a, b in spans)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_is_found_where_it_is_wanted(stored, tmp_path, odd):
    values = stored[0].copy()
    values[149, 36] = odd
    save_file({"x": values}, tmp_path / "x.safetensors")
    tensor = stored_header(tmp_path / "x.safetensors")["x"]
    for rows, columns, finite in ((150, 37, False), (149, 37, True), (150, 36, True)):
        place = aligned((columns, rows), values.dtype)
        assert stream(tensor, [Wanted(slice(0, rows), (slice(0, columns),), place.T)]) is finite


def test_a_file_that_became_shorter_is_named(stored, tmp_path):
    save_file({"x": stored[0]}, tmp_path / "x.safetensors")
    tensor = stored_header(tmp_path / "x.safetensors")["x"]
    (tmp_path / "x.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:-8])
    for columns in (37, 36):
        with pytest.raises(ValueError, match=r"x.safetensors ended while x was read; fetch or copy it again"):
            tensor.read((slice(0, 150), slice(0, columns)))


@pytest.mark.parametrize("size", ["5GB", 20_000])
def test_saving_holds_one_tensor_at_a_time_and_writes_what_the_library_writes(size, tmp_path, monkeypatch):
    """Fused projections, and a checkpoint whose layers are of three types."""
    family = built("phi3", tmp_path / "torch")
    file = family.folder / "model.safetensors"
    mixed = load_file(file)
    mixed["model.layers.0.self_attn.qkv_proj.weight"] = mixed["model.layers.0.self_attn.qkv_proj.weight"].astype("f2")
    mixed["model.layers.1.mlp.down_proj.weight"] = mixed["model.layers.1.mlp.down_proj.weight"].astype(jnp.bfloat16)
    save_file(mixed, file, metadata={"format": "pt"})
    model, params = models.load(family.folder)
    alive, most, inner = [0], [0], saving._host

    def counted(*args):
        tensor = inner(*args)
        alive[0] += 1
        most[0] = max(most[0], alive[0])
        weakref.finalize(tensor, lambda: alive.__setitem__(0, alive[0] - 1))
        return tensor

    monkeypatch.setattr(saving, "_host", counted)
    models.save(tmp_path / "saved", model, params, max_shard_size=size)
    assert (alive, most) == ([0], [1])
    files = sorted((tmp_path / "saved").glob("*.safetensors"))
    assert (len(files) == 1) == (size == "5GB")
    for one in files:
        save_file(load_file(one), tmp_path / "again", metadata={"format": "pt"})
        assert one.read_bytes() == (tmp_path / "again").read_bytes()
    saved = {name: tensor for one in files for name, tensor in load_file(one).items()}
    assert saved.keys() == mixed.keys()
    assert all(saved[name].dtype == mixed[name].dtype and (saved[name] == mixed[name]).all() for name in mixed)
