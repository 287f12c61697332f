"""Checkpoints: every bit comes back, on any mesh; torn, damaged and failed ones cost a step back, never the run."""

import errno
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from jaxunlearn.runs import checkpoint as module
from jaxunlearn.runs.checkpoint import Checkpoints, UnreadableError
from jaxunlearn.runs.preemption import Interrupted
from jaxunlearn.sharding import make_mesh


def tree():
    return {
        "weights": jax.random.normal(jax.random.key(0), (16, 8)),
        "half": jax.random.normal(jax.random.key(1), (8,), jnp.bfloat16),
        "moments": (jnp.float32(-0.0), jnp.int32(7), jnp.uint32(2**32 - 1), jnp.array([True, False])),
        "nothing": jnp.zeros((0, 3)),
        "odd": jnp.array([jnp.nan, jnp.inf, 1e-45]),
        "key": jax.random.key(3),
    }


def bits(x):
    """Every leaf as bytes."""
    data = lambda a: jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a
    return [np.asarray(data(a)).tobytes() for a in jax.tree.leaves(x)]


def laid_out(mesh, x):
    """Rows over all devices where they divide, else everywhere."""

    def put(a):
        rows = a.ndim and a.shape[0] and a.shape[0] % 8 == 0
        return jax.device_put(a, NamedSharding(mesh, PartitionSpec("fsdp") if rows else PartitionSpec()))

    return jax.tree.map(put, x)


def save(folder, *steps, state=None, **options):
    """One whole checkpoint a step."""
    said = []
    with Checkpoints(folder, **({"every": 1} | options), say=said.append) as checkpoints:
        for step in steps:
            checkpoints.after(step, lambda step=step: (state or {"x": jnp.full(1000, float(step))}, {"at": step}))
    return said


def found(folder, state=None, said=None):
    like = state or {"x": jnp.zeros(1000)}
    return Checkpoints(folder, say=(said if said is not None else []).append).restore(lambda facts: like)


def test_every_bit_comes_back_with_the_facts(tmp_path):
    with Checkpoints(tmp_path, every=1) as checkpoints:
        checkpoints.after(5, lambda: (tree(), {"losses": [0.1, 1 / 3], "text": "ü", "next": (1, 2)}))
    got = found(tmp_path, tree())
    assert (got.step, got.facts) == (5, {"losses": [0.1, 1 / 3], "text": "ü", "next": [1, 2]})
    assert bits(got.state) == bits(tree())
    assert jax.tree.structure(got.state) == jax.tree.structure(tree())
    assert [a.dtype for a in jax.tree.leaves(got.state)] == [a.dtype for a in jax.tree.leaves(tree())]


