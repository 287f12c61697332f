"""Real processes on this machine, exchanging over its loopback: two and four of them give the numbers of one."""

import json
import re
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny
import worker
from safetensors.numpy import load_file, save_file
from worker import Place

from jaxunlearn.sharding import hosts

GLOO = re.compile(r"\[Gloo\]|peer ranks")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of one layer, record files, and the model again with a NaN in a row that only the first process reads."""
    home = tmp_path_factory.mktemp("hosts")
    world = home / "world"
    tiny.write(world, layers=1, vocabulary=692)
    shutil.copytree(world / "base", world / "flawed")
    weights = load_file(world / "flawed" / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"][-1, -1] = np.nan
    save_file(weights, world / "flawed" / "model.safetensors", metadata={"format": "pt"})
    return home


@pytest.fixture(scope="module")
def port():
    """One address for all jobs: each finds it free, after a process that was killed, too."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def launch(folder, job, count, port):
    """`(codes, outputs, errors)` of the processes of one job."""
    argv = [[sys.executable, "-W", "ignore", worker.__file__, folder, job, i, count, port] for i in range(count)]
    run = [subprocess.Popen([str(a) for a in one], stdout=-1, stderr=-1, text=True) for one in argv]
    try:
        said = [one.communicate(timeout=600) for one in run]
    finally:
        for one in run:
            one.kill()
    # The exchange on CPUs greets every process on standard output, its threads sometimes in the middle of a line.
    outputs = ["".join(line for line in out.splitlines(True) if not GLOO.search(line)) for out, _ in said]
    return [one.returncode for one in run], outputs, [error for _, error in said]


def succeed(folder, job, count, port):
    codes, outputs, errors = launch(folder, job, count, port)
    assert codes == [0] * count, "\n".join(errors)
    return outputs, [json.loads((folder / f"{job}-{i}.json").read_text()) for i in range(count)]


@pytest.fixture(scope="module")
def one(folder):
    """The numbers of this process, which has all 8 devices."""
    return worker.work(Place(folder, "one"))


@pytest.fixture(scope="module")
def two(folder, port):
    """Two processes do everything that one does, and more, until one is killed."""
    return launch(folder, "two", 2, port)


@pytest.fixture(scope="module")
def left(folder, two):
    """A copy of what the killed run left, for one process to go on with."""
    return shutil.copytree(folder / "two" / "killed.partial", folder / "alone" / "killed.partial")


