"""Meshes, and the table that says which mesh axes split which dimension."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxunlearn import sharding


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(data=2, fsdp=2, tensor=2)


@pytest.mark.parametrize(
    ("axes", "shape", "expected"),
    [
        (("vocab", "embed"), (512, 64), ("tensor", "fsdp")),
        (("layers", "embed", "heads"), (3, 64, 32), (None, "fsdp", "tensor")),
        (("batch", None, None), (8, 5, 6), (("data", "fsdp"), None, None)),
        (("batch", None), (2, 5), ("data", None)),
        (("batch", None), (1, 5), (None, None)),
        (("batch", "embed"), (4, 6), (("data", "fsdp"), None)),
        (("vocab",), (61,), (None,)),
        ((), (), ()),
        (("embed", sharding.Whole("kv_heads", 8)), (64, 16), ("fsdp", "tensor")),
        (("embed", sharding.Whole("kv_heads", 8)), (64, 8), ("fsdp", None)),  # one head of 8, which is not cut in two
    ],
)
def test_mesh_axes_split_what_they_divide_and_only_once(mesh, axes, shape, expected):
    assert sharding.partition_spec(mesh, axes, shape) == PartitionSpec(*expected)


def test_rules_are_data(mesh):
    rules = sharding.Rules(batch=("data", "fsdp", "tensor"), vocab=())
    assert sharding.partition_spec(mesh, ("batch", "vocab"), (8, 4), rules) == PartitionSpec(
        ("data", "fsdp", "tensor"), None
    )


@pytest.mark.parametrize("explicit", [False, True])
def test_shard_batch_splits_rows_and_keeps_values(explicit):
    mesh = sharding.make_mesh(2, 2, 2, explicit=explicit)
    batch = {"tokens": np.arange(12).reshape(4, 3), "one": np.ones((1, 2)), "scalar": np.float32(3)}
    placed = sharding.shard_batch(batch, mesh)
    assert placed["tokens"].sharding.shard_shape((4, 3)) == (1, 3)
    assert placed["one"].sharding.is_fully_replicated
    jax.tree.map(np.testing.assert_array_equal, placed, batch)


@pytest.mark.parametrize("count", [8, 4, 3])
def test_rows_are_made_where_they_are_held_and_by_nobody_else(count, monkeypatch):
    """A process that has some of the devices: here it is told that it has those of the third and fourth row."""
    mesh, asked = sharding.make_mesh(2, 2, 2), []

    def make(rows):
        asked.append(rows.tolist())
        return {"tokens": 10 * rows[:, None] + np.arange(3), "one": rows}

    whole = make(np.arange(count))
    placed = sharding.shard_rows(make, count, mesh)
    jax.tree.map(np.testing.assert_array_equal, placed, whole)
    assert jax.tree.map(lambda x: x.sharding, placed) == jax.tree.map(
        lambda x: x.sharding, sharding.shard_batch(whole, mesh)
    )
    assert asked == [list(range(count))] * 2
    held = {device: i for device, i in _indices(mesh, count).items() if device.id in (2, 3, 6, 7)}
    parts = {}
    monkeypatch.setattr(jax.sharding.NamedSharding, "addressable_devices_indices_map", lambda self, shape: held)
    monkeypatch.setattr(
        jax,
        "make_array_from_callback",
        lambda shape, target, part: parts.setdefault(shape, [part(index) for index in held.values()]),
    )
    sharding.shard_rows(make, count, mesh)
    rows = sorted({row for index in held.values() for row in range(count)[index[0]]})
    assert asked[-1] == rows
    assert len(rows) == (count // 2 if count % 4 == 0 else count)
    for part, index in zip(parts[count, 3], held.values(), strict=True):
        np.testing.assert_array_equal(part, whole["tokens"][index[0]])


def _indices(mesh, count):
    return sharding.named_sharding(mesh, ("batch",), (count,)).addressable_devices_indices_map((count,))


@pytest.mark.parametrize("explicit", [False, True])
def test_constrain_lays_out_and_does_nothing_without_a_mesh(explicit):
    mesh = sharding.make_mesh(2, 2, 2, explicit=explicit)
    x = jax.device_put(jnp.ones((4, 6)), sharding.named_sharding(mesh, (None, None), (4, 6)))
    with jax.set_mesh(mesh):
        y = jax.jit(lambda x: sharding.constrain(x, ("batch", None), mesh))(x)
    assert y.sharding.shard_shape(y.shape) == (1, 6)
    assert sharding.constrain(x, ("batch", None), None) is x


def test_constraint_inside_shard_map_is_left_to_its_author(mesh):
    def double(x):
        return 2 * sharding.constrain(x, ("batch", None), mesh)

    mapped = jax.shard_map(double, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data"))
    np.testing.assert_array_equal(jax.jit(mapped)(jnp.ones((4, 6))), 2 * np.ones((4, 6)))


def test_an_axis_that_would_only_repeat_the_work_is_refused_with_a_size_that_does_not():
    parameters = [(("vocab", "embed"), (51, 64)), (("layers", "embed", sharding.Whole("kv_heads", 4)), (8, 64, 8))]
    sharding.check_axes(sharding.make_mesh(fsdp=4, tensor=2), parameters)
    sharding.check_axes(sharding.make_mesh(fsdp=8), [(("vocab", "embed"), (51, 63))])  # it splits the batch at least
    told = r"'tensor' has size 4, which divides no dimension .*\(vocab 51, kv_heads 8\).*give tensor=2"
    with pytest.raises(ValueError, match=told):
        sharding.check_axes(sharding.make_mesh(data=2, tensor=4), parameters)


def test_misfitting_requests_are_named(mesh):
    with pytest.raises(ValueError, match="needs 6 devices, but there are 8"):
        sharding.make_mesh(data=3, fsdp=2)
    with pytest.raises(ValueError, match="'fsdp' has size 0"):
        sharding.make_mesh(fsdp=0)
    with pytest.raises(ValueError, match="unknown logical axis 'head'"):
        sharding.partition_spec(mesh, ("head",), (4,))
    with pytest.raises(ValueError, match="2 logical axes"):
        sharding.partition_spec(mesh, ("batch", None), (4,))
