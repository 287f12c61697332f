"""Real processes on this machine, exchanging over its loopback: two and four of them give the numbers of one."""

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from jaxunlearn.sharding import hosts

WORKER = Path(__file__).with_name("worker.py")
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


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def launch(folder, job, count, port):
    """`(codes, outputs, errors, seconds)` of the processes of one job."""
    start = time.monotonic()
    argv = [[sys.executable, "-W", "ignore", WORKER, folder, job, i, count, port] for i in range(count)]
    run = [subprocess.Popen([str(a) for a in one], stdout=-1, stderr=-1, text=True) for one in argv]
    try:
        said = [one.communicate(timeout=600) for one in run]
    finally:
        for one in run:
            one.kill()
    seconds = time.monotonic() - start
    # The exchange on CPUs greets every process on standard output, its threads sometimes in the middle of a line.
    outputs = ["".join(line for line in out.splitlines(True) if not GLOO.search(line)) for out, _ in said]
    return [one.returncode for one in run], outputs, [error for _, error in said], seconds


def succeed(folder, job, count):
    codes, outputs, errors, _ = launch(folder, job, count, free_port())
    assert codes == [0] * count, "\n".join(errors)
    return outputs, [json.loads((folder / f"{job}-{i}.json").read_text()) for i in range(count)]


@pytest.fixture(scope="module")
def one(folder):
    return succeed(folder, "one", 1)


def assert_same_weights(ours, theirs):
    ours, theirs = (load_file(path / "model.safetensors") for path in (ours, theirs))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(theirs[name], value, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_two_processes_unlearn_and_evaluate_as_one(folder, one):
    outputs, _ = succeed(folder, "two", 2)
    assert "1 steps, stopped by --steps" in outputs[0]
    assert outputs[1] == ""  # only the first speaks
    assert_same_weights(folder / "one" / "unlearned", folder / "two" / "unlearned")
    results = [json.loads((folder / job / "evaluation.json").read_text())["results"] for job in ("one", "two")]
    for column, measured in results[0].items():
        for name, value in measured.items():
            told = results[1][column][name]["agg_value"]
            assert told == (None if value["agg_value"] is None else pytest.approx(value["agg_value"], abs=1e-5)), name
    assert results[0]["after"]["forget_nll"]["agg_value"] > results[0]["before"]["forget_nll"]["agg_value"] + 0.1
    left = {path.name for path in (folder / "two").iterdir()}
    assert left == {"unlearned", "evaluation.json", "evaluation.yaml"}


@pytest.mark.slow
def test_four_processes_compute_as_one_and_read_their_own_parts(folder, one):
    _, found = succeed(folder, "four", 4)
    (alone,) = one[1]
    for numbers in found:
        for name in ("solution", "residuals", "objective", "scores"):
            np.testing.assert_allclose(numbers[name], alone[name], atol=1e-5, rtol=1e-5, err_msg=name)
    assert_same_weights(folder / "one" / "stepped", folder / "four" / "stepped")
    # Of 4 x 2 shards each process holds one of four along fsdp, whole along tensor: a quarter of what is split.
    norms = 3 * 16 * 4
    assert [numbers["bytes"] for numbers in found] == [(alone["bytes"] - norms) // 4 + norms] * 4
    assert sorted(row for numbers in found for row in numbers["rows"]) == list(range(8))


@pytest.fixture(scope="module")
def died(folder):
    port = free_port()
    return port, launch(folder, "dies", 2, port)


def test_a_process_that_dies_ends_the_others(died):
    codes, _, errors, seconds = died[1]
    assert codes[1] == -9
    assert codes[0] not in (0, None)
    assert "another task died" in errors[0]
    assert seconds < 120  # 10 without a sign of life, and the start of two interpreters


def test_a_start_anew_finds_the_address_free_and_what_one_process_finds_flawed_is_refused_by_all(folder, died):
    codes, _, errors, _ = launch(folder, "flawed", 2, died[0])
    assert codes == [0, 0], errors
    told = [next(line for line in error.splitlines() if "not finite" in line) for error in errors]
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