def test_another_number_of_devices_and_back(tmp_path):
    """Eight devices to one, one to eight, eight to a mesh of another shape: the bits stay, the layout is as asked."""
    eight, other = make_mesh(fsdp=8), make_mesh(data=2, fsdp=4)
    first = laid_out(eight, tree())
    save(tmp_path / "a", 1, state=first)
    one = found(tmp_path / "a", tree()).state
    assert bits(one) == bits(tree())
    assert all(len(a.sharding.device_set) == 1 for a in jax.tree.leaves(one))
    save(tmp_path / "b", 1, state=one)
    for mesh in (eight, other):
        spread = found(tmp_path / "b", laid_out(mesh, tree())).state
        assert bits(spread) == bits(tree())
        assert all(a.sharding.mesh == mesh for a in jax.tree.leaves(spread))
        shards = spread["weights"].addressable_shards
        assert {s.data.shape for s in shards} == {(16 // mesh.shape["fsdp"], 8)}


@pytest.mark.parametrize("info", [jax.ShapeDtypeStruct((3,), jnp.float32), np.zeros(3, np.float32)], ids=type)
def test_what_lies_on_no_mesh_goes_to_all_devices_of_the_one_there_is(info, tmp_path):
    """A shape, or the array on one device with which a run begins: with the others it goes through one program."""
    mesh = make_mesh(fsdp=8)
    state = {"a": laid_out(mesh, jnp.ones((8, 2))), "info": laid_out(mesh, jnp.arange(3.0))}
    save(tmp_path, 1, state=state)
    info = jnp.asarray(info) if isinstance(info, np.ndarray) else info
    got = found(tmp_path, {"a": laid_out(mesh, jnp.ones((8, 2))), "info": info})
    assert got.state["info"].sharding.is_fully_replicated
    assert got.state["info"].sharding.mesh == mesh


def test_what_is_saved_is_what_was_there_though_the_next_step_takes_its_memory(tmp_path):
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.zeros(200_000)
    with Checkpoints(tmp_path, every=1, keep=9) as checkpoints:
        for number in range(1, 6):
            x = step(x)
            checkpoints.after(number, lambda x=x: ({"x": x}, {}))
            x = step(x)
    for number in range(1, 6):
        stored = ocp.load(tmp_path / str(number), {"x": x})["x"]
        np.testing.assert_array_equal(stored, 2 * number - 1)


def test_the_last_two_stay(tmp_path):
    save(tmp_path, 1, 2, 3, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4"]


def _truncate(step):
    for file in step.rglob("d/*"):
        os.truncate(file, file.stat().st_size // 2)


def _flip(step):
    """One bit of one float in every copy of the array that is there."""
    files = [file for file in step.rglob("d/*") if file.stat().st_size > 1000]
    assert files
    for file in files:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(bytes(content))


def _unfinished(step):
    step.rename(step.with_name(f"{step.name}.orbax-checkpoint-tmp"))


def _empty(step):
    for file in step.rglob("*"):
        if file.is_file():
            file.write_bytes(b"")


def _other(step):
    """Whole, but with other numbers than its digest says."""
    about = ocp.metadata(step).custom_metadata
    ocp.save(step, {"x": jnp.full(1000, 2.0).at[3].set(2.5)}, overwrite=True, custom_metadata=about)


@pytest.mark.parametrize("damage", [_truncate, _flip, _unfinished, _empty, _other])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(damage, tmp_path):
    state = {"x": jax.random.normal(jax.random.key(9), (1000,)), "key": jax.random.key(3)}
    save(tmp_path, 1, 2, state=state)
    damage(tmp_path / "2")
    said = []
    got = found(tmp_path, {"x": jnp.zeros(1000), "key": jax.random.key(0)}, said)
    assert got.step == 1
    assert bits(got.state) == bits(state)
    assert damage is _unfinished or "checkpoint 2 cannot be read" in said[0]
    save(tmp_path, 2, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]


def test_without_any_whole_checkpoint_the_run_does_not_begin_anew_in_silence(tmp_path):
    save(tmp_path, 1, 2)
    for step in "12":
        _truncate(tmp_path / step)
    with pytest.raises(UnreadableError, match=r"no checkpoint can be read: .*2: .*1: .*delete"):
        found(tmp_path)
    assert found(tmp_path / "elsewhere") is None


class _Later:
    def __init__(self, error):
        self._error = error

    def result(self):
        raise self._error


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("when", ["at once", "in the background"])
def test_a_full_disk_costs_a_checkpoint_and_not_the_run(when, tmp_path, monkeypatch):
    real, failed = ocp.save_async, []

    def broken(path, *args, **kwargs):
        if path.name != "2":
            return real(path, *args, **kwargs)
        failed.append(path)
        half = path.with_name("2.orbax-checkpoint-tmp")
        half.mkdir()
        (half / "part").write_bytes(b"half")
        if when == "at once":
            raise FULL
        return _Later(FULL)

    monkeypatch.setattr(ocp, "save_async", broken)
    said = save(tmp_path, 1, 2)
    assert failed
    assert "no checkpoint after step 2: [Errno 28] No space left" in said[0]
    assert "the last is that of step 1" in said[0]
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert found(tmp_path).step == 1
    assert save(tmp_path, 3) == []
    assert found(tmp_path).step == 3


def test_an_interval_is_of_steps_or_of_minutes(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def saved(**options):
        steps = []
        with Checkpoints(tmp_path, keep=99, **options) as checkpoints:
            for step in range(1, 8):
                now[0] += 30.0
                checkpoints.after(step, lambda step=step: steps.append(step) or ({"step": jnp.int32(step)}, {}))
        return steps

    assert saved(every=3) == [3, 6]
    assert saved(minutes=1.0) == [2, 4, 6]
    assert saved(every=5, minutes=2.0) == [4, 5]
    assert saved() == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_saves_and_ends(number, code, tmp_path):
    done = []

    def run():
        with Checkpoints(tmp_path, resume_with="do it again") as checkpoints:
            for step in range(1, 9):
                if step == 3:
                    signal.raise_signal(number)
                done.append(step)
                checkpoints.after(step, lambda step=step: ({"x": jnp.full(1000, 1.0 * step)}, {}))

    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="after step 3, saved up to step 3; to go on: do it again") as raised:
        run()
    assert raised.value.exit_code == code
    assert done == [1, 2, 3]
    assert found(tmp_path).state["x"][0] == 3.0
    assert signal.getsignal(number) is before


def test_a_second_signal_does_not_wait(tmp_path):
    def run():
        with Checkpoints(tmp_path):
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as raised:
        run()
    assert not isinstance(raised.value, Interrupted)
    assert not list(tmp_path.iterdir())