@pytest.fixture(scope="module")
def resumed(folder, left, port):
    return succeed(folder, "resumed", 2, port)


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same_weights(ours, theirs):
    ours, theirs = weights(ours), weights(theirs)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(theirs[name], value, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_two_processes_unlearn_and_evaluate_as_one(folder, one, two):
    _, outputs, errors = two
    assert "2 steps, stopped by --steps" in outputs[0], errors[0]
    assert outputs[1] == ""  # only the first speaks
    assert_same_weights(folder / "one" / "unlearned", folder / "two" / "unlearned")
    results = [json.loads((folder / job / "evaluation.json").read_text())["results"] for job in ("one", "two")]
    for column, measured in results[0].items():
        for name, value in measured.items():
            told = results[1][column][name]["agg_value"]
            assert told == (None if value["agg_value"] is None else pytest.approx(value["agg_value"], abs=1e-5)), name
    assert results[0]["after"]["forget_nll"]["agg_value"] > results[0]["before"]["forget_nll"]["agg_value"] + 0.1


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_and_all_that_was_saved_is_there(folder, two, left):
    codes, _, errors = two
    assert codes == [75, -9], errors
    told = errors[0].strip().splitlines()[-1]
    assert told.startswith("jaxunlearn unlearn: process 0 of 2 cannot reach another one, which has died"), told
    assert told.endswith("start all of them again, with --resume where the command has it")
    assert "Traceback" not in errors[0]
    names = {path.name for path in (folder / "two").iterdir() if path.name != "killed"}
    assert names == {"unlearned", "evaluation.json", "evaluation.yaml", "tuned", "preempted", "killed.partial"}
    assert (left / "checkpoints" / "1").is_dir()


@pytest.mark.slow
def test_two_processes_go_on_with_what_two_left_and_end_in_the_same_bits(folder, resumed):
    outputs, found = resumed
    assert "going on from" in outputs[0]
    assert "warning" not in outputs[0]
    assert [numbers["steps"] for numbers in found] == [1, 1]
    for again, alone in (("killed", "unlearned"), ("preempted", "tuned")):
        ours, theirs = (weights(folder / "two" / name) for name in (again, alone))
        assert {name: value.tobytes() for name, value in ours.items()} == {
            name: value.tobytes() for name, value in theirs.items()
        }
    assert not (folder / "two" / "killed.partial").exists()


@pytest.mark.slow
def test_one_process_goes_on_with_what_two_left_on_another_mesh(folder, left):
    assert worker.unlearn(Place(folder, "alone"), "killed", "--resume") == 0
    assert_same_weights(folder / "two" / "unlearned", folder / "alone" / "killed")


@pytest.mark.slow
def test_four_processes_compute_as_one_and_read_their_own_parts(folder, one, port):
    _, found = succeed(folder, "four", 4, port)
    for numbers in found:
        for name in ("solution", "residuals", "objective", "scores"):
            np.testing.assert_allclose(numbers[name], one[name], atol=1e-5, rtol=1e-5, err_msg=name)
    assert_same_weights(folder / "one" / "stepped", folder / "four" / "stepped")
    # Of 4 x 2 shards each process holds one of four along fsdp, whole along tensor: a quarter of what is split.
    norms = 3 * 16 * 4
    assert [numbers["bytes"] for numbers in found] == [(one["bytes"] - norms) // 4 + norms] * 4
    assert sorted(row for numbers in found for row in numbers["rows"]) == list(range(8))
    # Of every batch, in the step and in the scoring, each collates its own quarter.
    assert len(one["collated"]) > 2
    assert [numbers["collated"] for numbers in found] == [[count // 4 for count in one["collated"]]] * 4


@pytest.mark.slow
def test_what_one_process_finds_flawed_is_refused_by_all(two):
    told = [next(line for line in error.splitlines() if "not finite" in line) for error in two[2]]
    assert "parts that another process has read" in told[0]
    assert "process 1 of 2: " in told[1]
    assert "down_proj" in told[1]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("10.0.0.1:8476", 2, None), "--process-id missing"),
        ((None, None, 0), "--coordinator and --num-processes missing"),
        (("10.0.0.1", 2, 0), "such as 10.0.0.1:8476"),
        (("10.0.0.1:0", 2, 0), "such as 10.0.0.1:8476"),
        (("10.0.0.1:8476", 2, 2), "counted from 0 to 1"),
        (("10.0.0.1:8476", 0, 0), "--num-processes 0: give at least 1"),
    ],
)
def test_what_makes_no_sense_is_named(given, told):
    with pytest.raises(ValueError, match="--") as error:
        hosts.start(*given)
    assert told in str(error.value)


SLURM = {"SLURM_STEP_NODELIST": "a[1-2]", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "7"}
CLUSTERS = [
    ({}, False),
    ({**SLURM, "SLURM_NTASKS": "2"}, True),
    ({**SLURM, "SLURM_NTASKS": "1"}, False),  # srun --pty on one node
    ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, False),  # in an allocation, but not started by srun
    ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:5", "OMPI_COMM_WORLD_SIZE": "2"}, True),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
]


@pytest.mark.parametrize(("environment", "expected"), CLUSTERS)
def test_others_are_looked_for_only_where_the_environment_says_so(environment, expected, monkeypatch):
    for name in {name for one, _ in CLUSTERS for name in one} | {"TPU_PROCESS_ADDRESSES"}:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert hosts.in_cluster() == expected
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **options: asked.append(args))
    hosts.start()
    assert asked == ([(None, None, None)] if expected else [])
