"""Streaming puts every stored number where it belongs, reads it once, and finds the one that is not finite."""

from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from jaxunlearn.models import streaming
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
