"""Commands that are interrupted, killed, or run out of disk, and what `--resume` makes of them."""

import errno
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxunlearn import evals, files
from jaxunlearn.cli import main
from jaxunlearn.runs.evaluate import remembered
from jaxunlearn.runs.progress import Stage
from jaxunlearn.runs.record import digest
from jaxunlearn.runs.settings import Devices, Evaluate
from jaxunlearn.runs.work import Work


@pytest.fixture
def alone(monkeypatch):
    """As on a machine with one device."""
    monkeypatch.setattr(Devices, "make_mesh", lambda self: None)


def argv(world, out, *more):
    found = ["finetune", "--model", world.model, "--data", world.forget, "--out", str(out), "--epochs", "8"]
    return [*found, "--batch-size", "3", "--learning-rate", "1e-2", *more]


@pytest.fixture(scope="module")
def left_alone(world, tmp_path_factory):
    """A fine-tuning that nothing happened to, on one device."""
    out = tmp_path_factory.mktemp("alone") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Devices, "make_mesh", lambda self: None)
        assert main(argv(world, out)) == 0
    assert not out.with_name("out.partial").exists()
    return out


def test_from_the_command_line_a_preempted_run_goes_on(world, left_alone, alone, tmp_path, monkeypatch, capsys):
    out, partial_ = tmp_path / "out", tmp_path / "out.partial"
    real, calls = Stage.advance, []

    def advance(stage, *args, **facts):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGTERM)
        return real(stage, *args, **facts)

    monkeypatch.setattr(Stage, "advance", advance)
    assert main(argv(world, out)) == 75
    told = capsys.readouterr().err
    assert "interrupted after step 3, saved up to step 3; to go on: jaxunlearn finetune --config" in told
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    assert main(argv(world, out)) == 2
    assert "holds an unfinished run of this output; go on with --resume, or delete it" in capsys.readouterr().err
    assert main(argv(world, out, "--resume", "--seed", "1", "--max-length", "60")) == 2
    told = capsys.readouterr().err
    assert "--seed was 0 and is 1" in told
    assert "--max-length was None and is 60" in told
    content = Path(world.forget).read_text()
    try:
        Path(world.forget).write_text(content.replace("a", "e", 1))
        assert main(argv(world, out, "--resume")) == 2
    finally:
        Path(world.forget).write_text(content)
    assert f"the contents of {world.forget} have changed" in capsys.readouterr().err
    assert main(["finetune", "--config", str(partial_ / "jaxunlearn.yaml"), "--resume"]) == 0
    assert "going on from" in capsys.readouterr().out
    assert digest(out) == digest(left_alone)
    assert not partial_.exists()
    assert main(argv(world, out, "--resume")) == 0
    assert "is complete already" in capsys.readouterr().out
    assert main(argv(world, out, "--resume", "--seed", "1")) == 2


def test_a_disk_that_fills_up_at_the_end_costs_nothing(world, left_alone, alone, tmp_path, monkeypatch, capsys):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(files, "_flush", lambda path: full(path) if "out." in str(path) else None)
        assert main(argv(world, tmp_path / "out", "--checkpoint-every", "2")) == 74
    assert "No space left on device" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    assert main(argv(world, tmp_path / "out", "--checkpoint-every", "2", "--resume")) == 0
    assert digest(tmp_path / "out") == digest(left_alone)


def test_a_place_that_cannot_be_written_is_found_out_before_anything_is_read(world, capsys):
    """/proc takes no files, not even from root, to whom the permissions of a folder mean nothing."""
    assert main(["finetune", "--model", "nowhere", "--data", "nothing", "--out", "/proc/self/out"]) == 2
    assert "/proc/self/out cannot be written" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"needs about 1,000,000,000,000 MB and .* MB are free"):
        files.require_room("out", 10**18)


def test_a_failed_try_without_checkpoints_leaves_nothing_to_delete(world, alone, tmp_path, capsys):
    assert main(argv(world, tmp_path / "out", "--learning-rate", "1e30")) == 2
    assert "training diverged" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_evaluation_does_not_measure_a_model_twice(world, alone, tmp_path, monkeypatch, capsys):
    asked = ["evaluate", "--model", world.model, "--reference-model", world.model, "--forget", world.forget]
    assert main([*asked, "--out", str(tmp_path / "alone.json")]) == 0
    real, calls = evals.run_suites, []

    def once(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(evals, "run_suites", once)
    assert main([*asked, "--out", str(tmp_path / "out.json")]) == 130
    assert "to go on: jaxunlearn evaluate --config" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()
    assert main([*asked, "--out", str(tmp_path / "out.json"), "--resume"]) == 0
    assert len(calls) == 3  # of the four there would be without a memory
    assert json.loads((tmp_path / "out.json").read_text()) == json.loads((tmp_path / "alone.json").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.json", "alone.yaml", "out.json", "out.yaml"]
    assert main([*asked, "--out", str(tmp_path / "out.json"), "--resume"]) == 0
    assert "is complete already" in capsys.readouterr().out
    assert main([*asked, "--out", str(tmp_path / "out.json")]) == 2


def test_written_answers_are_kept_call_by_call(tmp_path):
    asked = []

    def generate(model, params, prompts, *, max_new_tokens, stop_ids=(), batch_size=None):
        asked.append(prompts)
        return [[np.int32(len(prompt)), max_new_tokens] for prompt in prompts]

    work = Work("evaluate", Evaluate(Path("model"), forget="x", out=tmp_path / "out.json"))
    for column, count in (("before", 2), ("before", 2), ("after", 4)):
        write = remembered(generate, work, column)
        assert "batch_size" in inspect.signature(write).parameters
        assert write(None, None, [[1, 2], [3]], max_new_tokens=5) == [[2, 5], [1, 5]]
        assert write(None, None, [[1, 2], [3]], max_new_tokens=6) == [[2, 6], [1, 6]]
        assert len(asked) == count


@pytest.mark.slow
def test_a_process_killed_outright_goes_on(world, left_alone, tmp_path):
    out, environment = tmp_path / "out", os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("=8", "=1")}
    command = [sys.executable, "-m", "jaxunlearn", *argv(world, out, "--checkpoint-every", "1", "--resume")]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    while not (tmp_path / "out.partial" / "checkpoints" / "4").is_dir() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "going on from" in done.stdout
    assert digest(out) == digest(left_alone)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
